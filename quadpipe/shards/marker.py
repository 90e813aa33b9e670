"""The done-marker of a shard: what its tars hold, and which of its inputs were rejected."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, RejectError, ShardError
from quadpipe.fields import known_fields
from quadpipe.files import ReadableFolder
from quadpipe.shards.format import json_bytes, marker_name
from quadpipe.shards.index import make_rows
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.tar import END

Identity = tuple[str, int | None]
"""Path and row of an input, as `Input.identity`."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A rejected input. row: its row in the list, for a file outside the list's folder."""

    path: str
    reason: str
    message: str
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def identity(self) -> Identity:
        return self.path, self.row

    @classmethod
    def of(cls, identity: Identity, error: RejectError) -> "Reject":
        path, row = identity
        return cls(path=path, reason=error.reason, message=error.message, row=row)

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def parse(cls, document: Any) -> "Reject":
        """KeyError, TypeError or ValueError when a JSON value is not a reject."""
        texts = [document[name] for name in ("path", "reason", "message")]
        row = document.get("row")
        known = all(isinstance(text, str) for text in texts)
        if not known or ("row" in document and type(row) is not int):
            raise ValueError(f"{document!r} is not a reject")
        path, reason, message = texts
        return cls(path=path, reason=reason, message=message, row=row)


@dataclass(frozen=True, kw_only=True)
class FinishedTar:
    """One view of a finished shard: its line of the shard list, and its rows of the index.

    The rows of markers that were written before there was an index have no checksums and labels.
    """

    info: ShardInfo
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Marker:
    """inputs: number of inputs of the shard. tars: one per view, none when all inputs were
    rejected; None while the shard is remade, when only its rejects are valid.
    """

    inputs: int
    rejected: list[Reject]
    tars: list[FinishedTar] | None

    def to_bytes(self, split: str, shard: int) -> bytes:
        document = {
            "split": split,
            "shard": shard,
            "inputs": self.inputs,
            "rejected": [reject.as_json() for reject in self.rejected],
            "views": None if self.tars is None else [_as_json(tar) for tar in self.tars],
        }
        return json_bytes(document)

    @classmethod
    def read(cls, folder: ReadableFolder, split: str, shard: int) -> "Marker | None":
        """The marker of a shard, None when there is none; ShardError when it is damaged."""
        name = marker_name(split, shard)
        data = folder.get(name)
        try:
            return None if data is None else cls.parse(data)
        except ShardError as error:
            raise ShardError(f"{folder.where(name)}: {error}") from error

    @classmethod
    def parse(cls, data: bytes) -> "Marker":
        """ShardError when the bytes are not a marker."""
        try:
            document = json.loads(data)
            views = document.get("views")
            marker = cls(
                inputs=document.get("inputs", 0),
                rejected=[Reject.parse(row) for row in document["rejected"]],
                tars=None if views is None else [_finished_tar(view) for view in views],
            )
            samples = marker.inputs - len(marker.rejected)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
            ConfigError,
        ) as error:
            raise ShardError(f"not a readable marker: {error}") from error
        if any(tar.info.samples != samples for tar in marker.tars or ()):
            raise ShardError(
                "not a readable marker: inputs minus rejects is not its number of samples"
            )
        return marker


def _as_json(tar: FinishedTar) -> dict[str, Any]:
    columns = {name: tar.rows[name].tolist() for name in ("offset", "checksum", "label")}
    return asdict(tar.info) | {
        "offsets": columns["offset"],
        "checksums": columns["checksum"],
        "labels": columns["label"],
    }


def _finished_tar(view: Any) -> FinishedTar:
    info = ShardInfo(**known_fields(ShardInfo, view))
    columns = [view[name] for name in ("offsets", "checksums", "labels") if name in view]
    for column in columns:
        whole = isinstance(column, list) and all(type(number) is int for number in column)
        if not whole or not 0 < len(column) == info.samples:
            raise ValueError(
                f"{info.name} has {info.samples} samples, but lists with another number of entries"
            )
    offsets, checksums, labels = columns if len(columns) == 3 else (view["offsets"], 0, -1)
    rows = make_rows(offsets, info.bytes - len(END), checksums, labels)
    if offsets[0] or (rows["size"] <= 0).any():
        raise ValueError(f"the samples of {info.name} do not follow each other")
    return FinishedTar(info=info, rows=rows)
