"""The page that `make gpu` writes."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REPORT = """<testsuites><testsuite>
<testcase name="test_training_gives_the_losses_of_a_cpu[options0]"/>
<testcase name="test_two_processes_with_nccl"><skipped message="needs two GPUs"/></testcase>
<testcase name="test_a_wait"><failure message="assert 1 | 2&#10;second line"/></testcase>
<testcase name="test_broken"><error message="no fixture">trace</error></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_report

    yield gpu_report
    del sys.modules["gpu_report"], sys.modules["report"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    yield gpu
    del sys.modules["gpu"], sys.modules["common"]


def test_the_page_lists_what_passed_and_why_the_rest_did_not(report, tmp_path):
    (tmp_path / "gpu.xml").write_text(REPORT)
    results = report.read_results(tmp_path / "gpu.xml")
    page = report.page(results, "a machine", "a table")
    assert "1 of 4 passed" in page
    assert "| training gives the losses of a cpu[options0] | passed |" in page
    assert "| two processes with nccl | skipped: needs two GPUs |" in page
    assert "| a wait | failed: assert 1 / 2 |" in page
    assert "| broken | failed: no fixture |" in page


def test_a_machine_without_a_gpu_gets_one_line(report, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_report.py"])
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        report.main()


@pytest.mark.parametrize("kind", ["float32", "bf16, lengths"])
def test_the_benchmark_runs_on_a_cpu_too(benchmark, kind):
    row = benchmark.row("nano", kind, torch.device("cpu"), images=2, steps=1)
    assert row.startswith(f"| nano | {kind} | ")
