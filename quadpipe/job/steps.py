"""The steps from an input to its samples: read > decode > score > cut.

Each step is a generator over the items of the one before, in the order of the inputs. An input that
is rejected is a `Reject` in the stream, which the later steps pass through.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quadpipe.errors import RejectError
from quadpipe.images.preview import preview_jpeg
from quadpipe.job.decoding import Decoder, Encoded
from quadpipe.job.plan import Plan, ShardId
from quadpipe.mosaic import Mosaic
from quadpipe.scorers import Scorer
from quadpipe.scorers.maps import read_map
from quadpipe.shards.format import PREVIEW, sample_key
from quadpipe.shards.marker import Identity, Reject
from quadpipe.sources import Input, Source
from quadpipe.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An input. index: its number in the plan of its split. data, members: its bytes and those of
    its kept members by name, once they were read.
    """

    index: int
    entry: Input
    data: bytes = b""
    members: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """One crop of an input. pixels: uint8 `[H, W, 3]`. hint: for the scorer, beside the pixels.
    extra: its kept members, and its preview, by name.
    """

    index: int
    view: int
    pixels: np.ndarray
    info: dict[str, Any]
    label: int | None
    hint: Any
    extra: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return sample_key(self.index, self.view)


Sample = tuple[View, Mosaic]
Batch = tuple[list[list[View] | Reject], np.ndarray, list[np.ndarray]]
"""Consecutive inputs as views or rejects, the pixels of all views uint8 `[B, H, W, 3]`, and their
importance maps by scale."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of one shard.

    maps: folder of importance maps, for scorer precomputed. decided: rejects of an earlier run that
    are not retried.
    """

    plan: Plan
    shard: ShardId
    source: Source
    maps: Path | None
    decoder: Decoder
    tokenizer: Tokenizer
    decided: dict[Identity, Reject]

    def samples(self, inputs: list[Input], start: int = 0) -> Iterator[Sample | Reject]:
        """The views of inputs with their mosaics, and the rejects, in the order of the inputs.

        start: number in the shard of the first input, where a batch of the scorer starts.
        """
        first = self.plan.inputs_of(self.shard).start + start
        items: Iterator[Item | Reject] = (
            self.decided.get(entry.identity) or Item(index, entry)
            for index, entry in enumerate(inputs, start=first)
        )
        encoded = _each(self._read, items)
        views = _each(self._decode, encoded)
        batches = score(self.tokenizer.scorer, views, self.plan.config.dataset.score_batch)
        return cut(self.tokenizer, batches)

    def _read(self, item: Item) -> Item:
        return Item(item.index, item.entry, *self.source.read_all(item.entry))

    def _decode(self, item: Item) -> list[View]:
        """All views of an input; RejectError when its bytes are not a usable image."""
        entry = item.entry
        kinds = self.plan.members
        kept = {name: data for name, data in item.members.items() if kinds[name] == "bytes"}
        annotations = {name: data for name, data in item.members.items() if name not in kept}
        decoded = self.decoder(Encoded(self.shard, item.index, entry.path, item.data, annotations))
        hint = self._hint(entry)
        views = []
        for view, (box, pixels) in enumerate(zip(decoded.boxes, decoded.pixels, strict=True)):
            info = {
                "path": entry.path,
                "width": decoded.width,
                "height": decoded.height,
                "view": view,
                "box": box.rounded(),
            }
            if entry.row is not None:
                info["row"] = entry.row
            if self.plan.classes is not None and entry.label is not None:
                info["class"] = self.plan.classes[entry.label]
            extra = kept | decoded.members[view] | self._preview(pixels)
            views.append(View(item.index, view, pixels, info, entry.label, hint, extra))
        return views

    def _preview(self, pixels: np.ndarray) -> dict[str, bytes]:
        side = self.plan.config.dataset.preview
        return {} if side is None else {PREVIEW: preview_jpeg(pixels, side)}

    def _hint(self, entry: Input) -> Any:
        """The input's map or class name; RejectError when its map is missing."""
        if self.maps is not None and entry.row is not None:
            raise RejectError("no_map", "the image is outside the list's folder")
        if self.maps is not None:
            return read_map(self.maps, entry.path, self.plan.config.tokenizer.geometry)
        if self.plan.classes is not None and entry.label is not None:
            return self.plan.classes[entry.label]
        return None


def _each(step: Callable[[Item], T], items: Iterable[Item | Reject]) -> Iterator[T | Reject]:
    """The result of a step for each item, or a Reject when it raises RejectError."""
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        try:
            result = step(item)
        except RejectError as error:
            yield Reject.of(item.entry.identity, error)
        else:
            yield result


def score(scorer: Scorer, items: Iterable[list[View] | Reject], size: int) -> Iterator[Batch]:
    """Score `size` consecutive inputs at a time, rejects included.

    At most `batches_out` batches are with a scorer in another process before this waits for the
    first of them.
    """
    remaining = iter(items)
    pending: deque[Callable[[], Batch]] = deque()
    while batch := list(islice(remaining, size)):
        pending.append(_submit(scorer, batch))
        if len(pending) == scorer.batches_out:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _submit(scorer: Scorer, batch: list[list[View] | Reject]) -> Callable[[], Batch]:
    """Send the views of a batch to the scorer; the result waits for their maps."""
    views = [view for item in batch if not isinstance(item, Reject) for view in item]
    if not views:
        return lambda: (batch, np.empty(0, np.uint8), [])
    images = np.stack([view.pixels for view in views])
    maps = scorer.submit(images, [view.hint for view in views])
    return lambda: (batch, images, maps())


def cut(tokenizer: Tokenizer, batches: Iterable[Batch]) -> Iterator[Sample | Reject]:
    """Cut the views of scored batches into mosaics."""
    for items, images, maps in batches:
        mosaics = iter(tokenizer.cut(images, maps) if len(images) else [])
        for item in items:
            if isinstance(item, Reject):
                yield item
            else:
                yield from ((view, next(mosaics)) for view in item)
