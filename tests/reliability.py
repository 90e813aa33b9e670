"""The table of faults and outcomes in docs/reliability.md: a row for each test marked `fault`.

python -m pytest -m fault --reliability=docs/reliability.md
"""

import io
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
_HEADER = "| fault | what happens | lost | doubled | test |\n|---|---|---|---|---|\n"


@dataclass
class Row:
    """A row of the table; lost and doubled are None if the test does not count samples."""

    test: str
    what: str
    outcome: str
    passed: bool = False
    lost: int | None = None
    doubled: int | None = None

    def __str__(self) -> str:
        counts = ["" if count is None else str(count) for count in (self.lost, self.doubled)]
        return f"| {self.what} | {self.outcome} | {counts[0]} | {counts[1]} | `{self.test}` |"


_rows: dict[str, list[Row]] = {}


def describe(item: pytest.Item) -> None:
    name = item.nodeid.removeprefix("tests/").partition("[")[0]
    _rows[item.nodeid] = [Row(name, *mark.args) for mark in item.iter_markers("fault")]


def note(report: pytest.TestReport) -> None:
    if report.when != "call":
        return
    found: dict[str, Any] = dict(report.user_properties)
    for row in _rows.get(report.nodeid, ()):
        row.passed = report.passed
        row.lost, row.doubled = found.get("lost"), found.get("doubled")


def write(page: Path) -> None:
    """Replace the table in a page; a test that failed or was left out keeps the page as it is."""
    rows: dict[tuple[str, str], Row] = {}
    for row in (row for rows in _rows.values() for row in rows):
        if not row.passed:
            raise pytest.UsageError(f"{row.test} has not passed; {page} stays as it is")
        first = rows.setdefault((row.what, row.test), row)
        if row is not first and row.lost is not None:
            first.lost = (first.lost or 0) + row.lost
            first.doubled = (first.doubled or 0) + (row.doubled or 0)
    text = page.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    table = _HEADER + "\n".join(map(str, rows.values()))
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def tree(root: Path) -> dict[str, bytes]:
    """All files of a dataset but its logs, by name."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".quadpipe/logs/" not in path.as_posix()
    }


def compare(found: dict[str, bytes], expected: dict[str, bytes]) -> tuple[int, int]:
    """The numbers of lost samples and of duplicated ones."""
    here, there = _keys(found), _keys(expected)
    return (there - here).total(), (here - there).total()


def _keys(files: dict[str, bytes]) -> Counter[tuple[str, str]]:
    """How often each sample of each split is there."""
    keys: Counter[tuple[str, str]] = Counter()
    for name, data in files.items():
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                found = {member.name.partition(".")[0] for member in tar}
            keys.update((name.partition("-")[0], key) for key in found)
    return keys
