"""Which imaging library decodes: Pillow or Pillow-SIMD, which own the same `PIL` folder."""

import base64
import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

import PIL
from PIL import features

from quadpipe.errors import ConfigError

_DISTRIBUTIONS = ("Pillow-SIMD", "Pillow")
_REINSTALL = (
    "pip uninstall -y pillow pillow-simd && pip install --no-cache-dir --force-reinstall "
    "pillow-simd"
)


@cache
def imaging_library() -> dict[str, str | None]:
    """Name and version of the active library and of the decoders it was built with.

    Bytes are reproducible only if all of these are the same. Raises ConfigError when
    files of Pillow and Pillow-SIMD are mixed in one folder.
    """
    return {
        "name": _active_distribution(),
        "version": PIL.__version__,
        "jpeg": _decoder("libjpeg_turbo", "libjpeg-turbo") or _decoder("jpg", "libjpeg"),
        "zlib": _decoder("zlib", "zlib"),
        "webp": _decoder("webp", "libwebp"),
        "tiff": _decoder("libtiff", "libtiff"),
    }


def describe(library: dict[str, str | None]) -> str:
    """One line for people."""
    parts = [part for key, part in library.items() if key not in ("name", "version") and part]
    return f"{library['name']} {library['version']} ({', '.join(parts)})"


def _decoder(feature: str, name: str) -> str | None:
    return f"{name} {features.version(feature)}" if features.check(feature) else None


def _active_distribution() -> str:
    """The installed distribution whose record agrees with the files on disk."""
    installed = {}
    for name in _DISTRIBUTIONS:
        try:
            installed[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    if len(installed) < 2:
        # Without metadata (a system package, a bundle) the version's suffix tells the two apart.
        return next(iter(installed), "Pillow-SIMD" if ".post" in PIL.__version__ else "Pillow")
    for name, distribution in installed.items():
        if _matches_record(distribution):
            return name
    raise ConfigError(
        f"files of Pillow and Pillow-SIMD are mixed in {Path(PIL.__file__).parent}: both are "
        f"installed and neither is complete; fix it with `{_REINSTALL}`"
    )


def _matches_record(distribution: metadata.Distribution) -> bool:
    """Whether each file of the distribution in the active PIL folder has its recorded hash."""
    folder = Path(PIL.__file__).resolve().parent
    for file in distribution.files or []:
        path = Path(str(file.locate())).resolve()
        if file.hash is None or path.parent != folder or path.suffix == ".pyc":
            continue
        if not path.is_file():
            return False
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            return False
    return True
