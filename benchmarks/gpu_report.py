"""`make gpu`: run the tests and benchmarks that need a GPU, and write docs/gpu.md.

    python benchmarks/gpu_report.py [--out FILE]

A page is written where tests fail, too: it says which.
"""

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import torch
from report import run, split

ROOT = Path(__file__).parents[1]
TESTS = "tests/model/test_on_gpu.py"
PAGE = """# On a GPU

{date}; {machine}

Written by `make gpu`, which runs what needs a GPU.

## Tests

{passed} of {count} passed (`{tests}`).

| test | result |
|---|---|
{rows}

## Training steps

`benchmarks/gpu.py`: batches in pinned memory, so without reading; images of 256 x 256 pixels as 100
tokens, `lengths` 19 to 100. Copying and computing are shares of the time, and busy their sum: in
the rest the GPU waits.

{benchmark}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.md")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; install a torch that fits the driver")
    results = run_tests(ROOT / ".venv" / "gpu.xml")
    machine, benchmark = split(run("gpu", []))
    options.out.write_text(page(results, machine, benchmark))
    print(f"\nwrote {options.out}")
    return int(any(result.startswith("failed") for result in results.values()))


def run_tests(report: Path) -> dict[str, str]:
    """Results by the names of the tests."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", TESTS, f"--junitxml={report}"]
    report.unlink(missing_ok=True)
    subprocess.run(command, cwd=ROOT, check=False)
    if not report.exists():
        raise SystemExit(f"{TESTS} did not run; see pytest's message")
    return read_results(report)


def read_results(report: Path) -> dict[str, str]:
    """Of pytest's report: passed, skipped or failed, with the reason."""
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].removeprefix("test_").replace("_", " ")
        results[name] = "passed"
        for kind, said in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            if (found := case.find(kind)) is not None:
                first = (found.get("message") or "").partition("\n")[0]
                results[name] = f"{said}: {first}".replace("|", "/")
    return results


def page(results: dict[str, str], machine: str, benchmark: str) -> str:
    return PAGE.format(
        date=date.today().isoformat(),
        machine=machine,
        tests=TESTS,
        passed=list(results.values()).count("passed"),
        count=len(results),
        rows="\n".join(f"| {name} | {result} |" for name, result in results.items()),
        benchmark=benchmark,
    )


if __name__ == "__main__":
    sys.exit(main())
