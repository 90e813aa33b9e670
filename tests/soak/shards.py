"""Damages small datasets at random and reads them in every way there is.

    python tests/soak/shards.py --minutes 10 --seed 0 [--keep FOLDER]

Each case copies a small dataset, changes shards, shard list, index, manifest or done-markers with
their structure in view, mostly with checksums that fit, and reads it. It is a finding when

- anything else than a QuadpipeError comes out, or a reader takes longer than 20 seconds;
- "skip" raises although shard list and manifest are whole, does not count what is missing, or a
  loader does not make all its steps;
- two readers that skip disagree about a sample that both give.

Findings are printed with the seed of their case, and their datasets kept.
"""

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1]))

from forging import READERS, make_dataset, without_compiled_reader
from quadpipe import Dataset
from quadpipe.errors import QuadpipeError
from quadpipe.loader import Loader, webdataset
from quadpipe.shards.verify import verify
from soak.shard_damages import SPLIT, TEXTUAL, damage

SAMPLES, STEPS = 16, 4
SLOW = "loader without its compiled reader"

Given = set[tuple[str, bytes]]
"""Keys and tokens of the samples that a reader gave."""

LIMIT_SECONDS = 20
DRAWN = 0.1  # drawing takes as long as all else together


class TooSlowError(Exception):
    """A reader took longer than any should."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where datasets of findings go")
    options = parser.parse_args()
    logging.getLogger("quadpipe").setLevel(logging.CRITICAL)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="quadpipe-findings-"))
    cases, findings = run(options.seed, options.minutes * 60, keep)
    print(f"{cases:,} cases in {options.minutes:g} minutes, {len(findings)} findings")
    sys.exit(bool(findings))


def run(seed: int, seconds: float, keep: Path, most: int | None = None) -> tuple[int, list[str]]:
    """Try cases until the time is over, or `most` of them are done; their number, the findings."""
    cases, findings = 0, list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        wholes = [
            make_dataset(Path(temporary) / codec, codec=codec, **options)
            for codec, options in (("raw", {}), ("png", {}), ("jpg", {"patch_size": 8}))
        ]
        for read in READERS.values():  # compiles what is compiled
            read(wholes[0])
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and cases != most:
            case = f"{seed}:{cases}"
            dataset = Path(temporary) / "case"
            shutil.copytree(wholes[cases % 5 % 3], dataset)
            for finding in try_case(case, dataset):
                findings.append(finding)
                print(finding, flush=True)
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copytree(dataset, keep / case.replace(":", "-"), dirs_exist_ok=True)
            shutil.rmtree(dataset)
            cases += 1
    return cases, findings


def try_case(case: str, dataset: Path) -> Iterator[str]:
    """Damage a dataset by the seed of the case and read it; yields the findings."""
    chance = random.Random(case)
    names = damage(chance, dataset)
    inside = names <= {"bytes", "members", "headers", "arrays", "texts", "missing"}
    what = f"case {case} ({', '.join(sorted(names))})"
    for name, read in READERS.items():
        if name == "show" and chance.random() > DRAWN:
            continue
        yield from attempt(f"{what}, {name}", partial(read, dataset))
    yield from attempt(f"{what}, verify", lambda: list(verify(Dataset(dataset))))
    found: dict[str, Given] = {}

    def read_and_keep(name: str) -> None:
        found[name] = SKIPPING[name](dataset, inside)

    for name in SKIPPING:
        read = partial(read_and_keep, name)
        yield from attempt(f"{what}, {name} skips", read, raises=not inside)
    in_order, compiled, slow = (found.get(name) for name in ("samples", "loader", SLOW))
    if in_order is not None and found.get("webdataset", in_order) != in_order:
        yield f"{what}: webdataset and samples differ"
    # The compiled reader does not read descriptions, which may be what is damaged.
    if compiled is None or slow is None:
        return
    if not (compiled >= slow if names & TEXTUAL else compiled == slow):
        yield f"{what}: the loader and {SLOW} differ"


def attempt(what: str, read: Callable[[], object], *, raises: bool = True) -> Iterator[str]:
    """The finding if the reader raises what it must not, or takes too long."""
    try:
        with limited():
            read()
    except QuadpipeError as error:
        if not raises:
            yield f"{what}: raised {error}"
    except Exception:
        yield f"{what}: {traceback.format_exc()}"


@contextmanager
def limited() -> Iterator[None]:
    """Raises TooSlowError after `LIMIT_SECONDS`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def skip_in_order(dataset: Path, inside: bool) -> Given:
    opened = Dataset(dataset)
    found = [(s.key, s.mosaic.leaves().tokens.tobytes())
             for s in opened.samples(SPLIT, on_error="skip")]  # fmt: skip
    check_count(len(found), opened.skipped.samples, inside)
    return set(found)


def skip_in_pipeline(dataset: Path, inside: bool) -> Given:
    opened = Dataset(dataset)
    found = [(s["key"], s["tokens"].tobytes()) for s in webdataset(opened, SPLIT, on_error="skip")]
    check_count(len(found), opened.skipped.samples, inside)
    return set(found)


def skip_in_batches(dataset: Path, inside: bool) -> Given:
    loader = Loader(dataset, SPLIT, batch_size=5, on_error="skip")
    batches = list(loader.epoch(0))
    assert not inside or len(batches) == STEPS, f"{len(batches)} steps"
    assert all(len(b.keys) == len(b.tokens) == len(b.boxes) == len(b.label) for b in batches)
    check_count(sum(int(b.weight.sum()) for b in batches), loader.skipped.samples, inside)
    return {
        (key, tokens.numpy().tobytes())
        for b in batches
        for key, tokens, weight in zip(b.keys, b.tokens, b.weight.tolist(), strict=True)
        if weight
    }


def skip_slowly(dataset: Path, inside: bool) -> Given:
    with without_compiled_reader():
        return skip_in_batches(dataset, inside)


def check_count(found: int, skipped: int, inside: bool) -> None:
    assert not inside or found + skipped == SAMPLES, f"{found} samples, {skipped} skipped"


SKIPPING: dict[str, Callable[[Path, bool], Given]] = {
    "samples": skip_in_order,
    "webdataset": skip_in_pipeline,
    "loader": skip_in_batches,
    SLOW: skip_slowly,
}


if __name__ == "__main__":
    main()
