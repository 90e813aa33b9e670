"""The front matter of a dataset card: what the Hugging Face Hub and `datasets` read."""

import re
from collections.abc import Iterator

from quadpipe.shards.format import PREVIEW
from quadpipe.shards.manifest import Manifest

HUB_SPLITS = {"val": "validation"}
_SIZE_LIMITS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)

# With more names in all configurations, labels are plain numbers: `datasets` parses 10,000 lines
# of this a second.
MOST_NAMES = 30_000

# https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3
    llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++
    osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905
)


def front_matter(manifest: Manifest, name: str) -> str:
    """YAML lines: name, license, tags, and a configuration for each view with its features."""
    samples = sum(split.samples for split in manifest.splits.values())
    lines = [f"pretty_name: {quoted(name)}", *_license(manifest)]
    if manifest.classes:
        lines += ["task_categories:", "  - image-classification"]
    lines += ["size_categories:", f"  - {_size_category(samples)}"]
    lines += ["tags:", "  - webdataset", "  - quadpipe", "  - mixed-resolution-tokens"]
    configs = list(_configs(manifest))
    lines.append("configs:")
    for config, files in configs:
        lines += [f"  - config_name: {config}", "    data_files:"]
        for split, path in files.items():
            lines += [f"      - split: {HUB_SPLITS.get(split, split)}", f'        path: "{path}"']
    lines.append("dataset_info:")
    for config, _ in configs:
        lines += [f"  - config_name: {config}", "    features:"]
        lines += [f"      {line}" for line in _features(manifest, names=names_classes(manifest))]
    return "\n".join(lines) + "\n"


def names_classes(manifest: Manifest) -> bool:
    """Whether the features name all classes."""
    return len(manifest.classes or ()) * len(list(_configs(manifest))) <= MOST_NAMES


def quoted(text: str) -> str:
    """A YAML scalar between double quotes, without characters that its readers refuse."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _license(manifest: Manifest) -> Iterator[str]:
    """An identifier that the Hub knows; otherwise name and link of another license."""
    given = (manifest.license or "").strip()
    if not given:
        return
    if given.lower() in _LICENSES:
        yield f"license: {given.lower()}"
        return
    yield "license: other"
    found = re.search(r"https?://[^\s\"<>]+", given)
    link = found[0].rstrip(").,;") if found else ""
    text = given.replace(link, "")
    words = re.findall(r"[a-z0-9.]+", text.lower())
    yield f"license_name: {quoted('-'.join(words)[:80].strip('-.') or 'other')}"
    if link:
        yield f"license_link: {quoted(link)}"


def _configs(manifest: Manifest) -> Iterator[tuple[str, dict[str, str]]]:
    """Name of the configuration of each view, and the pattern of its shards by split."""
    splits = {split: info for split, info in manifest.splits.items() if info.shards}
    for view in range(max((info.views for info in splits.values()), default=1)):
        pattern = f"v{view:02d}-*.tar" if view else "[0-9]*.tar"
        files = {name: f"{name}-{pattern}" for name in splits if view < splits[name].views}
        yield f"view-{view:02d}" if view else "default", files


def member_types(manifest: Manifest) -> dict[str, str]:
    """The type of each member by its name after the key, in the order of the card.

    string, int64, image or binary: what `datasets` decodes. array, label, info: those of the format
    itself. boxes: a list of lists of numbers. any: it depends on the content, as of JSON.
    """
    codec = manifest.make_codec()
    return {
        **({} if manifest.preview is None else {PREVIEW: "image"}),
        codec.member: "array" if codec.name == "raw" else "image",
        "nodes.npy": "array",
        "importance.npy": "array",
        **({} if manifest.classes is None else {"cls": "label"}),
        "json": "info",
        **{name: _kept_type(name, kind) for name, kind in sorted((manifest.members or {}).items())},
    }


def _kept_type(name: str, kind: str) -> str:
    ending = name.rpartition(".")[2]
    known = (found for found, endings in _TYPES.items() if ending in endings)
    return "boxes" if kind == "boxes" else next(known, "binary")


# What `datasets` makes of the ends of members' names.
_TYPES = {
    "string": ("txt", "text", "transcript"),
    "int64": ("cls", "cls2", "index", "inx", "id"),
    "image": ("png", "jpg", "jpeg", "gif", "bmp", "tif", "tiff", "webp", "ppm", "pgm"),
    "any": ("json", "jsn", "ten", "tb", "mp", "msg", "npy", "npz", "cbor", "pth"),
}


def _features(manifest: Manifest, *, names: bool) -> Iterator[str]:
    """The types of all members, so that `datasets` need not guess them from nested lists; it leaves
    out those of any type.

    `sequence` is what all versions of `datasets` read.
    """
    config, member = manifest.tokenizer, manifest.make_codec().member
    nodes, side = manifest.geometry.num_nodes(config.tokens), config.patch_size
    arrays = {
        member: _array((nodes, side, side, 3), "uint8"),
        "nodes.npy": _array((nodes, 4), "int32"),
        "importance.npy": ("  sequence: float32",),
    }
    yield from ("- name: __key__", "  dtype: string", "- name: __url__", "  dtype: string")
    for name, kind in member_types(manifest).items():
        if kind == "any":
            continue
        yield f"- name: {quoted(name) if name in (manifest.members or ()) else name}"
        if kind == "array":
            yield from arrays[name]
        elif kind == "label":
            yield from _label(manifest, names=names)
        elif kind == "info":
            yield from _info(manifest)
        elif kind == "boxes":
            yield from ("  sequence:", "    sequence: float64")
        else:
            yield f"  dtype: {kind}"


def _label(manifest: Manifest, *, names: bool) -> Iterator[str]:
    if names and manifest.classes:
        yield from ("  dtype:", "    class_label:", "      names:")
        for index, name in enumerate(manifest.classes):
            yield f"        '{index}': {quoted(name)}"
    else:
        yield "  dtype: int64"


def _info(manifest: Manifest) -> Iterator[str]:
    yield "  struct:"
    texts = ("path", *(("class",) if manifest.classes is not None else ()))
    for name, kind in [(t, "string") for t in texts] + [(n, "int32") for n in _NUMBERS]:
        yield from (f"    - name: {name}", f"      dtype: {kind}")
    yield from ("    - name: box", "      sequence: float64")


_NUMBERS = ("width", "height", "view")


def _array(shape: tuple[int, ...], dtype: str) -> tuple[str, ...]:
    sides = ", ".join(map(str, shape))
    return (
        *("  dtype:", f"    array{len(shape)}_d:"),
        *(f"      shape: [{sides}]", f"      dtype: {dtype}"),
    )


def _size_category(samples: int) -> str:
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for limit, name, below in zip(_SIZE_LIMITS, names, ["n", *names], strict=False):
        if samples < limit:
            return f"n<{name}" if below == "n" else f"{below}<n<{name}"
    return "n>1B"
