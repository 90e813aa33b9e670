"""User-facing exceptions and exit codes.

A message states what was given, where, and the next step. `exit_code` is that of the command line.
"""


class QuadpipeError(Exception):
    """Base class of all exceptions for users."""

    exit_code = 1


class ConfigError(QuadpipeError):
    """An invalid option or combination of options."""

    exit_code = 2


class SourceError(QuadpipeError):
    """The input cannot be listed or read."""


class OutputError(QuadpipeError):
    """The output cannot be written: full, read-only or locked."""


class ShardError(QuadpipeError):
    """A dataset, manifest or shard that is damaged or inconsistent."""


class MissingError(ShardError):
    """A missing file of a dataset."""


class UnreadableError(ShardError):
    """A dataset that cannot be reached; it may be intact."""


class JobError(QuadpipeError):
    """Some shards failed; the finished ones are kept."""


class TooManyRejectsError(JobError):
    """Every shard is done, but more inputs were rejected than allowed."""

    exit_code = 3


class RejectError(QuadpipeError):
    """One input that cannot become a sample, for a cause in its own bytes.

    `reason` is a code that stays the same between versions, the message is for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
