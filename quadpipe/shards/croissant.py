"""`croissant.json`: the dataset as https://mlcommons.org/croissant describes datasets, for tools
that do not know quadpipe."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quadpipe.files import ReadableFolder
from quadpipe.shards.format import json_bytes
from quadpipe.shards.hub import MOST_NAMES, member_types
from quadpipe.shards.manifest import Manifest, ShardInfo
from quadpipe.shards.shard_list import read_shard_list

MOST_SHARDS = 10_000
"""Of more, only the lists are described; they hold the checksums of the shards."""

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_ENCODINGS = {
    "array": "application/x-npy",
    "label": "text/plain",
    "int64": "text/plain",
    "string": "text/plain",
    "info": "application/json",
    "boxes": "application/json",
}
# Of members whose type does not say it, by the end of their names.
_ENCODINGS_BY_ENDING = {
    "json": "application/json",
    "jsn": "application/json",
    "npy": "application/x-npy",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "webp": "image/webp",
}
# Of encodings whose content tools of this format can parse.
_DATA_TYPES = {
    "text/plain": "sc:Text",
    "application/json": "sc:Text",
    "image/png": "sc:ImageObject",
    "image/jpeg": "sc:ImageObject",
}
_KEY = r"^(?:.*/)?([^./]+)\."
_DIGITS = "[0-9]" * 10


def croissant(manifest: Manifest, shards: Mapping[str, Sequence[ShardInfo]]) -> bytes:
    """shards: of each split; an empty mapping when there are more than `MOST_SHARDS`."""
    name = manifest.name or "Mixed-resolution tokens"
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": (
            f"Images as quadtree mosaics of up to {manifest.tokenizer.tokens} patches: WebDataset "
            f"shards, format {manifest.format_version} of quadpipe, described in README.md."
        ),
        "citeAs": f"{name}, quadpipe fingerprint {manifest.fingerprint}",
        "version": f"{manifest.revision}.0.0",
        "distribution": [*_files(manifest, shards), *_members(manifest, shards)],
        "recordSet": [*_classes(manifest), *_records(manifest, shards)],
    }
    texts = {"license": manifest.license, "url": manifest.source}
    document |= {key: text for key, text in texts.items() if text}
    return json_bytes(document, indent=1)


def read_croissant(folder: ReadableFolder, manifest: Manifest) -> bytes:
    """Of a dataset whose shard lists are in the folder."""
    few = sum(info.shards for info in manifest.splits.values()) <= MOST_SHARDS
    lists = {
        split: read_shard_list(folder, split, info)
        for split, info in manifest.splits.items()
        if few
    }
    return croissant(manifest, lists)


def _files(
    manifest: Manifest, shards: Mapping[str, Sequence[ShardInfo]]
) -> Iterator[dict[str, Any]]:
    for split, info in manifest.splits.items():
        yield _file(info.shard_list, "application/jsonlines", info.shard_list_sha256)
        for shard in shards.get(split, ()):
            size = f"{shard.bytes} B"
            yield _file(shard.name, "application/x-tar", shard.sha256) | {"contentSize": size}


def _file(name: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _members(
    manifest: Manifest, shards: Mapping[str, Sequence[ShardInfo]]
) -> Iterator[dict[str, Any]]:
    """The files in the tars, a set for each kind of member."""
    for split, tars in shards.items():
        for member, kind in member_types(manifest).items():
            yield {
                "@type": "cr:FileSet",
                "@id": f"files/{split}/{member}",
                "name": f"{member} of {split}",
                "containedIn": [{"@id": tar.name} for tar in tars],
                "encodingFormat": _encoding(member, kind),
                # Also the digits of the key, since another member may end in the same way.
                "includes": [f"*{_DIGITS}.{member}", f"*{_DIGITS}-v[0-9][0-9].{member}"],
            }


def _encoding(member: str, kind: str) -> str:
    by_ending = _ENCODINGS_BY_ENDING.get(member.rpartition(".")[2], "application/octet-stream")
    return _ENCODINGS.get(kind, by_ending)


def _classes(manifest: Manifest) -> Iterator[dict[str, Any]]:
    if not 0 < len(manifest.classes or ()) <= MOST_NAMES:
        return
    yield {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/cls"},
        "field": [_field("classes/cls", "sc:Integer"), _field("classes/name", "sc:Text")],
        "data": [
            {"classes/cls": index, "classes/name": name}
            for index, name in enumerate(manifest.classes or ())
        ],
    }


def _records(
    manifest: Manifest, shards: Mapping[str, Sequence[ShardInfo]]
) -> Iterator[dict[str, Any]]:
    """Key and content of each kind of member that tools of this format can parse."""
    contents = {}
    for member, kind in member_types(manifest).items():
        whole_number = kind in ("label", "int64")
        data_type = "sc:Integer" if whole_number else _DATA_TYPES.get(_encoding(member, kind))
        if data_type:
            contents[member] = data_type
    for split in shards:
        for member, kind in contents.items():
            name = f"{split}-{member}"
            files = {"fileSet": {"@id": f"files/{split}/{member}"}}
            key = {"extract": {"fileProperty": "filename"}, "transform": {"regex": _KEY}}
            content = {"extract": {"fileProperty": "content"}}
            yield {
                "@type": "cr:RecordSet",
                "@id": name,
                "name": name,
                "key": {"@id": f"{name}/key"},
                "field": [
                    _field(f"{name}/key", "sc:Text") | {"source": files | key},
                    _field(f"{name}/{member}", kind) | {"source": files | content},
                ],
            }


def _field(name: str, kind: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "dataType": kind}
