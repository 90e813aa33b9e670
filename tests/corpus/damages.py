"""Damages of image files: bytes of a file, chance -> other bytes."""

import random
import struct
import zlib
from collections.abc import Callable

from corpus.encoders import PNG, chunk, claim, put_at
from corpus.files import readable

_EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_SIDES = (0, 1, 7, 8, 65, 255, 9_000, 30_000, 60_000, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def flipped_bits(data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, chance, len(data))


def flipped_header(data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, chance, min(len(data), 64))


def cut_tail(data: bytes, chance: random.Random) -> bytes:
    return data[: _place(data, chance)]


def cut_middle(data: bytes, chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + data[at + chance.randint(1, 64) :]


def repeated_middle(data: bytes, chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + data[at : at + chance.randint(1, 400)] * chance.randint(2, 50) + data[at:]


def inserted_noise(data: bytes, chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    return put_at(data, _place(data, chance), bytes(chance.randint(1, 64)))


def swapped_header(data: bytes, chance: random.Random) -> bytes:
    other, length = _another(chance), chance.choice((2, 4, 8, 12, 16, 32, 64, 128))
    return other[:length] + data[length:]


def spliced(data: bytes, chance: random.Random) -> bytes:
    other = _another(chance)
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def extreme_number(data: bytes, chance: random.Random) -> bytes:
    """An integer of two or four bytes, more often near the start, is made very large or small."""
    at = chance.randrange(min(len(data), 80) or 1) if chance.random() < 0.6 else None
    kind = chance.choice(("<I", ">I", "<H", ">H"))
    value = chance.choice(_EXTREMES) & (2**32 - 1 if "I" in kind else 2**16 - 1)
    return put_at(data, _place(data, chance) if at is None else at, struct.pack(kind, value))


def lying_dimensions(data: bytes, chance: random.Random) -> bytes:
    return claim(data, chance.choice((64, *_SIDES)), chance.choice((48, *_SIDES)))


def damaged_chunk(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped in one chunk of a PNG whose checksum fits; in other formats, anywhere."""
    starts, at = [], 8
    while data.startswith(PNG) and at + 12 <= len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    if not starts:
        return flipped_bits(data, chance)
    at = chance.choice(starts)
    end = min(len(data), at + 8 + int.from_bytes(data[at : at + 4], "big"))
    kind, inside = data[at + 4 : at + 8], data[at + 8 : end]
    if kind == b"IDAT" and chance.random() < 0.7:  # past zlib's own checksum
        try:
            inside = zlib.compress(flipped_bits(zlib.decompress(inside), chance))
        except zlib.error:
            inside = flipped_bits(inside, chance)
    else:
        inside = flipped_bits(inside, chance)
    return data[:at] + chunk(kind, inside) + data[end + 4 :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped_bits,
    flipped_header,
    cut_tail,
    cut_middle,
    repeated_middle,
    inserted_noise,
    zeroed,
    swapped_header,
    spliced,
    extreme_number,
    lying_dimensions,
    damaged_chunk,
)


def _another(chance: random.Random) -> bytes:
    return readable()[chance.choice(sorted(readable()))]


def _flipped(data: bytes, chance: random.Random, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16)) if within else 0):
        changed[chance.randrange(within)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _place(data: bytes, chance: random.Random) -> int:
    return chance.randrange(len(data) + 1)
