"""Errors that people see: each says what was given, where, and what to do next.

`exit_code` is what the command line exits with.
"""


class QuadpipeError(Exception):
    """Base of every error that quadpipe raises for its users."""

    exit_code = 1


class ConfigError(QuadpipeError):
    """An option, or a combination of options, that cannot work."""

    exit_code = 2


class SourceError(QuadpipeError):
    """The input cannot be listed or read."""


class OutputError(QuadpipeError):
    """The output cannot be written: full, read-only, in use or not ours."""


class ShardError(QuadpipeError):
    """A dataset, manifest or shard that does not hold what it says."""


class MissingError(ShardError):
    """A file of a dataset that is not there."""


class UnreadableError(ShardError):
    """A dataset that cannot be reached now; what it holds may be whole."""


class JobError(QuadpipeError):
    """Some shards could not be made; the others are kept."""


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
