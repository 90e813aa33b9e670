"""Names that sources and shards share: splits, members, and paths as text in JSON."""

import re
from urllib.parse import unquote_to_bytes

SPLITS = ("train", "val", "test")

MEMBER_KINDS = ("bytes", "boxes", "mask")
"""Kinds of kept members: as they are, or boxes or a mask that follow the crop of a view."""
MAX_KEPT_BYTES = 1 << 24
"""Of a kept member."""
MAX_KEPT = 16
"""Kept members of a sample."""

_FORMAT_MEMBERS = ("nodes.npy", "importance.npy", "cls", "json", "preview.jpg")
_MEMBER_NAME = re.compile(r"[a-z0-9_-][a-z0-9_.-]{0,79}")

# Invalid bytes (surrogates), control characters, line and paragraph separators.
_UNPRINTABLE_RANGES = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_UNPRINTABLE = re.compile(f"[{_UNPRINTABLE_RANGES}]")
_TO_ENCODE = re.compile(f"[%{_UNPRINTABLE_RANGES}]")


def is_member_name(name: object) -> bool:
    """Whether a kept member may have this name, after its key and a dot."""
    return isinstance(name, str) and bool(_MEMBER_NAME.fullmatch(name))


def is_format_member(name: str) -> bool:
    """Whether the format itself has a member of this name."""
    return name in _FORMAT_MEMBERS or name.startswith("tokens.")


def path_to_text(path: bytes) -> str:
    """A path as printable text: other bytes percent-encoded, `%` as `%25`."""
    text = path.decode("utf-8", "surrogateescape")
    return _TO_ENCODE.sub(_percent_encode, text)


def text_to_path(text: str) -> bytes:
    """The path for which `path_to_text` gave this text."""
    return unquote_to_bytes(text)


def is_path_text(value: object) -> bool:
    """Whether a value is a path as text, with printable characters only."""
    return isinstance(value, str) and bool(value) and not _UNPRINTABLE.search(value)


def _percent_encode(match: re.Match[str]) -> str:
    encoded = match.group().encode("utf-8", "surrogateescape")
    return "".join(f"%{byte:02X}" for byte in encoded)
