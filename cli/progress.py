"""Progress of a running job: a bar on a terminal, plain lines elsewhere."""

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from quadpipe.cli.text import bytes_text, counted, say
from quadpipe.job.progress import Preview, Progress
from quadpipe.job.shard import ShardReport
from quadpipe.sharing.progress import CopyPreview, CopyProgress

_SECONDS_BETWEEN_LINES = 5.0


def print_preview(preview: Preview, out: str) -> None:
    """Print what will be read and written, on standard error."""
    plan = preview.plan
    per_split = ", ".join(f"{name} {split.inputs:,}" for name, split in plan.splits.items())
    classes = "no labels" if plan.classes is None else counted(len(plan.classes), "class")
    if preview.unused_classes:
        classes += f" ({preview.unused_classes:,} without images)"
    say(f"inputs   {counted(plan.inputs, 'image')}, {classes}: {per_split}")
    if preview.skipped:
        skipped = ", ".join(f"{n:,} {cause}" for cause, n in sorted(preview.skipped.items()))
        say(f"skipped  {skipped}")
    for warning in preview.warnings:
        say(f"warning  {warning}")
    for note in preview.notes:
        say(f"note     {note}")
    shards = sum(split.shards * split.views for split in plan.splits.values())
    say(
        f"output   {counted(preview.write_samples, 'sample')} of about "
        f"{bytes_text(plan.bytes_per_sample)}, "
        f"{bytes_text(preview.write_bytes)} in all, to {out}"
        + ("" if preview.free_bytes is None else f"; {bytes_text(preview.free_bytes)} free"),
    )
    say(f"shards   {shards:,}, of up to {counted(plan.config.dataset.samples_per_shard, 'input')}")
    if preview.done:
        say(f"done     {counted(preview.done, 'input')}; continuing from there")


class TerminalProgress(Progress):
    """Images per second, time left and rejects, on standard error."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._bar: tqdm | None = None
        self._rejected = 0

    def planned(self, preview: Preview) -> None:
        print_preview(preview, self._out)
        if preview.done == preview.plan.inputs:
            return
        self._bar = _bar(
            "{n_fmt} of {total_fmt} images, {rate_fmt}, {remaining} left{postfix}",
            total=preview.plan.inputs,
            initial=preview.done,
            unit="img",
        )

    def shard_done(self, report: ShardReport) -> None:
        self._rejected += report.rejected
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rejected:,} rejected", refresh=False)
            self._bar.update(report.inputs)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TerminalCopyProgress(CopyProgress):
    """Bytes per second and time left, on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def planned(self, preview: CopyPreview) -> None:
        free = "" if preview.free_bytes is None else f"; {bytes_text(preview.free_bytes)} free"
        say(
            f"copy     {counted(preview.samples, 'sample')} in {counted(preview.shards, 'shard')}, "
            f"{bytes_text(preview.bytes)}{free}"
        )
        for note in preview.notes:
            say(f"note     {note}")
        self._bar = byte_bar(preview.bytes)

    def advanced(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def byte_bar(total: int) -> tqdm:
    """Bytes per second and time left, on standard error."""
    return _bar(
        "{n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left",
        total=total,
        unit="B",
        unit_scale=True,
    )


def _bar(text: str, **options: Any) -> tqdm:
    """A bar on a terminal, lines elsewhere."""
    terminal = sys.stderr.isatty()
    return tqdm(
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else _SECONDS_BETWEEN_LINES,
        file=sys.stderr if terminal else _PlainLines(),
        bar_format="{percentage:3.0f}% " + ("{bar} " if terminal else "") + text,
        **options,
    )


class _PlainLines:
    """A file for tqdm that prints each state of the bar as a line."""

    def write(self, text: str) -> None:
        if text.strip():
            say(text.strip())

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
