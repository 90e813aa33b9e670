"""How long `import quadpipe` and `quadpipe --help` take, a fresh process each.

python benchmarks/startup.py [--runs 15]
"""

import argparse
import statistics
import subprocess
import sys
import time

from common import describe_machine

ROWS = {
    "python -c pass": (["-c", "pass"], None),
    "python -c 'import quadpipe'": (["-c", "import quadpipe"], 0.2),
    "quadpipe --help": (["-m", "quadpipe.cli", "--help"], 0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    describe_machine()
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(options.runs):
        for name, (arguments, _) in ROWS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - started)
    print("\n| command | seconds, median (smallest-largest) | target |")
    print("|---|---|---|")
    for name, values in seconds.items():
        middle, bar = statistics.median(values), ROWS[name][1]
        verdict = "" if bar is None else f"{bar}: {'met' if middle <= bar else 'NOT met'}"
        print(f"| `{name}` | {middle:.2f} ({min(values):.2f}-{max(values):.2f}) | {verdict} |")


if __name__ == "__main__":
    main()
