"""Damaged images through decoding and cropping, for minutes: what crashes, hangs or differs?

    python tests/soak/images.py [--minutes 5] [--seed 0] [--keep FOLDER]

A child process decodes corpus after corpus, each by the next seed. Every file is decoded
twice, with other bytes in fresh memory each time: pixels that differ were never written. A file
that ends its process, takes longer than 20 s, raises anything but a reject, or differs is kept.
"""

import argparse
import ctypes
import hashlib
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from corpus import corpus

COUNT = 3000
HANG = 20.0
M_PERTURB = -6  # of glibc's mallopt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("found-images"))
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    outcomes: Counter[str] = Counter()
    peak, slowest, seed = 0, (0.0, ""), options.seed
    while time.monotonic() < end:
        start = 0
        while start < COUNT:
            results = decode_in_process(seed, start, end)
            outcomes += results.outcomes
            peak, slowest = max(peak, results.peak), max(slowest, results.slowest)
            for name, what in results.bad.items():
                print(f"seed {seed} {name}: {what}", flush=True)
                options.keep.mkdir(parents=True, exist_ok=True)
                data = next(d for n, d in corpus(seed, COUNT) if n == name)
                (options.keep / f"{seed}-{name}").write_bytes(data)
            start = results.next
        seed += 1
    print(f"{outcomes.total():,} files, {seed - options.seed} seeds from {options.seed}")
    for outcome, count in outcomes.most_common():
        print(f"{count:>9,}  {outcome}")
    print(f"peak memory {peak / 1024:,.0f} MiB; slowest {slowest[0]:.2f} s, {slowest[1]}")
    return int(any(outcomes[kind] for kind in ("crash", "hang", "raised", "differs")))


class Results:
    """The outcomes of one process for the files of a corpus, from `start` on."""

    def __init__(self, start: int) -> None:
        self.next, self.peak, self.slowest = start, 0, (0.0, "")
        self.outcomes: Counter[str] = Counter()
        self.bad: dict[str, str] = {}

    def file(self, name: str, outcome: str, seconds: float) -> None:
        kind = outcome.partition(":")[0]
        self.outcomes[kind] += 1
        self.slowest = max(self.slowest, (seconds, name))
        self.next += 1
        if kind in ("crash", "hang", "raised", "differs"):
            self.bad[name] = outcome


def decode_in_process(seed: int, start: int, end: float) -> Results:
    """Start a process on a corpus and collect its outcomes until it ends or is stopped."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=decode_all, args=(seed, start, theirs))
    process.start()
    theirs.close()
    results, name = Results(start), ""
    try:
        while True:
            began = time.monotonic()
            if not ours.poll(HANG if name else 300):
                process.kill()
                results.file(name, "hang", HANG)
                return results
            kind, value = ours.recv()
            if kind == "begin":
                name = value
            elif kind == "done":
                results.file(name, value, time.monotonic() - began)
                name = ""
                if time.monotonic() > end:
                    process.kill()
                    results.next = COUNT
                    return results
            else:
                results.peak, results.next = value, COUNT
                return results
    except EOFError:
        process.join()
        results.file(name, f"crash: exit code {process.exitcode}", 0.0)
        return results
    finally:
        process.join()


def decode_all(seed: int, start: int, connection: Connection) -> None:
    """In the child process: send each name, its outcome, and at the end the peak memory in KiB."""
    perturb: Callable[[int, int], object] = getattr(
        ctypes.CDLL(None), "mallopt", lambda option, value: None
    )
    for number, (name, data) in enumerate(corpus(seed, COUNT)):
        if number < start:
            continue
        connection.send(("begin", name))
        perturb(M_PERTURB, 0x55)
        first = outcome_of(data)
        perturb(M_PERTURB, 0xAA)
        second = outcome_of(data)
        perturb(M_PERTURB, 0)
        if first != second:
            outcome = f"differs: {first} and then {second}"
        else:
            outcome = "sample" if first.startswith("sample") else first
        connection.send(("done", outcome))
    connection.send(("peak", peak_kibibytes()))


def outcome_of(data: bytes) -> str:
    """A digest of a centre crop and a random crop, the reason of the reject, or what was raised."""
    from quadpipe.errors import RejectError
    from quadpipe.images.crop import center_box, decode_and_resample, random_box
    from quadpipe.images.decode import EncodedImage

    digest = hashlib.sha256()
    try:
        image = EncodedImage(data)
        for box in (
            center_box(image.width, image.height, (16, 16), 0.875),
            random_box(image.width, image.height, (0.1, 1.0), (0.75, 4 / 3), "soak"),
        ):
            pixels = decode_and_resample(image, box, (16, 16))
            assert pixels.shape == (16, 16, 3)
            digest.update(pixels.tobytes())
    except RejectError as error:
        return f"{error.reason}: {error.message}"
    except Exception as error:
        return f"raised: {type(error).__name__}: {error}"
    return f"sample {digest.hexdigest()[:8]}"


def peak_kibibytes() -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    sys.exit(main())
