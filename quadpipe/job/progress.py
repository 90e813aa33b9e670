"""What a job is about to do, and how far it is."""

from dataclasses import dataclass

from quadpipe.job.plan import Plan
from quadpipe.job.shard import ShardReport


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a job is about to do.

    done: inputs whose shards are finished already. skipped: files passed over, by cause.
    unused_classes: classes without an input. warnings: lines about what may be wrong with the
    source. write_samples, write_bytes: what is still to be written, if nothing is rejected; the
    bytes are an estimate. free_bytes: what the output has room for, None where nobody knows.
    """

    plan: Plan
    done: int
    skipped: dict[str, int]
    unused_classes: int
    warnings: list[str]
    write_samples: int
    write_bytes: int
    free_bytes: int | None


class Progress:
    """Told how a job goes on; this one says nothing."""

    def planned(self, preview: Preview) -> None:
        """Work is about to begin: an engine is started, the plan stored."""

    def shard_done(self, report: ShardReport) -> None:
        """One more shard is on disk."""

    def close(self) -> None:
        """Work has ended, well or not."""
