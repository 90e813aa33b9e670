"""benchmarks/accuracy.py and its report."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accuracy
    import accuracy_report

    yield accuracy, accuracy_report
    for name in ("accuracy", "accuracy_report", "budgets_report", "common", "scenes"):
        sys.modules.pop(name, None)


@pytest.fixture
def images(tmp_path, jpeg) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for number in range(2 * count):
            path = tmp_path / "images" / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
    return tmp_path / "images"


def test_a_rerun_trains_only_what_is_not_finished(modules, images, tmp_path, monkeypatch, capsys):
    accuracy, _ = modules
    out = tmp_path / "out"

    def run(*scorers: str) -> list[str]:
        arguments = ["--scorers", *scorers, "--tokens", "19", "--seeds", "1", "--epochs", "1"]
        monkeypatch.setattr(
            sys, "argv", ["accuracy.py", str(out), "--images", str(images), *arguments]
        )
        accuracy.main()
        printed = capsys.readouterr().out.splitlines()
        return [line.partition(":")[0] for line in printed]

    killed = out / "cells" / "images-uniform-19-0-nano-1"  # what a killed process leaves
    killed.mkdir(parents=True)
    (killed / "last.safetensors").write_bytes(b"")
    assert run("uniform") == ["images-uniform-19-0-nano-1"]
    assert run("uniform", "random") == ["images-random-19-0-nano-1"]
    assert run("uniform", "random") == []
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["scorer"], row["real_tokens"], row["val_samples"]) for row in rows] == [
        ("uniform", 16, 4),
        ("random", 19, 4),
    ]


def test_a_cell_that_another_process_trains_is_left_to_it(modules, tmp_path):
    accuracy, _ = modules
    path = tmp_path / "cell.lock"
    with accuracy.claimed(path, wait=False) as first, accuracy.claimed(path, wait=False) as second:
        assert first
        assert not second
    with accuracy.claimed(path, wait=False) as later:
        assert later


def row(scorer: str, seed: int, top1: float, **fields: object) -> str:
    return json.dumps(
        {
            "setting": "small",
            "scorer": scorer,
            "tokens": 37,
            "seed": seed,
            "model": "nano",
            "epochs": 3,
            "steps": 9,
            "batch": 32,
            "train_samples": 96,
            "val_samples": 40,
            "real_tokens": 36 if scorer == "uniform" else 37,
            "multiply_adds": 20_000_000,
            "top1": top1,
            "top1_by_step": [[3, top1 / 2], [9, top1]],
            "tokenize_seconds": 60,
            "train_seconds": 60,
            "shards_sha256": "ab12",
            "machine": "a processor",
            **fields,
        }
    )


def test_the_page_states_wins_and_losses_over_seeds(modules, tmp_path, monkeypatch):
    _, report = modules
    tops = {"uniform": (0.3, 0.32), "pixel-blur": (0.2, 0.22), "saliency": (0.5, 0.52)}
    lines = [row(name, seed, t) for name, pair in tops.items() for seed, t in enumerate(pair)]
    lines += [row("random", seed, t) for seed, t in enumerate((0.2, 0.4))]
    lines += [row(name, 0, 0.4, setting="large") for name in ("uniform", "saliency")]
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    results.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["report", str(results), "--page", str(page)])
    report.main()
    text = page.read_text()
    assert "| `uniform` (plain ViT) | 36 | 20.0 | 2 | 31.0 ± 1.0 |  |" in text
    assert "| `saliency` | 37 | 20.0 | 2 | 51.0 ± 1.0 | +20.0 ± 1.4: win |" in text
    assert "| `pixel-blur` | 37 | 20.0 | 2 | 21.0 ± 1.0 | -10.0 ± 1.4: loss |" in text
    assert "| `random` | 37 | 20.0 | 2 | 30.0 ± 10.0 | -1.0 ± 10.0: no clear difference |" in text
    assert "| `saliency` | 37 | 20.0 | 1 | 40.0 (one seed) | +0.0: no clear difference |" in text
    assert "{" not in text
    assert page.with_suffix(".png").exists()


def test_seeds_that_were_trained_on_different_data_are_refused(modules, tmp_path, monkeypatch):
    _, report = modules
    results = tmp_path / "results.jsonl"
    rows = row("uniform", 0, 0.3), row("uniform", 1, 0.3, shards_sha256="cd34")
    results.write_text("\n".join(rows))
    monkeypatch.setattr(sys, "argv", ["report", str(results)])
    with pytest.raises(SystemExit, match="small, uniform, 37 tokens: the seeds were trained on"):
        report.main()


@pytest.mark.parametrize(
    ("text", "options", "evaluated"),
    [
        ("37", {"tokens": "37"}, [("equal", 37, None)]),
        (
            "16-30",
            {"tokens": "16-30"},
            [("equal", 19, None), ("equal", 28, None), ("own", 19, 2), ("own", 28, 2)],
        ),
        (
            "~22,25:19-40",
            {"mean_tokens": "22,25", "min_tokens": 19, "max_tokens": 40},
            [("equal", 22, None), ("equal", 25, None), ("own", 22, 2), ("own", 25, 2)],
        ),
        ("~37", {"mean_tokens": "37"}, [("equal", 37, None), ("own", 37, 2)]),
    ],
)
def test_tokens_name_the_training_and_its_evaluation(modules, text, options, evaluated):
    accuracy, _ = modules
    training = accuracy.Training.parse(text)
    assert training.options() == options
    assert training.evaluated((2,)) == evaluated


def test_models_for_a_range_are_evaluated_in_both_ways(modules, images, tmp_path, monkeypatch):
    accuracy, _ = modules
    words = ["--scorers", "pixel-blur", "--seeds", "1", "--epochs", "1", "--tokens", "16-28"]
    words += ["--stored", "40", "--gain-discounts", "0", "2"]
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "out"), "--images", str(images), *words])
    accuracy.main()
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").open()]
    assert [(row["counts"], row["at"], row["discount"]) for row in rows] == [
        *((("equal", n, None)) for n in (19, 28)),
        *(("own", n, discount) for n in (19, 28) for discount in (0, 2)),
    ]
    assert all(16 <= row["real_tokens"] <= 28 for row in rows)


def test_the_page_on_budgets_compares_models_and_uses(modules, tmp_path, monkeypatch):
    import budgets_report

    lines = []
    for seed in (0, 1):
        for budget, top1 in ((19, 0.3), (37, 0.5), (64, 0.6)):
            fields = {"at": budget, "multiply_adds": budget * 10**6, "draw": "even"}
            one = fields | {"tokens": f"{budget}", "counts": "equal", "discount": None}
            both = fields | {"tokens": "19-64", "epochs": 6, "steps": 18}
            lines += [
                row("saliency", seed, top1 + seed / 100, **one),
                row("saliency", seed, top1 + 0.1, **both, counts="equal", discount=None),
                row("saliency", seed, top1 + 0.12 + seed / 50, **both, counts="own", discount=2),
            ]
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    results.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["report", str(results), "--page", str(page)])
    budgets_report.main()
    text = page.read_text()
    assert "| one model per budget | 2 | 3 | 30.5 ± 0.5 | 50.5 ± 0.5 | 60.5 ± 0.5 |" in text
    # 6 epochs at a mean of 41.5 tokens, against 3 at a mean of 40
    assert "| one model, 19-64, 6 epochs | 2 | 2.1 | 40.0 ± 0.0 | 60.0 ± 0.0 | 70.0 ± 0.0 |" in text
    assert "| small | `saliency` | 19-64, 6 epochs | 2 | 2 | +3.0 ± 1.0 |" in text
    assert "{" not in text
    assert page.with_suffix(".png").exists()
