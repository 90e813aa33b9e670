"""The dataset card, for people and for the Hugging Face Hub."""

import re
from typing import Any

from quadpipe.shards.format import PREVIEW
from quadpipe.shards.hub import front_matter, names_classes
from quadpipe.shards.manifest import Manifest
from quadpipe.text import counted


def card(manifest: Manifest) -> str:
    """Markdown with Hugging Face front matter; people may edit it."""
    name = manifest.name or "Mixed-resolution tokens"
    return f"---\n{front_matter(manifest, name)}---\n\n{_body(manifest, name)}"


_KINDS = {
    "boxes": "boxes [left, top, right, bottom] in pixels of the crop",
    "mask": "a mask of the crop",
}


def kept_members(manifest: Manifest) -> list[str]:
    """Each kept member; boxes and masks with what they are."""
    return [
        f"{name} ({_KINDS[kind]})" if kind in _KINDS else name
        for name, kind in sorted((manifest.members or {}).items())
    ]


def _body(manifest: Manifest, name: str) -> str:
    config, geometry = manifest.tokenizer, manifest.geometry
    height, width = config.image_size
    rows = [
        "| split | inputs | rejected | views | samples | shards | bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {split} | {info.inputs:,} | {info.rejected:,} | {info.views} | {info.samples:,} "
        f"| {info.shards:,} | {info.bytes:,} |"
        for split, info in manifest.splits.items()
    ]
    classes = counted(len(manifest.classes), "class") if manifest.classes else "no labels"
    codec = manifest.make_codec()
    quality = f", quality {codec.quality}" if codec.name == "jpg" else ""
    parts = [
        f"# {name}",
        f"Images of {height} x {width} pixels as quadtree mosaics: flat regions in patches of up "
        f"to {config.max_patch_size} pixels, salient ones in patches of {config.patch_size}, each "
        f"resampled to {config.patch_size} x {config.patch_size}. {classes.capitalize()}.",
        "\n".join(rows),
        f"Every budget of {geometry.roots} to {config.tokens} tokens in steps of 3 can be read "
        f"from these shards."
        if config.tokens > geometry.roots
        else f"Every image has {config.tokens} tokens.",
        f"Made with quadpipe, format {manifest.format_version}: scorer {config.scorer}, "
        f"resample {config.resample}, codec {codec.name}{quality}.",
    ]
    if manifest.scorer["label_aware"]:
        parts.append("The scorer looked at the labels: for analysis, not for training.")
    if manifest.source:
        parts.append(f"Source: {manifest.source}")
    if manifest.license:
        parts.append(f"License: {manifest.license}")
    parts += [f"Made from: {_named(parent)}" for parent in manifest.parents]
    if manifest.classes and not names_classes(manifest):
        parts.append("The names of the classes are in `dataset.json`.")
    if manifest.preview is not None:
        parts.append(f"`{PREVIEW}`: the crop, {manifest.preview} pixels on its longer side.")
    if manifest.members:
        parts.append(f"Kept beside the tokens of each sample: {', '.join(kept_members(manifest))}.")
    parts += ["## Use", _example(manifest), "## Citation", _citation(manifest, name)]
    return "\n\n".join(parts) + "\n"


def _example(manifest: Manifest) -> str:
    """Python lines that read a sample and take its leaves at a budget, with NumPy alone."""
    geometry, codec = manifest.geometry, manifest.make_codec()
    roots, side = geometry.roots, geometry.patch_size
    splits = (manifest.tokenizer.num_splits + 1) // 2
    read = f'tokens, nodes = sample["{codec.member}"], sample["nodes.npy"]'
    if codec.name != "raw":
        read += (
            f"\nrows, columns = tokens.shape[0] // {side}, tokens.shape[1] // {side}"
            f"\ntokens = tokens.reshape(rows, {side}, columns, {side}, 3).swapaxes(1, 2)"
            f"\ntokens = tokens.reshape(-1, {side}, {side}, 3)[: len(nodes)]"
        )
    return f"""```python
import numpy as np
import webdataset as wds

samples = wds.WebDataset("{_first_shard(manifest)}", shardshuffle=False).decode("rgb8")
sample = next(iter(samples))
{read}

# The {roots + 3 * splits} patches that tile the image after {splits} splits; boxes: x, y, scale.
splits = {splits}  # from 0 to {manifest.tokenizer.num_splits}: {roots} + 3 * splits tokens
step = nodes[: {roots} + 4 * splits, 3]
leaves = np.flatnonzero((step < 0) | (step >= splits))
leaf_tokens, boxes = tokens[leaves], nodes[leaves, :3]
```"""


def _citation(manifest: Manifest, name: str) -> str:
    version = f"quadpipe {manifest.quadpipe}" if manifest.quadpipe else "quadpipe"
    source = f"\n  howpublished = {{{_plain(manifest.source)}}}," if manifest.source else ""
    return f"""```bibtex
@misc{{quadpipe-{manifest.fingerprint[:12]},
  title = {{{_plain(name)}}},{source}
  note = {{Mixed-resolution tokens made with {_plain(version)}, fingerprint {manifest.fingerprint}}}
}}
```"""


def _plain(text: str) -> str:
    """Text in one line that ends neither a field of BibTeX nor a block of Markdown."""
    return re.sub(r"[{}\\`\s]+", " ", text).strip()


def _named(parent: dict[str, Any]) -> str:
    """A source of a copy, and its own sources."""
    texts = [parent.get("name"), f"fingerprint {parent['fingerprint']}"]
    texts.append(f"license {parent['license']}" if parent.get("license") else "no license")
    texts.append(parent.get("source"))
    above = "; ".join(_named(each) for each in parent.get("parents", ()))
    return ", ".join(filter(None, texts)) + (f" (from {above})" if above else "")


def _first_shard(manifest: Manifest) -> str:
    return f"{next(iter(manifest.splits), 'train')}-000000.tar"
