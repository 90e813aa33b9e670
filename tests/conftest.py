"""Real photographs that scikit-learn ships, and image folders made from them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Two photographs, uint8 `[427, 640, 3]`: a temple and a flower."""
    return [np.array(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def square(photographs: list[np.ndarray]) -> np.ndarray:
    """Photographs of exactly 256 x 256 pixels, uint8 `[4, 256, 256, 3]`."""
    return np.stack(
        [p[y : y + 256, x : x + 256] for p in photographs for y, x in ((0, 0), (150, 300))]
    )


@pytest.fixture(scope="session")
def jpeg(photographs: list[np.ndarray]) -> Callable[..., bytes]:
    """Makes a JPEG of a part of a photograph; other numbers give other parts."""

    def make(number: int = 0, size: tuple[int, int] = (200, 150), **options: object) -> bytes:
        photograph = photographs[number % 2]
        width, height = size
        top, left = number * 37 % (427 - height), number * 53 % (640 - width)
        file = io.BytesIO()
        part = Image.fromarray(photograph[top : top + height, left : left + width])
        part.save(file, "JPEG", **{"quality": 90, **options})
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[..., bytes]) -> Path:
    """An ImageFolder of 23 photographs in 3 classes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(23):
        folder = root / ("flower", "temple", "zebra")[number % 3]
        folder.mkdir(exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number))
    return root


@pytest.fixture(scope="session")
def shufflenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ShuffleNetV2 x0.5 in torchvision's layout, from the golden vectors; not trained."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "shufflenet.pth"
    with np.load(Path(__file__).parent / "golden" / "feature.npz") as golden:
        state = {
            name.removeprefix("state/"): torch.tensor(golden[name])
            for name in golden.files
            if name.startswith("state/")
        }
    torch.save(state, path)
    return path


def tree(root: Path) -> dict[str, bytes]:
    """All files of a dataset but its logs, by name."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".quadpipe/logs/" not in path.as_posix()
    }


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    return tree
