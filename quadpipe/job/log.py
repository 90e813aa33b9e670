"""The log of a run: times, hosts, rates and errors."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quadpipe import __version__
from quadpipe.errors import QuadpipeError
from quadpipe.files import Folder, LocalFolder
from quadpipe.job.plan import ShardId
from quadpipe.job.shard import ShardReport
from quadpipe.shards.format import LOGS

_SECONDS_BETWEEN_WRITES = 10.0


class RunLog:
    """A file in `.quadpipe/logs/`, the only folder that may differ between runs.

    Logs name hosts and paths and are never uploaded: for an output at a URL, and without one, the
    file is in the temporary folder of this machine.
    """

    def __init__(self, out: Folder | None) -> None:
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.jsonl"
        if isinstance(out, LocalFolder):
            self.path = out.path(f"{LOGS}/{name}")
        else:
            self.path = Path(tempfile.gettempdir(), f"quadpipe-{name}")
        self._rows: list[bytes] = []
        self._written = time.monotonic()

    @contextmanager
    def session(self) -> Iterator["RunLog"]:
        self._add(event="start", version=__version__, host=socket.gethostname())
        ended = "failed"
        try:
            yield self
            ended = "done"
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            self._add(event=ended)
            self._write()

    def outcome(self, shard: ShardId, outcome: ShardReport | QuadpipeError) -> None:
        if isinstance(outcome, ShardReport):
            rate = round(outcome.inputs / max(outcome.seconds, 1e-9), 1)
            self._add(
                event="shard",
                shard=str(shard),
                inputs=outcome.inputs,
                rejected=outcome.rejected,
                seconds=round(outcome.seconds, 3),
                inputs_per_second=rate,
                host=outcome.host,
                process=outcome.process,
            )
        else:
            details = getattr(outcome, "__notes__", [])
            self._add(event="shard failed", shard=str(shard), error=str(outcome), details=details)

    def _add(self, **row: Any) -> None:
        row["time"] = round(time.time(), 3)
        self._rows.append(json.dumps(row).encode() + b"\n")
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        # A log that cannot be written must not stop the job or hide why it stopped.
        with suppress(OSError), self.path.open("ab") as file:
            file.write(b"".join(self._rows))
        self._rows.clear()
        self._written = time.monotonic()
