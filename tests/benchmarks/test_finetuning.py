"""benchmarks/finetuning.py and its report."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"
ROWS = [json.loads(line) for line in (DOCS / "finetuning.jsonl").read_text().splitlines()]
MODULES = ("accuracy", "budgets_report", "common", "finetuning", "finetuning_report", "scenes")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import finetuning
    import finetuning_report

    yield finetuning, finetuning_report
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def page_of(modules, tmp_path, monkeypatch):
    """The page of some results."""

    def write(rows: Iterable[dict[str, Any]]) -> str:
        results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
        results.write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setattr(sys, "argv", ["report", str(results), "--page", str(page)])
        modules[1].main()
        return page.read_text()

    return write


def test_a_model_is_continued_on_the_other_half_and_compared(
    modules, page_of, jpeg, tmp_path, monkeypatch, capsys
):
    finetuning, _ = modules
    out = tmp_path / "out"
    work = out / "24-8"
    for number in range(24):
        split, name = ("train", "val")[number >= 16], "ab"[number % 2]
        path = work / "scenes" / "small" / split / name / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    words = ["--scenes", "small", "--seeds", "1", "--epochs", "1", "--arms"]
    words += ["not continued", "grid", "grid, part of the epoch", "mosaics, linear probe"]
    words += ["--train-scenes", "24", "--val-scenes", "8"]
    monkeypatch.setattr(sys, "argv", ["finetuning.py", str(out), *words])
    finetuning.main()
    assert len(capsys.readouterr().out.splitlines()) == 4
    finetuning.main()
    assert capsys.readouterr().out == ""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["tokens"], row["samples"], row["val_samples"]) for row in rows] == [
        (64, 0, 8),
        (64, 8, 8),
        (64, 4, 8),
        (37, 8, 8),
    ]
    assert {(row["train_scenes"], row["val_scenes"]) for row in rows} == {(24, 8)}
    halves = [(work / "scenes" / f"small-{half}.csv").read_text() for half in ("first", "second")]
    assert not {*halves[0].splitlines()} & {*halves[1].splitlines()}
    page = page_of(rows)
    costs = [line.split(" | ")[3] for line in page.splitlines() if " | 1 | " in line]
    # A third of 37 tokens, forward only.
    assert costs == ["0.00", "1.00", "0.50", "0.19"]


def test_the_page_is_that_of_its_results(page_of):
    assert page_of(ROWS) == (DOCS / "finetuning.md").read_text()


def test_partial_results_have_no_errors_and_no_empty_sections(page_of):
    page = page_of(row for row in ROWS if row["setting"] == "small" and row["seed"] < 2)
    assert "## Objects that fill the image" not in page
    assert "{" not in page
    (line,) = (line for line in page.splitlines() if line.startswith("| mosaics | "))
    # Seeds 0 and 1: 44.8 and 46.65 %; the grid 44.25 and 44.35; not continued 44.3 and 42.9.
    assert line.endswith("| 2 | 45.7 | +1.4 | +2.1 |")
    assert "Mosaics" not in page_of(row for row in ROWS if row["arm"] == "grid")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 7}, "small has results of several studies"),
        ({"val_samples": 1000}, "small has results of several studies"),
        ({"samples": 5999}, "small has results of several studies"),
        ({"train_scenes": 6000}, "small has results of several studies"),
        ({"arm": "mosaics"}, "small has results of several studies .* seeds twice"),
    ],
)
def test_results_of_several_studies_are_refused(page_of, change, message):
    grid = next(row for row in ROWS if row["arm"] == "grid")
    with pytest.raises(SystemExit, match=message):
        page_of(row | change if row is grid else row for row in ROWS)


def test_results_without_the_grid_are_refused(page_of):
    with pytest.raises(SystemExit, match="small has no results of the arm grid, .* --arms grid"):
        page_of(row for row in ROWS if row["arm"] != "grid")
    with pytest.raises(SystemExit, match="there are no results; run benchmarks/finetuning.py"):
        page_of([])
