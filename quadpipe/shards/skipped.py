"""Skipped samples: damaged ones are counted and logged, never dropped silently."""

import logging
from threading import Lock

from quadpipe.errors import ConfigError, ShardError

ON_ERROR = ("raise", "skip")
"""What readers do with a damaged sample: raise ShardError, or skip and count it."""

_MOST_MESSAGES = 20

_log = logging.getLogger(__name__)


class Skipped:
    """Skipped samples so far. Threads may share it; a copy in another process starts at zero.

    samples: their number. messages: the first error of each of the first 20 shards.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.messages: list[str] = []
        self._shards: set[str] = set()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Skipped, ()

    def add(self, shard: str, error: ShardError, samples: int) -> None:
        """Count samples of a shard; the first error of each shard is logged."""
        with self._lock:
            self.samples += samples
            if shard in self._shards:
                return
            self._shards.add(shard)
            if len(self.messages) < _MOST_MESSAGES:
                self.messages.append(str(error))
        _log.warning("%s; skipped, as are other damaged samples of this shard", error)


def check_on_error(on_error: str) -> None:
    """Raise ConfigError unless it is one of `ON_ERROR`."""
    if on_error not in ON_ERROR:
        raise ConfigError(f"on_error {on_error!r} is not one of {', '.join(ON_ERROR)}")
