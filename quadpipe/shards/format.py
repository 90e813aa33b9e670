"""The format, version 1, on one page: names of files and members, and arrays as bytes.

    dataset.json               the manifest, written last
    README.md                  the card
    croissant.json             the same for machines
    train.shards.jsonl         one line per shard
    train.index.npy            one row per sample: offset, size, checksum, label
    train.gains.npy            one row per sample: its gains
    train-000000.tar           WebDataset shards, view 0
    train-v01-000000.tar       view 1 of the same inputs
    .quadpipe/                 how it was made; a dataset without it still loads

A sample is consecutive tar members with one key: KEY.tokens.npy (or .jpg, .png), KEY.nodes.npy,
KEY.importance.npy, KEY.cls (in datasets with labels), KEY.json and KEY.preview.jpg (in datasets
with previews). All numbers little-endian.
"""

import io
import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from quadpipe.errors import ConfigError, ShardError
from quadpipe.fields import check_fields

FORMAT_VERSION = "1.0"

MANIFEST = "dataset.json"
CARD = "README.md"
PLAN = ".quadpipe/plan.json"
LISTING = ".quadpipe/listing"
MARKERS = ".quadpipe/markers"
REJECTED = ".quadpipe/rejected.jsonl"
WITHDRAWN = ".quadpipe/withdrawn.json"
COPY = ".quadpipe/copy.json"
LOGS = ".quadpipe/logs"
CROISSANT = "croissant.json"

PREVIEW = "preview.jpg"
"""The optional member that viewers show."""

CODECS = ("raw", "jpg", "png")
DEFAULT_QUALITY = 95
MAX_SAMPLES_PER_SHARD = 100_000
MAX_VIEWS = 100

# As NumPy writes it; other headers are not parsed, so that no untrusted text is evaluated.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<dtype>[^']{1,16})', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[0-9, ]{0,64})\), *\} *\n",
    re.DOTALL,
)


def sample_key(index: int, view: int) -> str:
    """Key of a sample: the index of its input in the plan of its split, and its view."""
    return f"{index:010d}-v{view:02d}" if view else f"{index:010d}"


def shard_name(split: str, view: int, index: int) -> str:
    return f"{split}-v{view:02d}-{index:06d}.tar" if view else f"{split}-{index:06d}.tar"


def shard_list_name(split: str) -> str:
    return f"{split}.shards.jsonl"


def index_name(split: str) -> str:
    return f"{split}.index.npy"


def gains_name(split: str) -> str:
    return f"{split}.gains.npy"


def marker_name(split: str, index: int) -> str:
    return f"{MARKERS}/{split}/{index // 1000:04d}/{index:06d}.json"


def shard_gains_name(split: str, index: int) -> str:
    """Beside the done-marker: the gains of all views of a shard, for the merge."""
    return marker_name(split, index).removesuffix(".json") + ".gains.npy"


def listing_name(split: str, chunk: int) -> str:
    return f"{LISTING}/{split}/{chunk // 1000:04d}/{chunk:06d}.jsonl"


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """JSON with the same bytes everywhere: sorted keys, UTF-8, one newline at the end."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        value,
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=separators,
    )
    return text.encode() + b"\n"


def npy_bytes(array: np.ndarray) -> bytes:
    """A NumPy file, version 1.0. The header is written here: numpy's own differs by version."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return npy_header(array.dtype.str, array.shape) + array.tobytes()


@lru_cache(maxsize=256)
def npy_header(dtype: str | tuple[tuple[str, str], ...], shape: tuple[int, ...]) -> bytes:
    """The header before an array's bytes; a structured dtype is given as (name, dtype) pairs."""
    descr = repr(dtype if isinstance(dtype, str) else list(dtype))
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(10 + len(text) + 1) % 64
    header = text.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def npy_array(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a NumPy file that must have this dtype and shape, without a copy.

    ShardError when it has another, is cut short, or holds objects; nothing is allocated for what
    a header claims.
    """
    view = memoryview(data)
    header = npy_header(dtype, shape)
    length = len(header)
    if view[:length] != header:
        # Written by another tool: any header with the same meaning is accepted.
        match = _NPY_HEADER.match(view[:1024])
        if not match or int.from_bytes(match["length"], "little") != match.end() - 10:
            raise ShardError("not a NumPy array of version 1.0")
        found, order = match["dtype"].decode("latin-1"), match["fortran"].decode()
        if (found, order, _numbers(match["shape"])) != (dtype, "False", shape):
            raise ShardError(
                f"holds {found} {list(_numbers(match['shape']))}, fortran_order {order}; expected "
                f"{dtype} {list(shape)}"
            )
        length = match.end()
    view = view[length:]
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(view) != expected:
        raise ShardError(f"holds {len(view)} bytes of data, expected {expected}")
    return np.frombuffer(view, dtype).reshape(shape)


def _numbers(text: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(b",") if part.strip().isdigit())


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The encoding of the tokens of a sample: `raw` NumPy, or one `jpg` or `png` image.

    An image holds the M tokens row by row, `ceil(sqrt(M))` wide, free cells repeating the last.
    """

    name: str = "raw"
    quality: int = DEFAULT_QUALITY
    patch_size: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name not in CODECS:
            raise ConfigError(f"codec {self.name!r} is not one of {', '.join(CODECS)}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality {self.quality} is not from 1 to 100")
        if self.name == "jpg" and self.patch_size % 8:
            raise ConfigError(
                f"codec jpg needs a patch_size that is a multiple of 8, not {self.patch_size}, or "
                f"its blocks would mix tokens; use codec raw or png"
            )

    @property
    def member(self) -> str:
        """The part of the tokens' member name after the key."""
        return "tokens.npy" if self.name == "raw" else f"tokens.{self.name}"

    def encode(self, tokens: np.ndarray) -> bytes:
        """uint8 `[M, P, P, 3]` as bytes."""
        if self.name == "raw":
            return npy_bytes(tokens)
        image = Image.fromarray(_tile(tokens))
        file = io.BytesIO()
        if self.name == "jpg":
            image.save(file, "JPEG", quality=self.quality, subsampling="4:4:4")
        else:
            image.save(file, "PNG", compress_level=6)
        return file.getvalue()

    def decode(self, data: bytes | memoryview, count: int) -> np.ndarray:
        """uint8 `[M, P, P, 3]` of M = `count` tokens; ShardError on other contents."""
        side = self.patch_size
        if self.name == "raw":
            return npy_array(data, "|u1", (count, side, side, 3))
        columns, rows = _tiling(count)
        kind = "JPEG" if self.name == "jpg" else "PNG"
        try:
            image = Image.open(io.BytesIO(data), formats=[kind])
            if image.size != (columns * side, rows * side) or image.mode != "RGB":
                raise ShardError(
                    f"is a {image.mode} image of {image.width} x {image.height} pixels, expected "
                    f"RGB, {columns * side} x {rows * side}"
                )
            pixels = np.asarray(image)
        except (ShardError, MemoryError):
            raise
        except Exception as error:  # PIL raises many kinds on damaged bytes, which these are
            raise ShardError(f"not a readable {kind} image: {error}") from error
        tiled = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        return tiled.reshape(rows * columns, side, side, 3)[:count]


def _tiling(count: int) -> tuple[int, int]:
    columns = math.isqrt(count - 1) + 1
    return columns, -(-count // columns)


def _tile(tokens: np.ndarray) -> np.ndarray:
    count, side = tokens.shape[:2]
    columns, rows = _tiling(count)
    filled = np.concatenate([tokens, np.repeat(tokens[-1:], rows * columns - count, axis=0)])
    grid = filled.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * side, columns * side, 3))
