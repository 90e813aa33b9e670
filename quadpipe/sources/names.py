"""File names of images and tars, and the words that stand for splits."""

_SPLIT_WORDS = {
    **dict.fromkeys((b"train", b"training"), "train"),
    **dict.fromkeys((b"val", b"valid", b"validation"), "val"),
    **dict.fromkeys((b"test", b"testing"), "test"),
}

IMAGE_EXTENSIONS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".gif", b".bmp", b".dib"),
    *(b".tif", b".tiff", b".ppm", b".pgm", b".pbm", b".pnm"),
)

_UNREADABLE = (
    *(b".heic", b".heif", b".avif", b".jxl", b".jp2"),
    *(b".dng", b".cr2", b".cr3", b".nef", b".arw", b".raf", b".orf", b".rw2"),
)

_COMPRESSED_TARS = (b".tar.gz", b".tgz", b".tar.bz2", b".tar.xz", b".tar.zst")


def is_image_name(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_tar_name(name: bytes) -> bool:
    return name.lower().endswith(b".tar")


def is_compressed_tar_name(name: bytes) -> bool:
    return name.lower().endswith(_COMPRESSED_TARS)


def unreadable_format(name: bytes) -> str:
    """The extension of a photograph in a format that is not read, such as .heic; else empty."""
    return next((end.decode() for end in _UNREADABLE if name.lower().endswith(end)), "")


def split_of_word(word: bytes) -> str | None:
    """The split that a folder or a word in a tar's name stands for; capitals do not matter."""
    return _SPLIT_WORDS.get(word.lower())
