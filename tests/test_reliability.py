"""docs/reliability.md has a row for each test marked `fault`, and names existing files."""

import ast
import re
from pathlib import Path
from typing import Any

import reliability

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()


def marked() -> set[tuple[str, str, str]]:
    """(fault, outcome, test) of every mark in the tests."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        names: dict[str, Any] = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                    what, outcome = (
                        names[word.id] if isinstance(word, ast.Name) else ast.literal_eval(word)
                        for word in call.args
                    )
                    test = f"{path.relative_to(TESTS).as_posix()}::{node.name}"
                    found.add((what, outcome, test))
    return found


def test_the_table_lists_the_marked_tests():
    """`make reliability` writes it."""
    table = PAGE.partition(reliability.BEGIN)[2].partition(reliability.END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert {(row[0], row[1], row[-1].strip("`")) for row in rows} == marked()
    for row in rows:
        assert set(row[2:-1]) <= {"", "0"}, row


def test_the_page_names_existing_files():
    for name in re.findall(r"`((?:tests/)?[a-z]+(?:/[a-z_0-9]+)*\.py)`", PAGE):
        path = TESTS.parent / name if name.startswith(("tests/", "quadpipe/")) else TESTS / name
        assert path.exists(), name
