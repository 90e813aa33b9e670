"""How a job runs."""

from dataclasses import dataclass
from math import inf

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, option

# The smallest share of a resource in Ray, and the resources that have their own options there.
_SMALLEST_SHARE = 1e-4
_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
_SCORER_WAIT = 300


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a job runs; nothing here changes a byte of its output."""

    workers: int | None = option(
        None, "Shards to make in parallel; by default one per CPU that may be used.", low=1
    )
    address: str | None = option(
        None, "Ray cluster to join, `auto` or HOST:PORT; by default a private Ray is started."
    )
    in_process: bool = option(False, "Make the shards one by one in this process, without Ray.")
    scorers: int | None = option(
        None,
        "Run the scorer's network in this many Ray actors instead of in the workers; by default as "
        "many as the GPUs hold.",
        low=1,
    )
    gpus_per_scorer: float = option(
        0.0, "GPUs per scorer actor; fractions share a GPU, 0 runs on the CPU."
    )
    scorer_resource: str | None = option(
        None,
        "Ray resource that each scorer actor takes, NAME or NAME=AMOUNT, to place them.",
    )
    scorer_wait: int | None = option(
        None, "Seconds to wait for scorer actors to start or answer, by default 300.", low=1
    )
    retry_rejected: bool = option(False, "Retry rejected inputs and rewrite their shards.")
    max_rejected: str = option(
        "1%", "Fail when more inputs than this are rejected: a share or a count."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.in_process and (self.address or (self.workers or 1) > 1):
            raise ConfigError("in_process makes one shard at a time, without workers or address")
        gpus = self.gpus_per_scorer
        fits = gpus == 0 or _SMALLEST_SHARE <= gpus <= 1 or (gpus < inf and gpus % 1 == 0)
        if gpus < 0 or not fits:  # as Ray requires
            raise ConfigError(
                f"gpus_per_scorer {gpus:g} is neither a share of a GPU nor a whole number of them"
            )
        if self.scorer_wait is not None and not self.pooled:
            raise ConfigError("scorer_wait is for scorers in Ray actors; omit it")
        self.scorer_resources()
        if self.in_process and self.pooled:
            raise ConfigError(
                "in_process scores here, without scorers, gpus_per_scorer or scorer_resource"
            )
        self.allowed_rejects(0)

    @property
    def pooled(self) -> bool:
        """Whether the scorer runs in its own actors."""
        return bool(self.scorers or self.gpus_per_scorer or self.scorer_resource)

    @property
    def scorer_timeout(self) -> int:
        """Seconds to wait for scorers."""
        return _SCORER_WAIT if self.scorer_wait is None else self.scorer_wait

    @property
    def scorer_device(self) -> str:
        """The kind of torch device that a network scorer runs on."""
        return "cuda" if self.gpus_per_scorer else "cpu"

    def scorer_resources(self) -> dict[str, float]:
        """What `scorer_resource` asks Ray for."""
        if self.scorer_resource is None:
            return {}
        name, _, amount = self.scorer_resource.partition("=")
        try:
            count = float(amount or 1)
        except ValueError:
            count = 0
        if not name or not _SMALLEST_SHARE <= count < inf or name in _OWN_RESOURCES:
            raise ConfigError(
                f"scorer_resource {self.scorer_resource!r} is not NAME or NAME=AMOUNT; GPUs are "
                f"asked for with gpus_per_scorer"
            )
        return {name: count}

    def allowed_rejects(self, inputs: int) -> int:
        """The largest number of rejects for a number of inputs."""
        text = self.max_rejected.strip()
        try:
            if text.endswith("%"):
                share = float(text[:-1])
                if 0 <= share <= 100:
                    return int(inputs * share / 100)
            elif int(text) >= 0:
                return int(text)
        except ValueError:
            pass
        raise ConfigError(f"max_rejected {text!r} is neither a share like 1% nor a count like 20")
