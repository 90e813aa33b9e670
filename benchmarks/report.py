"""`make bench`: run every benchmark of speed and write docs/performance.md.

    python benchmarks/report.py [--peers PYTHON] [--out FILE]

--peers is the Python of an environment with MosaicML Streaming and LitData, see loader.py. Takes
about 20 minutes. The page is performance.template.md with the output of each script in the place of
its name in braces.
"""

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {
    "startup": [],
    "kernels": [],
    "throughput": ["--images", "2000"],
    "memory": [],
    "loader": [],
    "training": [],
    "lengths": [],
    "scorers": [],
    "copying": [],
    "scale": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", help="a Python with the peers of loader.py")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "performance.md")
    options = parser.parse_args()
    page = (HERE / "performance.template.md").read_text()
    for name, arguments in SCRIPTS.items():
        peers = ["--peers", options.peers] if name == "loader" and options.peers else []
        output = run(name, [*arguments, *peers])
        machine, table = split(output)
        page = page.replace("{machine}", machine, 1).replace(f"{{{name}}}", table)
    options.out.write_text(page.replace("{date}", date.today().isoformat()))
    print(f"\nwrote {options.out}")


def run(name: str, arguments: list[str]) -> str:
    """A script's output, which is also printed."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    print(f"\n$ python benchmarks/{name}.py {' '.join(arguments)}", flush=True)
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"benchmarks/{name}.py failed")
    return "".join(lines)


def split(output: str) -> tuple[str, str]:
    """The line that describes the machine, and the other lines except those of warm-ups."""
    first, _, rest = output.partition("\n")
    lines = [line for line in rest.splitlines() if not line.startswith("warming up")]
    return first, "\n".join(lines).strip()


if __name__ == "__main__":
    main()
