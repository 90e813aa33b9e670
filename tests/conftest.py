"""Real photographs that scikit-learn ships, and image folders made from them."""

import io
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reliability
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_sample_images

# Tests run in several processes. More threads than processors wait for each other in loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests kill processes, never the machine; waiting for the disk would take most of their time.
os.fsync = lambda fd: None
# The same examples in each run: a failure is then due to a change. `make soak` draws others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("other", deadline=None)
settings.load_profile("same")


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

    def make(number: int = 0, size: tuple[int, int] = (200, 150), **options: Any) -> bytes:
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


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    return reliability.tree


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-processes", action="store_true", help="Skip tests as soon as they start a process."
    )
    parser.addoption(
        "--reliability", type=Path, help="Write the table of faults and outcomes into this page."
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-processes"):
        sys.addaudithook(_skip_where_a_process_starts)


def _skip_where_a_process_starts(event: str, arguments: object) -> None:
    if _tests_running and event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        pytest.skip("starts a process")


_tests_running: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _tests_running.append(item)
    try:
        return (yield)
    finally:
        _tests_running.pop()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    reliability.note(report)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    if call.when == "call":
        reliability.describe(item)


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = session.config.getoption("--reliability")
    if page is not None:
        reliability.write(page)


@pytest.fixture
def account(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Checks that a run left the bytes of the undisturbed one, and counts for the table."""

    def check(out: Path, undisturbed: dict[str, bytes]) -> None:
        lost, doubled = reliability.compare(reliability.tree(out), undisturbed)
        record_property("lost", lost)
        record_property("doubled", doubled)
        assert (lost, doubled) == (0, 0)
        assert reliability.tree(out) == undisturbed
        assert not (out / ".quadpipe" / "tmp").exists()

    return check
