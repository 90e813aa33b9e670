"""Metrics of a training run: `metrics.jsonl`, and TensorBoard events if configured."""

import json
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.files import LocalFolder
from quadpipe.shards.format import json_bytes

METRICS, EVENTS = "metrics.jsonl", "events"


class Metrics:
    """Rows have `event`, `epoch` and `step`. Raises ConfigError if tensorboardX is missing."""

    def __init__(self, folder: LocalFolder, *, tensorboard: bool = False) -> None:
        self._folder = folder
        self._writer_type = _summary_writer_type() if tensorboard else None
        self._writer: Any = None

    def append(self, row: dict[str, Any]) -> None:
        with self._folder.path(METRICS).open("ab") as file:
            file.write(json_bytes(row))
        if self._writer_type is None:
            return
        self._writer = self._writer or self._writer_type(str(self._folder.root / EVENTS))
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{row['event']}/{name}", value, row["step"])
        self._writer.flush()

    def cut(self, step: int, epoch: int) -> None:
        """Remove rows of later steps and epochs than a checkpoint's, and incomplete rows."""
        if not self._folder.exists(METRICS):
            return
        kept = []
        for line in self._folder.read(METRICS).splitlines(keepends=True):
            try:
                row = json.loads(line)
                scored_later = row["event"] == "eval" and row["epoch"] > epoch
                if line.endswith(b"\n") and row["step"] <= step and not scored_later:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        self._folder.write(METRICS, b"".join(kept))


def _summary_writer_type() -> Any:
    """The TensorBoard writer of tensorboardX, which does not install Pillow."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs tensorboardX; pip install 'quadpipe[tensorboard]'"
        ) from error
    return SummaryWriter
