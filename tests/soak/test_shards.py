"""A short soak in every run of the tests; `python tests/soak/shards.py` is the long one."""

import random
import shutil

from forging import make_dataset
from quadpipe.shards.manifest import Manifest
from soak import shards


def test_damage_of_every_kind_raises_a_quadpipe_error_or_is_skipped(tmp_path):
    cases, findings = shards.run(seed=0, seconds=60, keep=tmp_path / "found", most=150)
    assert findings == []
    assert cases > 20


def test_a_case_is_damaged_the_same_way_each_time(tmp_path):
    whole = make_dataset(tmp_path)
    results = []
    for copy in (tmp_path / "one", tmp_path / "other"):
        shutil.copytree(whole, copy)
        kinds = shards.damage(random.Random("0:7"), copy)
        files = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
        results.append((kinds, files))
    assert results[0] == results[1]


def test_an_error_that_is_not_a_quadpipe_error_is_a_finding(tmp_path, monkeypatch):
    def broken(folder: object) -> None:
        raise OverflowError("too large for a float")

    dataset = make_dataset(tmp_path)
    monkeypatch.setattr(Manifest, "read", broken)
    findings = list(shards.try_case("0:0", dataset))
    assert len(findings) >= 10  # one for each way of reading
    assert all("too large for a float" in finding for finding in findings)
