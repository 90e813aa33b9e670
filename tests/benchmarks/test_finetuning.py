"""benchmarks/finetuning.py and its report."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("accuracy", "budgets_report", "common", "finetuning", "finetuning_report", "scenes")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import finetuning
    import finetuning_report

    yield finetuning, finetuning_report
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_model_is_continued_on_the_other_half_and_compared(
    modules, jpeg, tmp_path, monkeypatch, capsys
):
    finetuning, report = modules
    out = tmp_path / "out"
    for number in range(24):
        split, name = ("train", "val")[number >= 16], "ab"[number % 2]
        path = out / "scenes" / "small" / split / name / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    words = ["--scenes", "small", "--seeds", "1", "--epochs", "1", "--arms"]
    words += ["not continued", "grid", "grid, part of the epoch", "mosaics, linear probe"]
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
    halves = [(out / "scenes" / f"small-{half}.csv").read_text() for half in ("first", "second")]
    assert not {*halves[0].splitlines()} & {*halves[1].splitlines()}
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["report", str(out / "results.jsonl"), "--page", str(page)])
    report.main()
    costs = [line.split(" | ")[3] for line in page.read_text().splitlines() if " | 1 | " in line]
    # A third of 37 tokens, forward only.
    assert costs == ["0.00", "1.00", "0.50", "0.19"]
