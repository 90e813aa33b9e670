"""The page from its parts, and what its script draws, as JSON."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from quadpipe.counts import CountLimits, distribution
from quadpipe.errors import ConfigError
from quadpipe.page.facts import facts, headline
from quadpipe.render import Exhibit
from quadpipe.shards.format import Codec
from quadpipe.shards.reader import Dataset
from quadpipe.shards.statistics import split_gains, statistics

_QUALITIES = (95, 85, 75, 60, 40)
_CHARACTERS_PER_SAMPLE = 100_000
_MOST_MEANS = 64  # all of 16 to 196 tokens
_MOST_BARS = 100
_MOST_ROWS = 2**14


def build_page(
    dataset: Dataset,
    split: str,
    exhibits: Sequence[Exhibit],
    limits: CountLimits,
    *,
    tokens: int | None = None,
    mean: int | None = None,
) -> str:
    """An HTML document about a dataset with these samples of a split; the same text every time.

    limits: of the numbers of tokens when images have their own. tokens, mean: where the slider
    starts, by default at the stored budget; a mean is moved to the nearest legal budget. Raises
    ConfigError when a budget is not legal, and without exhibits; ShardError when the dataset is
    damaged.
    """
    if not exhibits:
        raise ConfigError("no samples to draw")
    stored = dataset.manifest.tokenizer.tokens
    if mean is not None:
        limits.check_mean(mean)
        start = {"mode": "mean", "value": mean}
    else:
        start = {"mode": "tokens", "value": len(exhibits[0].mosaic.leaves(tokens))}
    found = statistics(dataset)
    document = _drawn(dataset, exhibits) | {
        "start": start,
        "group": _group(dataset),
        "means": _means(dataset, split, exhibits, limits, mean),
    }
    style, script = (_part(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        f"base-uri 'none'; form-action 'none'"
    )
    return Template(_part("template.html")).substitute(
        policy=policy,
        title=escape(dataset.manifest.name or "Mixed-resolution tokens"),
        style=style,
        script=script,
        summary=headline(dataset),
        shown=escape(f"{len(exhibits):,} of the {dataset.split(split).samples:,} of {split}"),
        least=dataset.manifest.geometry.roots,
        most=stored,
        gallery="\n".join(_figure(exhibit) for exhibit in exhibits),
        facts=facts(dataset, split, found),
        data=_json(document),
    )


def _part(name: str) -> str:
    return files("quadpipe.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source of a content security policy: only a text with this hash is run."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(document: Any) -> str:
    """JSON that cannot end the element it is in."""
    text = json.dumps(document, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _figure(exhibit: Exhibit) -> str:
    path = escape(exhibit.title)
    named = f'<bdi class="class">{escape(exhibit.label)}</bdi>' if exhibit.label else ""
    return (
        f'<figure><div class="panels">'
        f'<canvas role="img" aria-label="Quadtree of {path}"></canvas>'
        f'<canvas role="img" aria-label="Mosaic of {path}"></canvas></div>'
        f'<figcaption><span>{named}<bdi class="path">{path}</bdi></span>'
        f'<span class="count"></span></figcaption></figure>'
    )


def _drawn(dataset: Dataset, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    geometry = dataset.manifest.geometry
    pixels = _pixels(exhibits, geometry.patch_size)
    return {
        "width": geometry.width,
        "height": geometry.height,
        "patch": geometry.patch_size,
        "scale": geometry.max_scale,
        "samples": [
            {"splits": _splits(exhibit.mosaic.nodes), "pixels": tokens, "image": image}
            for exhibit, (tokens, image) in zip(exhibits, pixels, strict=True)
        ],
    }


def _splits(nodes: np.ndarray) -> list[int]:
    """The nodes that are split, in split order: all other nodes follow from them."""
    steps = nodes[:, 3]
    split: list[int] = np.argsort(steps, kind="stable")[np.count_nonzero(steps < 0) :].tolist()
    return split


def _pixels(exhibits: Sequence[Exhibit], side: int) -> list[tuple[str, str | None]]:
    """Data URLs of the tiled tokens of each exhibit, and of its image, in the first quality that
    is small enough. The blocks of a JPEG would mix tokens of other sides, so those are PNG.
    """
    names = [("jpg", quality) for quality in _QUALITIES] if side % 8 == 0 else [("png", 95)]
    for name, quality in names:
        codec = Codec(name=name, quality=quality, patch_size=side)
        found = [
            (
                _url(codec.encode(exhibit.mosaic.tokens), "jpeg" if name == "jpg" else "png"),
                None if exhibit.image is None else _url(_jpeg(exhibit.image, quality), "jpeg"),
            )
            for exhibit in exhibits
        ]
        size = sum(len(tokens) + len(image or "") for tokens, image in found)
        if size <= _CHARACTERS_PER_SAMPLE * len(found):
            break
    return found


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _means(
    dataset: Dataset,
    split: str,
    exhibits: Sequence[Exhibit],
    limits: CountLimits,
    start: int | None,
) -> list[dict[str, Any]]:
    """For each mean of the slider: the tokens of the exhibits, and the distribution in the split.

    start: a mean to have beside those at equal distances.
    shares: of the images, in hundredths of a percent, for each number of tokens from the roots to
    the stored budget, or for each `_group` of these.
    """
    roots = dataset.manifest.geometry.roots
    own = np.stack([exhibit.mosaic.gains for exhibit in exhibits])
    gains = split_gains(dataset, split)
    if gains is None:
        gains = own
    if len(gains) > _MOST_ROWS:
        gains = distribution(gains)
    step = -(-len(limits.counts) // _MOST_MEANS)
    group = _group(dataset)
    bins = dataset.manifest.tokenizer.num_splits // group + 1
    rows = []
    means = {*limits.counts[::step], limits.counts[-1]}
    for mean in sorted(means if start is None else means | {start}):
        threshold = limits.threshold(gains, mean, quiet=True)
        counts = limits.at_threshold(gains, threshold)
        shares = np.bincount(counts // group, minlength=bins) / len(gains)
        rows.append(
            {
                "mean": mean,
                "tokens": (roots + 3 * limits.at_threshold(own, threshold)).tolist(),
                "shares": np.rint(10_000 * shares).astype(int).tolist(),
            }
        )
    return rows


def _group(dataset: Dataset) -> int:
    """How many numbers of tokens share a bar of the distribution."""
    return dataset.manifest.tokenizer.num_splits // _MOST_BARS + 1
