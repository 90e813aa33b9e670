"""Paths as bytes and as text in JSON, names of images and of splits."""

import re
from urllib.parse import unquote_to_bytes

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    **dict.fromkeys((b"train", b"training"), "train"),
    **dict.fromkeys((b"val", b"valid", b"validation"), "val"),
    **dict.fromkeys((b"test", b"testing"), "test"),
}

IMAGE_EXTENSIONS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".gif", b".bmp", b".dib"),
    *(b".tif", b".tiff", b".ppm", b".pgm", b".pbm", b".pnm"),
)

_COMPRESSED_TARS = (b".tar.gz", b".tgz", b".tar.bz2", b".tar.xz", b".tar.zst")

# Invalid bytes (surrogates), control characters, line and paragraph separators, and % itself.
_TO_ENCODE = re.compile("[%\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_image_name(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_tar_name(name: bytes) -> bool:
    return name.lower().endswith(b".tar")


def is_compressed_tar_name(name: bytes) -> bool:
    return name.lower().endswith(_COMPRESSED_TARS)


def split_of_word(word: bytes) -> str | None:
    """The split that a folder or a word in a tar's name stands for; capitals do not matter."""
    return _SPLIT_WORDS.get(word.lower())


def path_to_text(path: bytes) -> str:
    """A path as printable text: other bytes percent-encoded, `%` as `%25`."""
    text = path.decode("utf-8", "surrogateescape")
    return _TO_ENCODE.sub(_percent_encode, text)


def text_to_path(text: str) -> bytes:
    """The path that `path_to_text` gave this text for."""
    return unquote_to_bytes(text)


def _percent_encode(match: re.Match[str]) -> str:
    encoded = match.group().encode("utf-8", "surrogateescape")
    return "".join(f"%{byte:02X}" for byte in encoded)
