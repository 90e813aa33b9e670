"""Plain USTAR archives: the same members give the same bytes, and no claimed size is trusted."""

from collections.abc import Generator, Iterator
from functools import lru_cache

from quadpipe.errors import ShardError
from quadpipe.files import Contents

BLOCK = 512
END = bytes(2 * BLOCK)

_NAME = slice(0, 100)
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_TYPE = 156
_MAGIC = slice(257, 265)
_PREFIX = slice(345, 500)


@lru_cache(maxsize=1)
def _template() -> tuple[bytes, int]:
    """A header without name, size and checksum, and the sum of its bytes."""
    header = bytearray(BLOCK)
    header[100:108] = b"0000444\0"  # mode
    header[108:116] = header[116:124] = b"0000000\0"  # owner and group
    header[136:148] = b"00000000000\0"  # time
    header[_CHECKSUM] = b" " * 8
    header[_TYPE] = ord("0")
    header[_MAGIC] = b"ustar\x0000"
    header[265:269] = header[297:301] = b"root"
    header[329:337] = header[337:345] = b"0000000\0"  # device
    return bytes(header), sum(header)


def member_bytes(name: str, data: bytes) -> bytes:
    """One archive member: header, data, padding. The name has at most 100 ASCII characters."""
    template, checksum = _template()
    encoded = name.encode("ascii")
    size = b"%011o\0" % len(data)
    assert len(encoded) <= 100, name
    assert len(size) == 12, name
    header = bytearray(template)
    header[: len(encoded)] = encoded
    header[_SIZE] = size
    header[_CHECKSUM] = b"%06o\0 " % (checksum + sum(encoded) + sum(size))
    return b"".join((header, data, bytes(-len(data) % BLOCK)))


def read_members(data: Contents) -> Iterator[tuple[str, int, memoryview]]:
    """(name, offset of its header, content) of each member of a whole archive.

    Only plain files are allowed. ShardError when the archive is cut short, a header is damaged
    or a member is not a plain file.
    """
    for name, offset, first, last in read_headers(data):
        yield name, offset, data[first:last]


def read_headers(data: Contents) -> Iterator[tuple[str, int, int, int]]:
    """Like `read_members`, but with the bounds of each content instead of the content."""
    end = yield from _scan(data)
    if data[end : end + len(END)] != END:
        raise ShardError(f"cut short at byte {end}: the end of the archive is missing")


def read_part(data: memoryview) -> Iterator[tuple[str, int, memoryview]]:
    """Like `read_members`, for some members cut out of an archive, without copies."""
    headers = _scan(data)
    end = 0
    for name, offset, first, last in headers:
        yield name, offset, data[first:last]
        end = last + -(last - first) % BLOCK
    if any(data[end:]):
        raise ShardError(f"cut short at byte {end}: the last member is not whole")


def read_checked(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """(name, content) of members whose headers were checked before, many times as fast."""
    offset = 0
    while offset < len(data) and data[offset]:
        header = bytes(data[offset : offset + BLOCK])
        name = header[_NAME].partition(b"\0")[0].decode("ascii")
        first = offset + BLOCK
        last = first + int(header[_SIZE].rstrip(b"\0 "), 8)
        yield name, data[first:last]
        offset = last + (first - last) % BLOCK


def _scan(data: Contents) -> Generator[tuple[str, int, int, int], None, int]:
    """Yields members up to the first empty block; returns where that is."""
    offset = 0
    while (header := bytes(data[offset : offset + BLOCK])) and header != END[:BLOCK]:
        name, size = _read_header(header, offset)
        first, last = offset + BLOCK, offset + BLOCK + size
        if last > len(data):
            raise ShardError(f"cut short: {name!r} ends beyond the {len(data)} available bytes")
        yield name, offset, first, last
        offset = last + -size % BLOCK
    return offset


def _read_header(header: bytes, offset: int) -> tuple[str, int]:
    if len(header) < BLOCK:
        raise ShardError(f"cut short at byte {offset}: the end of the archive is missing")
    unsigned = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    try:
        if int(header[_CHECKSUM].rstrip(b"\0 "), 8) != unsigned:
            raise ValueError
        size = int(header[_SIZE].rstrip(b"\0 "), 8)
        name = header[_NAME].partition(b"\0")[0].decode("ascii")
        if not name.isprintable():
            raise ValueError
    except ValueError as error:
        raise ShardError(f"damaged header at byte {offset}") from error
    if header[_TYPE] not in b"0\0" or any(header[_PREFIX]) or size < 0:
        raise ShardError(f"{name!r} at byte {offset} is not a plain file with a short name")
    return name, size
