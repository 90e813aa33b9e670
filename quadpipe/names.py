"""Names that sources and shards share: the splits, and paths as text in JSON."""

import re
from urllib.parse import unquote_to_bytes

SPLITS = ("train", "val", "test")

# Invalid bytes (surrogates), control characters, line and paragraph separators.
_UNPRINTABLE_RANGES = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_UNPRINTABLE = re.compile(f"[{_UNPRINTABLE_RANGES}]")
_TO_ENCODE = re.compile(f"[%{_UNPRINTABLE_RANGES}]")


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
