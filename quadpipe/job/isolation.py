"""Decoders for inputs that may crash or hang the process that decodes them.

A shard whose worker was lost is retried with its inputs
decoded in a child process. An input that kills the child is retried once, alone in a child of its
own; then it is rejected, as `crashed_decoder` or `timeout`.
"""

import base64
import faulthandler
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import JobError, RejectError
from quadpipe.images.crop import Box
from quadpipe.images.decode import MAX_PIXELS
from quadpipe.job.decoding import Decoder, Encoded, Views, decode_views
from quadpipe.job.plan import Plan

CRASHED, TIMED_OUT = "crashed_decoder", "timeout"

DECODE_SECONDS = 60
"""More than an image of MAX_PIXELS takes on any machine. An input that is retried alone may take
this much CPU time, which does not depend on the load of the machine, and _CLOCK_FACTOR times as
much wall-clock time."""
_CLOCK_FACTOR = 5


def decode_seconds(plan: Plan) -> int:
    """Time limit per input, in seconds; longer if larger images are allowed."""
    return DECODE_SECONDS * max(1, -(-plan.config.tokenizer.max_pixels // MAX_PIXELS))


class WatchedDecoder(Decoder):
    """Kills its process when decoding hangs; for workers that are replaced when they die."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._seconds = decode_seconds(plan)
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115  closed with the shard

    def __call__(self, encoded: Encoded) -> Views:
        # A thread in C, which does not need the GIL that a hanging decoder may hold.
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._nowhere)
        try:
            return super().__call__(encoded)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        self._nowhere.close()


class IsolatedDecoder(Decoder):
    """Decodes in a child process, which is replaced when it dies."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._child: _Child | None = None

    def __call__(self, encoded: Encoded) -> Views:
        self._child = self._child or _Child(self.plan)
        limit = decode_seconds(self.plan)
        answer = self._child.decode(encoded, seconds=limit)
        if isinstance(answer, _Death):
            self.close()
            alone = _Child(self.plan, cpu_seconds=limit)
            try:
                seconds = limit * _CLOCK_FACTOR
                answer = alone.decode(encoded, seconds=seconds)
            finally:
                alone.end()
        if isinstance(answer, _Death):
            raise answer.as_error(encoded.path, limit)
        return answer

    def close(self) -> None:
        if self._child:
            self._child.end()
            self._child = None


@dataclass(frozen=True)
class _Death:
    """How a child ended while decoding. status: negative for a signal, 0 for a child that was
    stopped."""

    status: int
    timed_out: bool

    def as_error(self, path: str, limit: int) -> Exception:
        if self.timed_out or self.status == -signal.SIGXCPU:
            return RejectError(TIMED_OUT, f"decoding takes more than {limit} seconds")
        if self.status in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return JobError(
                f"while {path} was decoded alone, its process was stopped from outside, perhaps "
                f"for lack of memory; rerun the same command, or put an empty file in its "
                f"place, which is rejected"
            )
        return RejectError(CRASHED, "the decoder crashes on it")


class _Child:
    """A decoding process. Requests are pickles; replies are not: the child reads hostile bytes."""

    def __init__(self, plan: Plan, cpu_seconds: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        # It imports what this process imports, and nothing from the working folder, which may be
        # an untrusted dataset.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from quadpipe.job.isolation import serve; serve({theirs.fileno()})"
        )
        with ours, theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603  a program of ours
                    [sys.executable, "-P", "-c", program],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                raise _cannot_start(error.strerror) from error
            self._connection = Connection(ours.detach())
        self._shape = (*plan.config.tokenizer.image_size, 3)
        if isinstance(self._ask((plan, cpu_seconds), None), _Death):
            self.end()
            raise _cannot_start("it has ended")

    def decode(self, encoded: Encoded, *, seconds: float) -> "Views | _Death":
        """The views of an input, or how the child died; raises what decoding raises."""
        answer = self._ask(encoded, seconds)
        if isinstance(answer, _Death):
            return answer
        match answer:
            case {"reject": [str(reason), str(message)]}:
                raise RejectError(reason, message)
            case {"memory": _}:
                raise MemoryError
            case {"error": text}:
                raise JobError(f"decoding {encoded.path} failed: {text}")
        try:
            pixels = np.frombuffer(self._connection.recv_bytes(), np.uint8)
        except (EOFError, OSError):
            return _Death(self._process.wait(), timed_out=False)
        boxes = [Box(*box) for box in answer["boxes"]]
        members = [
            {name: base64.b64decode(text) for name, text in view.items()}
            for view in answer["members"]
        ]
        pixels = pixels.reshape(-1, *self._shape)
        return Views(answer["width"], answer["height"], boxes, pixels, members)

    def _ask(self, question: Any, seconds: float | None) -> Any:
        try:
            self._connection.send(question)
            if not self._connection.poll(seconds):
                frozen = _is_frozen(self._process.pid)
                self.end()
                return _Death(0, timed_out=not frozen)
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return _Death(self._process.wait(), timed_out=False)

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _cannot_start(reason: str | None) -> JobError:
    return JobError(
        f"{socket.gethostname()} cannot start a process to decode in ({reason}); check that "
        f"memory is free, then rerun the same command"
    )


def _is_frozen(process: int) -> bool:
    """Whether a process is stopped or waits for a disk, so that its time does not count."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in "TtD"


def serve(descriptor: int) -> None:
    """The loop of a child: reply until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    plan, cpu_seconds = connection.recv()
    if cpu_seconds is not None:
        used, hard = int(time.process_time()) + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_seconds, hard))
    connection.send_bytes(b"{}")
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        # Kills this process if the parent has died and the decoder hangs.
        signal.alarm(2 * _CLOCK_FACTOR * decode_seconds(plan))
        views, answer = _answer(plan, question)
        signal.alarm(0)
        connection.send_bytes(json.dumps(answer).encode())
        if views is not None:
            connection.send_bytes(views.pixels.reshape(-1).data)


def _answer(plan: Plan, encoded: Encoded) -> tuple[Views | None, dict[str, Any]]:
    try:
        views = decode_views(plan, encoded)
    except RejectError as error:
        return None, {"reject": [error.reason, error.message]}
    except MemoryError:
        return None, {"memory": True}
    except Exception:  # a bug, for the log of the run
        return None, {"error": traceback.format_exc()}
    boxes = [astuple(box) for box in views.boxes]
    members = [
        {name: base64.b64encode(data).decode() for name, data in view.items()}
        for view in views.members
    ]
    answer = {"width": views.width, "height": views.height, "boxes": boxes, "members": members}
    return views, answer
