"""The log of a run: times, hosts, rates and errors."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from quadpipe import __version__
from quadpipe.errors import OutputError, QuadpipeError
from quadpipe.files import Folder
from quadpipe.job.plan import ShardId
from quadpipe.job.shard import ShardReport
from quadpipe.shards.format import LOGS

# Rows are kept together: on object stores each addition is a file of its own.
_SECONDS_BETWEEN_WRITES = 10.0


class RunLog:
    """A file in `.quadpipe/logs/`, the only folder that may differ between runs."""

    def __init__(self, out: Folder) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._out, self._name = out, f"{LOGS}/{stamp}-{os.getpid()}.jsonl"
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
        # A log that cannot be written must not stop the work, nor hide why it stopped.
        with suppress(OutputError):
            self._out.append(self._name, b"".join(self._rows))
        self._rows.clear()
        self._written = time.monotonic()
