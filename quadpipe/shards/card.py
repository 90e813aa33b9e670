"""The dataset card, for people and for the Hugging Face Hub."""

import json
from typing import Any

from quadpipe.shards.manifest import Manifest

_HUB_SPLITS = {"val": "validation"}
_SIZE_LIMITS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


def card(manifest: Manifest) -> str:
    """Markdown with Hugging Face front matter; people may edit it."""
    name = manifest.name or "Mixed-resolution tokens"
    return f"---\n{_front_matter(manifest, name)}---\n\n{_body(manifest, name)}"


def _front_matter(manifest: Manifest, name: str) -> str:
    samples = sum(split.samples for split in manifest.splits.values())
    lines = [f"pretty_name: {json.dumps(name, ensure_ascii=False)}"]
    if manifest.license:
        lines.append(f"license: {json.dumps(manifest.license, ensure_ascii=False)}")
    if manifest.classes:
        lines += ["task_categories:", "  - image-classification"]
    lines += ["size_categories:", f"  - {_size_category(samples)}"]
    lines += ["tags:", "  - webdataset", "  - quadpipe", "  - mixed-resolution-tokens"]
    lines += ["configs:", "  - config_name: default", "    data_files:"]
    for split, info in manifest.splits.items():
        if info.shards:
            lines.append(f"      - split: {_HUB_SPLITS.get(split, split)}")
            lines.append(f'        path: "{split}-*.tar"')
    return "\n".join(lines) + "\n"


def _size_category(samples: int) -> str:
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for limit, name, below in zip(_SIZE_LIMITS, names, ["n", *names], strict=False):
        if samples < limit:
            return f"n<{name}" if below == "n" else f"{below}<n<{name}"
    return "n>1B"


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
    classes = f"{len(manifest.classes):,} classes" if manifest.classes else "no labels"
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
    parts.append(
        "```python\n"
        "import webdataset as wds\n\n"
        f'samples = wds.WebDataset("{_first_shard(manifest)}", shardshuffle=False).decode()\n'
        "```"
    )
    return "\n\n".join(parts) + "\n"


def _named(parent: dict[str, Any]) -> str:
    """A source of a copy, and its own sources."""
    texts = [parent.get("name"), f"fingerprint {parent['fingerprint']}"]
    texts.append(f"license {parent['license']}" if parent.get("license") else "no license")
    texts.append(parent.get("source"))
    above = "; ".join(_named(each) for each in parent.get("parents", ()))
    return ", ".join(filter(None, texts)) + (f" (from {above})" if above else "")


def _first_shard(manifest: Manifest) -> str:
    return f"{next(iter(manifest.splits), 'train')}-000000.tar"
