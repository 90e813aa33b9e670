import base64
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from quadpipe.errors import ConfigError
from quadpipe.images import library


@pytest.fixture
def fake_pil(tmp_path, monkeypatch):
    """A PIL folder of one file, and distributions whose records name its hash or another."""
    (tmp_path / "PIL").mkdir()
    module = tmp_path / "PIL" / "Image.py"
    module.write_bytes(b"active")
    monkeypatch.setattr(library.PIL, "__file__", str(tmp_path / "PIL" / "__init__.py"))

    def install(**contents: bytes) -> None:
        for name, content in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            info = tmp_path / f"{name}-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
            (info / "RECORD").write_text(f"PIL/Image.py,sha256={digest.decode()},6\n")
        real = metadata.distribution

        def find(name: str) -> metadata.Distribution:
            key = name.replace("-", "_").lower()
            if key in contents:
                return metadata.PathDistribution(Path(tmp_path / f"{key}-1.dist-info"))
            if name in ("Pillow", "Pillow-SIMD"):
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(library.metadata, "distribution", find)

    library.imaging_library.cache_clear()
    yield install
    library.imaging_library.cache_clear()


def test_the_active_library_and_its_decoders_are_named():
    found: dict[str, Any] = library.imaging_library()
    assert found["name"] in ("Pillow", "Pillow-SIMD")
    assert found["jpeg"]
    assert found["version"] in library.describe(found)


@pytest.mark.parametrize(
    ("active", "other"), [("pillow", "pillow_simd"), ("pillow_simd", "pillow")]
)
def test_of_two_installed_libraries_the_one_whose_files_are_present_is_active(
    active, other, fake_pil
):
    fake_pil(**{active: b"active", other: b"overwritten"})
    assert library.imaging_library()["name"].lower().replace("-", "_") == active


def test_mixed_files_are_refused_with_the_fix(fake_pil):
    fake_pil(pillow=b"older", pillow_simd=b"old")
    with pytest.raises(ConfigError, match="are mixed in .*pip uninstall -y pillow pillow-simd"):
        library.imaging_library()
