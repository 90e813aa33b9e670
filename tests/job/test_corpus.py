"""A job over damaged, forged and foreign files: it ends, counts all of them, in bounded memory."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from corpus import corpus
from corpus.files import ENCODED, bombs, readable
from PIL import features

import quadpipe
from quadpipe.errors import RejectError
from quadpipe.images.decode import BYTES_PER_PIXEL, MAX_PIXELS, EncodedImage
from quadpipe.shards.verify import verify

COUNT = 3000
MIB = 2**20

# PIL keeps 4 bytes a pixel. Of the largest picture that is accepted, there are two while its colour
# is converted; each bomb would take more.
MEMORY = BYTES_PER_PIXEL * MAX_PIXELS

# Linux alone says what a process's own peak was; rusage also counts the process that it came from.
JOB = """
import sys, quadpipe
quadpipe.tokenize(
    sys.argv[1], sys.argv[2], image_size=64, patch_size=8, max_patch_size=32, tokens=40,
    samples_per_shard=100, max_rejected="100%", in_process=True,
)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def job(source: Path, out: Path) -> int:
    """Tokenize in a child process; its peak memory in bytes."""
    command = [sys.executable, "-c", JOB, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout) * 1024


def documented_reasons() -> set[str]:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    rejects = text[text.index("**Rejects**") :]
    return set(re.findall(r"`(\w+)`", rejects[: rejects.index("\n\n")]))


@pytest.mark.fault(
    "3,000 damaged, hostile and refused images",
    "samples + rejects = inputs; memory stays bounded",
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_job_survives_a_corpus_of_bad_files(tmp_path):
    for folder in ("good", "bad"):
        (tmp_path / folder).mkdir()
    (tmp_path / "good" / "plain.jpg").write_bytes(readable()["baseline.jpg"])
    names = set()
    for name, data in corpus(seed=0, count=COUNT):
        (tmp_path / "bad" / name).write_bytes(data)
        names.add(name)
    assert len(names) == COUNT

    usual = job(tmp_path / "good", tmp_path / "usual")
    peak = job(tmp_path / "bad", tmp_path / "out")

    assert peak - usual < MEMORY
    dataset = quadpipe.Dataset(tmp_path / "out")
    split = dataset.manifest.splits["train"]
    assert (split.inputs, split.samples + split.rejected) == (COUNT, COUNT)
    samples = [(s.key, s.info["path"]) for s in dataset.samples("train")]
    lines = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert len({key for key, _ in samples}) == len(samples)
    assert Counter([p for _, p in samples] + [r["path"] for r in rejects]) == Counter(names)
    reasons = Counter(reject["reason"] for reject in rejects)
    assert reasons.keys() <= documented_reasons()
    assert all("\n" not in reject["message"] for reject in rejects)
    assert len(samples) > COUNT / 6  # damage is not always fatal
    assert len(reasons) >= 7
    assert list(verify(dataset)) == []


def test_whole_images_of_every_kind_are_accepted():
    compressed = {path.name for path in ENCODED.glob("*.tif")}
    for name, data in readable().items():
        decoder = "libtiff" if name in compressed else "webp" if name.endswith(".webp") else "jpg"
        if name.startswith("float"):
            assert reason_of(data) == "unsupported_mode"
        elif not features.check(decoder):
            assert reason_of(data) == "no_decoder"
        else:
            image = EncodedImage(data)
            assert {image.width, image.height} == {64, 48}, name
            assert image.decode().getbbox(), name


def test_bombs_are_refused():
    for name in ("flat.png", "text.png", "texts.png", "utf8.png", "profile.png"):
        assert reason_of(bombs()[f"bomb-{name}"]) in ("too_many_pixels", "corrupt")


def reason_of(data: bytes) -> str:
    with pytest.raises(RejectError) as caught:
        EncodedImage(data).decode()
    return caught.value.reason
