"""The preview and the progress of a job."""

from dataclasses import dataclass

from quadpipe.job.plan import Plan
from quadpipe.job.shard import ShardReport


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a job is about to do.

    done: inputs whose shards are already finished. skipped: number of skipped files by reason.
    unused_classes: classes without an input. warnings: possible mistakes in the source. notes: what
    is not kept of it, or is missing. write_samples, write_bytes: the remaining output, if nothing
    is rejected; the bytes are an estimate. free_bytes: free space of the output, None when unknown.
    """

    plan: Plan
    done: int
    skipped: dict[str, int]
    unused_classes: int
    warnings: list[str]
    notes: list[str]
    write_samples: int
    write_bytes: int
    free_bytes: int | None


class Progress:
    """Progress callbacks; the base class ignores them."""

    def planned(self, preview: Preview) -> None:
        """The job is about to start the engine and store the plan."""

    def shard_done(self, report: ShardReport) -> None:
        """A shard is finished."""

    def close(self) -> None:
        """The job has ended, with or without an error."""
