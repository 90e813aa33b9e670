"""Mosaics -> one shard. The mirror image of `reader`."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from quadpipe.mosaic import Mosaic
from quadpipe.shards.format import Codec
from quadpipe.shards.index import checksum, make_rows
from quadpipe.shards.members import encode_members
from quadpipe.shards.tar import END, member_bytes


class Writable(Protocol):
    def write(self, data: bytes, /) -> Any: ...


class ShardWriter:
    """Writes samples into an open file; call `close` after the last one.

    bytes and sha256: of the data written so far.
    """

    def __init__(self, file: Writable, codec: Codec) -> None:
        self.bytes = 0
        self._samples: list[tuple[int, int, int]] = []  # offset, checksum, label
        self._gains: list[np.ndarray] = []
        self._file = file
        self._codec = codec
        self._hash = hashlib.sha256()

    @property
    def samples(self) -> int:
        return len(self._samples)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def add(
        self,
        key: str,
        mosaic: Mosaic,
        label: int | None,
        info: dict[str, Any],
        extra: Mapping[str, Any] | None = None,
        *,
        encoded: bytes | None = None,
    ) -> None:
        """Append one sample; label None omits its `cls` member.

        encoded: the tokens as the codec has encoded them before, instead of those of the mosaic.

        extra: as `Sample.extra`: values of other members of `MEMBERS`, and bytes of unknown ones.
        """
        values = {
            **(extra or {}),
            self._codec.member: mosaic.tokens if encoded is None else encoded,
            "nodes.npy": mosaic.nodes,
            "importance.npy": mosaic.importance,
            "json": info,
            **({} if label is None else {"cls": label}),
        }
        members = encode_members(values, self._codec, labels=label is not None)
        sample = b"".join(member_bytes(f"{key}.{name}", data) for name, data in members.items())
        self._samples.append((self.bytes, checksum(sample), -1 if label is None else label))
        self._gains.append(mosaic.gains)
        self._write(sample)

    def rows(self) -> np.ndarray:
        """The rows of the index for the samples of a closed archive."""
        offsets, checksums, labels = zip(*self._samples, strict=True)
        return make_rows(offsets, self.bytes - len(END), checksums, labels)

    def gains(self) -> np.ndarray:
        """float32 `[samples, K]`."""
        return np.stack(self._gains)

    def close(self) -> None:
        """End the archive; the file stays open."""
        self._write(END)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)
