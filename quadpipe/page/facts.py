"""Tables and lists about a dataset as HTML. All text of the dataset is escaped here."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from quadpipe.images.library import describe
from quadpipe.shards.card import kept_members
from quadpipe.shards.reader import Dataset
from quadpipe.shards.tables import (
    Statistics,
    Table,
    balance_table,
    classes_table,
    originals_table,
    rejects_table,
    tokens_table,
)
from quadpipe.text import bytes_text

_DEPTH = 4


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
        "Tokens as needed": _table("Tokens as needed", tokens_table(statistics)),
        "Originals": _table("Originals", originals_table(statistics)),
        "Rejected inputs": _table("Rejected inputs", rejects_table(statistics)) or "<p>None.</p>",
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
    scheme, is_url, path = place.rpartition("::")[2].partition("://")
    if not is_url or scheme in ("file", "local"):
        return Path(path if is_url else place).resolve().name or "shards"
    # Of a chain such as simplecache::https://.., each URL may have them.
    return re.sub("[?#].*", "", re.sub("://[^/?#]*@", "://", place), flags=re.DOTALL)


def _table(name: str, table: Table, bars: Sequence[str] = ()) -> str:
    """A table that scrolls on narrow screens. bars: HTML in place of the last column."""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    if not table.rows:
        return note
    columns = table.header[:-1] if bars else table.header
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in columns)
    body = []
    for number, row in enumerate(table.rows):
        first, *rest = (f"<bdi>{escape(cell)}</bdi>" for cell in row[: len(columns)])
        bar = f'<td class="bar">{bars[number]}</td>' if bars else ""
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{first}</th>{cells}{bar}</tr>')
    head += "<td></td>" if bars else ""
    rows = "\n".join(body)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>{note}"
    )


def _splits(dataset: Dataset) -> str:
    header = ("split", "inputs", "rejected", "views", "samples", "shards", "size")
    rows = [
        (
            name,
            *(f"{n:,}" for n in (s.inputs, s.rejected, s.views, s.samples, s.shards)),
            bytes_text(s.bytes),
        )
        for name, s in dataset.manifest.splits.items()
    ]
    return _table("Splits", Table(header=header, rows=rows))


def _classes(statistics: Statistics, split: str, names: Sequence[str] | None) -> str:
    """Class balance, and the largest and the smallest classes with bars."""
    named = classes_table(statistics, split, names)
    bars = [
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{share.rstrip("%")}" height="8"/></svg>'
        for *_, share in named.rows
    ]
    return _table("Class balance", balance_table(statistics)) + _table("Classes", named, bars)


def _tokenizer(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        **manifest.tokenizer.as_json(),
        "codec": manifest.codec,
        "kept members": kept_members(manifest) or None,
        "preview": manifest.preview and f"{manifest.preview} pixels",
        "imaging library": describe(manifest.imaging_library),
        "format": manifest.format_version,
        "tokenizer version": manifest.tokenizer_version,
        "quadpipe": manifest.quadpipe,
    }


def _flat(
    document: Mapping[str, Any], above: str = "", depth: int = 0
) -> Iterator[tuple[str, str]]:
    """Names and values of a JSON object as text, without those that are null."""
    for key, value in document.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, Mapping) and depth < _DEPTH:
            yield from _flat(value, f"{name} ", depth + 1)
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
