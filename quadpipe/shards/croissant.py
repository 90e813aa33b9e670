"""`croissant.json`: the dataset as https://mlcommons.org/croissant describes datasets, for tools
that do not know quadpipe."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quadpipe.files import ReadableFolder
from quadpipe.shards.format import PREVIEW, json_bytes
from quadpipe.shards.hub import MOST_NAMES
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

_FORMATS = {"npy": "application/x-npy", "jpg": "image/jpeg", "png": "image/png"}
_KEY = r"^(?:.*/)?([^./]+)\."


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
        for member, kind in _kinds(manifest).items():
            yield {
                "@type": "cr:FileSet",
                "@id": f"files/{split}/{member}",
                "name": f"{member} of {split}",
                "containedIn": [{"@id": tar.name} for tar in tars],
                "encodingFormat": kind,
                "includes": f"*.{member}",
            }


def _kinds(manifest: Manifest) -> dict[str, str]:
    """Encoding of each kind of member."""
    names = [manifest.make_codec().member, "nodes.npy", "importance.npy"]
    names += [PREVIEW] if manifest.preview is not None else []
    kinds = {name: _FORMATS[name.rpartition(".")[2]] for name in names}
    labels = {} if manifest.classes is None else {"cls": "text/plain"}
    return kinds | labels | {"json": "application/json"}


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
    contents = {"json": "sc:Text"} | ({} if manifest.classes is None else {"cls": "sc:Integer"})
    for member in _kinds(manifest):
        if member.endswith((".jpg", ".png")):
            contents[member] = "sc:ImageObject"
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
