"""Tables and lists about a dataset as HTML. All text of the dataset is escaped here."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from quadpipe.images.library import describe
from quadpipe.shards.reader import Dataset
from quadpipe.text import bytes_text

_CLASSES = 6
_QUANTILES = ("smallest", "10%", "50%", "90%", "largest")

Statistics = Mapping[str, dict[str, Any]]


def headline(dataset: Dataset) -> str:
    """The most important numbers and the fingerprint."""
    manifest = dataset.manifest
    splits = manifest.splits.values()
    stored, roots = manifest.tokenizer.tokens, manifest.geometry.roots
    numbers = {
        "samples": f"{sum(split.samples for split in splits):,}",
        "classes": "no labels" if manifest.classes is None else f"{len(manifest.classes):,}",
        "image": f"{manifest.geometry.width} x {manifest.geometry.height}",
        "tokens per image": f"{roots} to {stored}" if roots < stored else f"{stored}",
        "size": bytes_text(sum(split.bytes for split in splits)),
        "license": manifest.license or "none given",
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd><bdi>{escape(text)}</bdi></dd></div>"
        for name, text in numbers.items()
    )
    warning = (
        '<p class="warning">The scorer looked at the labels: for analysis, not for training.</p>'
        if manifest.scorer["label_aware"]
        else ""
    )
    return (
        f'<dl class="numbers">{items}</dl>\n'
        f'<p class="fingerprint">Fingerprint <span class="mono">{escape(manifest.fingerprint)}'
        f"</span></p>{warning}"
    )


def facts(dataset: Dataset, split: str, statistics: Statistics) -> str:
    """The sections below the samples. split: the one whose classes are listed by name."""
    manifest = dataset.manifest
    sections = {
        "Splits": _splits(dataset),
        "Classes": _classes(statistics, split, manifest.classes),
        "Tokens as needed": _tokens(statistics),
        "Size of the originals": _originals(statistics),
        "Rejected inputs": _rejects(statistics),
        "Scorer": _list(_flat({"name": manifest.scorer["name"]} | manifest.scorer)),
        "Tokenizer": _list(_flat(_tokenizer(dataset))),
        "Origin": _origin(dataset),
        "How to load it": _loading(dataset, split),
    }
    shown = "\n".join(
        f"<section><h2>{title}</h2>{content}</section>"
        for title, content in sections.items()
        if content
    )
    return f'<div class="facts">\n{shown}\n</div>'


def address_of(dataset: Dataset) -> str:
    """The URL of a dataset without credentials, or the name of its folder on this machine."""
    place = str(dataset.folder)
    if "://" not in place:
        return Path(place).resolve().name or "shards"
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _table(name: str, header: Iterable[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table that scrolls on narrow screens. rows: HTML, the first cell names the row."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    scrolled = f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">{table}</div>'
    return scrolled + (f'<p class="note">{escape(note)}</p>' if note else "")


def _splits(dataset: Dataset) -> str:
    header = ("", "inputs", "rejected", "views", "samples", "shards", "size")
    rows = (
        (
            escape(name),
            *(f"{n:,}" for n in (s.inputs, s.rejected, s.views, s.samples, s.shards)),
            bytes_text(s.bytes),
        )
        for name, s in dataset.manifest.splits.items()
    )
    return _table("Splits", header, rows)


def _classes(statistics: Statistics, split: str, names: Sequence[str] | None) -> str:
    known = {name: found["classes"] for name, found in statistics.items() if found["classes"]}
    if not known or not names:
        return ""
    header = ("images per class", "smallest", "median", "largest", "imbalance", "empty")
    rows = (
        (
            escape(name),
            f"{found['smallest']:,}",
            f"{found['median']:,g}",
            f"{found['largest']:,}",
            "-" if found["imbalance"] is None else f"{found['imbalance']:,g}",
            f"{found['empty']:,}",
        )
        for name, found in known.items()
    )
    table = _table("Class balance", header, rows)
    return table + (_named_classes(known[split]["counts"], split, names) if split in known else "")


def _named_classes(counts: Sequence[int], split: str, names: Sequence[str]) -> str:
    """The largest and the smallest classes, with bars."""
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    largest = max(counts[order[0]], 1)
    rows = []
    for place, index in enumerate(order):
        if _CLASSES <= place < len(order) - _CLASSES:
            continue
        share = 100 * counts[index] / largest
        bar = (
            f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{share:.2f}" height="8"/></svg>'
        )
        rows.append((f"<bdi>{escape(names[index])}</bdi>", f"{counts[index]:,}", bar))
    cut = len(order) - len(rows)
    note = f"{cut:,} classes between these are not shown" if cut else ""
    table = _table("Classes", (f"classes of {split}", "images", ""), rows, note)
    return table.replace("<td><svg", '<td class="bar"><svg')


def _tokens(statistics: Statistics) -> str:
    known = {name: found["tokens"] for name, found in statistics.items() if found["tokens"]}
    header = ("split, mean wanted", "mean", *_QUANTILES)
    rows = [
        (
            f"{escape(split)}, {escape(mean)}",
            f"{found['mean']:g}",
            *(f"{found[name]}" for name in _QUANTILES),
        )
        for split, tokens in known.items()
        for mean, found in tokens["means"].items()
    ]
    looked_at = ", ".join(f"{tokens['of']:,} of {split}" for split, tokens in known.items())
    note = f"{looked_at}; all at the gain that gives the first split the mean wanted"
    return _table("Tokens per image", header, rows, note) if rows else ""


def _originals(statistics: Statistics) -> str:
    known = {name: found["originals"] for name, found in statistics.items() if found["originals"]}
    rows = [
        (f"{escape(split)}, {side}", *(f"{found[side][name]:,}" for name in _QUANTILES))
        for split, found in known.items()
        for side in ("width", "height")
    ]
    note = ", ".join(
        f"{found['of']:,} samples of {split}, {found['enlarged']:.1%} were enlarged"
        for split, found in known.items()
    )
    return _table("Size of the originals", ("pixels", *_QUANTILES), rows, note) if rows else ""


def _rejects(statistics: Statistics) -> str:
    if any(found["rejected"] is None for found in statistics.values()):
        return "<p>The reasons are not known: this is a copy without its provenance.</p>"
    rows = [
        (f"<bdi>{escape(reason)}</bdi>", escape(split), f"{count:,}")
        for split, found in statistics.items()
        for reason, count in found["rejected"].items()
    ]
    return _table("Rejects", ("reason", "split", "inputs"), rows) if rows else "<p>None.</p>"


def _tokenizer(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        **manifest.tokenizer.as_json(),
        "codec": manifest.codec,
        "imaging library": describe(manifest.imaging_library),
        "format": manifest.format_version,
        "tokenizer version": manifest.tokenizer_version,
        "quadpipe": manifest.quadpipe,
    }


def _flat(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a JSON object as text, without those that are null."""
    for key, value in document.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            yield name, {True: "yes", False: "no"}[value] if type(value) is bool else str(value)


def _list(items: Iterable[tuple[str, str]]) -> str:
    shown = "\n".join(
        f"<dt><bdi>{escape(name)}</bdi></dt><dd><bdi>{escape(text)}</bdi></dd>"
        for name, text in items
    )
    return f"<dl>{shown}</dl>"


def _origin(dataset: Dataset) -> str:
    manifest = dataset.manifest
    texts = {"license": manifest.license, "source": manifest.source}
    listed = _list((name, text or "none given") for name, text in texts.items())
    return listed + (f"<p>Made from:</p>{_parents(manifest.parents)}" if manifest.parents else "")


def _parents(parents: Iterable[Mapping[str, Any]]) -> str:
    items = []
    for parent in parents:
        texts = (parent.get("name"), f"license: {parent.get('license') or 'none given'}",
                 parent.get("source"))  # fmt: skip
        shown = ", ".join(f"<bdi>{escape(text)}</bdi>" for text in texts if text)
        above = _parents(parent["parents"]) if parent.get("parents") else ""
        print_of = f'<br><span class="mono">{escape(parent["fingerprint"])}</span>'
        items.append(f"<li>{shown}{print_of}{above}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _loading(dataset: Dataset, split: str) -> str:
    manifest, address = dataset.manifest, address_of(dataset)
    budget = manifest.geometry.roots + (manifest.tokenizer.num_splits // 2) * 3
    python = (
        f"import quadpipe\n\n"
        f"dataset = quadpipe.Dataset(\n    {address!r},\n    expect={manifest.fingerprint!r},\n)\n"
        f"for sample in dataset.samples({split!r}):\n"
        f"    leaves = sample.mosaic.leaves({budget})  # tokens, boxes"
    )
    train = (
        f"quadpipe train {shlex.quote(address)} --out run/ --tokens {budget} \\\n"
        f"    --expect {manifest.fingerprint}"
    )
    return "".join(
        f'<pre tabindex="0"><code>{escape(text)}</code></pre>' for text in (python, train)
    )
