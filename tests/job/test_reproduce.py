"""`quadpipe verify --deep`: retokenizing gives the same bytes, or a finding."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_cli

import quadpipe
from forging import edit_json
from quadpipe.errors import ConfigError, JobError, ShardError, SourceError
from quadpipe.job.reproduce import Reproducer

OPTIONS: dict[str, Any] = {
    "samples_per_shard": 7,
    "score_batch": 3,
    "views": 2,
    "val_share": 0.2,
    "tokens": 40,
}


@pytest.fixture(scope="module")
def images(image_folder, tmp_path_factory) -> Path:
    """The photographs, two of them broken."""
    root = shutil.copytree(image_folder, tmp_path_factory.mktemp("again") / "images")
    for broken in sorted(root.rglob("*.jpg"))[3:5]:
        broken.write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    quadpipe.tokenize(images, out, in_process=True, max_rejected="20%", **OPTIONS)
    return out


def findings(dataset: Path, source: Path, inputs: int = 1000, **options: Any) -> list[str]:
    again = Reproducer(quadpipe.Dataset(dataset), source, **options)
    return [line for _, lines in again.check(inputs) for line in lines]


def test_all_inputs_give_the_same_bytes(finished, images):
    again = Reproducer(quadpipe.Dataset(finished), images)
    results = list(again.check(1000))
    assert sum(count for count, _ in results) == 23
    assert [line for _, lines in results for line in lines] == []


@pytest.mark.parametrize(("inputs", "batches"), [(1, 1), (3, 1), (4, 2), (1000, 10)])
def test_whole_batches_are_drawn_without_repetition(inputs, batches, finished, images):
    again = Reproducer(quadpipe.Dataset(finished), images)
    drawn = list(again._draw(inputs, random.Random(0)))
    assert len(drawn) == len(set(drawn)) == batches


def test_a_seed_draws_the_same_inputs_again(finished, images):
    counts = [
        [count for count, _ in Reproducer(quadpipe.Dataset(finished), images).check(5, seed=4)]
        for _ in range(2)
    ]
    assert counts[0] == counts[1]


def test_changed_bytes_are_found_in_each_view(finished, images, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for name in ("train-000001.tar", "train-v01-000001.tar"):
        tar = copy / name
        data = bytearray(tar.read_bytes())
        data[5000] ^= 1
        tar.write_bytes(data)
    found = findings(copy, images)
    assert len(found) == 2
    for name, line in zip(("train-000001.tar", "train-v01-000001.tar"), sorted(found), strict=True):
        assert name in line
        assert line.endswith("gives other bytes when retokenized")


def test_an_input_that_has_changed_is_found(finished, images, tmp_path, jpeg):
    changed = shutil.copytree(images, tmp_path / "images")
    (changed / "flower" / "00.jpg").write_bytes(jpeg(77))
    (line,) = findings(finished, changed)[:1]
    assert "flower/00.jpg gives other bytes when retokenized" in line


def test_inputs_that_change_between_sample_and_reject_are_found(finished, images, tmp_path, jpeg):
    changed = shutil.copytree(images, tmp_path / "images")
    rows = (finished / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    repaired = json.loads(rows[0])["path"]
    (changed / repaired).write_bytes(jpeg(5))
    (changed / "zebra" / "02.jpg").write_bytes(b"")
    found = findings(finished, changed)
    assert f"{repaired}: was rejected (not_an_image: not a readable" in "".join(found)
    assert "zebra/02.jpg: was a sample, is rejected (empty" in "".join(found)


def test_a_missing_input_is_a_finding_without_retries(finished, images, tmp_path):
    started = time.monotonic()
    fewer = shutil.copytree(images, tmp_path / "images")
    (fewer / "zebra" / "02.jpg").unlink()
    assert any("cannot read zebra/02.jpg" in line for line in findings(finished, fewer))
    assert time.monotonic() - started < 5


def test_another_source_is_refused_at_once_before_anything_is_read(finished, images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="nowhere does not exist; give a folder"):
        Reproducer(quadpipe.Dataset(finished), tmp_path / "nowhere")
    for wrong in (tmp_path / "empty", images / "zebra"):
        started = time.monotonic()
        message = r"none of the inputs that were drawn is in .*such as .*\.jpg; give --in what"
        with pytest.raises(ConfigError, match=message):
            Reproducer(quadpipe.Dataset(finished), wrong).check(64)
        assert time.monotonic() - started < 5
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / "train-000000.tar").write_bytes(b"")
    done = run_cli("verify", copy, "--deep", "--in", images / "zebra")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_listing_that_was_changed_is_a_finding(finished, images, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / ".quadpipe" / "listing" / "val" / "0000" / "000000.jsonl").write_text("")
    assert any("000000.jsonl was changed" in line for line in findings(copy, images))


def test_scores_of_a_network_are_recomputed_in_the_same_batches(
    images, tmp_path, shufflenet_weights
):
    out = tmp_path / "out"
    options: dict[str, Any] = {**OPTIONS, "scorer": "feature", "scorer_weights": shufflenet_weights}
    quadpipe.tokenize(images, out, in_process=True, max_rejected="20%", **options)
    assert findings(out, images, scorer_weights=shufflenet_weights) == []
    other = tmp_path / "other.pth"
    import torch

    state = torch.load(shufflenet_weights, weights_only=True)
    state["conv1.0.weight"] += 1
    torch.save(state, other)
    with pytest.raises(ConfigError, match="the scorer's weights have sha256"):
        Reproducer(quadpipe.Dataset(out), images, scorer_weights=other)


def test_maps_are_passed_to_the_scorer_that_needs_them(images, finished, tmp_path):
    maps = tmp_path / "maps"
    for image in images.rglob("*.jpg"):
        path = (maps / image.relative_to(images)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(len(image.name)).random((16, 16), np.float32))
    out = tmp_path / "out"
    options: dict[str, Any] = {**OPTIONS, "views": 1, "scorer": "precomputed"}
    quadpipe.tokenize(images, out, in_process=True, max_rejected="20%", maps=maps, **options)
    assert findings(out, images, maps=maps) == []
    for dataset, given in ((out, None), (finished, maps)):
        with pytest.raises(ConfigError, match="--maps is for precomputed, which needs it"):
            Reproducer(quadpipe.Dataset(dataset), images, maps=given)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_dataset_that_this_machine_cannot_reproduce_is_refused(finished, images, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    plan = copy / ".quadpipe" / "plan.json"
    edit(plan, tokenizer_version=99)
    with pytest.raises(ConfigError, match="was made by tokenizer version 99, this is"):
        Reproducer(quadpipe.Dataset(copy), images)
    shutil.copy(finished / ".quadpipe" / "plan.json", plan)
    edit(plan, imaging_library={"name": "Pillow", "version": "1"})
    with pytest.raises(JobError, match="the plan was made with Pillow 1"):
        Reproducer(quadpipe.Dataset(copy), images)
    edit(plan, splits={"train": {"inputs": "many"}})
    with pytest.raises(ShardError, match="plan.json cannot be used"):
        Reproducer(quadpipe.Dataset(copy), images)
    plan.unlink()
    with pytest.raises(ConfigError, match="plan.json is missing; it records how"):
        Reproducer(quadpipe.Dataset(copy), images)


def test_a_hostile_listing_does_not_lead_outside_the_source(finished, images, tmp_path):
    """Its checksums are forged too, so that it can name any file."""
    import hashlib

    copy = shutil.copytree(finished, tmp_path / "copy")
    listing = copy / ".quadpipe" / "listing" / "val" / "0000" / "000000.jsonl"
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    rows[0][0] = "../../etc/passwd"
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    listing.write_bytes(data)
    plan = copy / ".quadpipe" / "plan.json"
    document = json.loads(plan.read_text())
    document["splits"]["val"]["listing"] = [hashlib.sha256(data).hexdigest()]
    plan.write_text(json.dumps(document))
    assert any("leads out of" in line and "is not read" in line for line in findings(copy, images))


def test_a_hostile_backbone_is_not_called(finished, images, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for name in ("dataset.json", ".quadpipe/plan.json"):
        edit_json(copy / name, tokenizer__scorer="feature", tokenizer__backbone="os:abort")
        edit_json(copy / name, fingerprint=None)
    with pytest.raises(
        ConfigError, match="with backbone os:abort, a user's own code; if you trust it"
    ):
        Reproducer(quadpipe.Dataset(copy), images)


def test_the_command_prints_what_it_compared(finished, images, tmp_path, jpeg):
    done = run_cli("verify", finished, "--deep", "--in", images, "--inputs", "1000")
    assert done.returncode == 0, done.stderr
    assert "intact, 38 samples checked, 23 inputs retokenized" in done.stdout
    changed = shutil.copytree(images, tmp_path / "images")
    for path in changed.rglob("*.jpg"):
        path.write_bytes(jpeg(3))
    done = run_cli("verify", finished, "--deep", "--in", changed, "--inputs", "3")
    assert done.returncode == 1
    assert "when retokenized" in done.stdout
    assert "inputs differ: the source was changed after the dataset was made" in done.stderr
    assert "delete" not in done.stdout + done.stderr
    done = run_cli("verify", finished, "--deep")
    assert done.returncode == 2
    assert "--deep needs --in" in done.stderr
    done = run_cli("verify", finished, "--in", images)
    assert done.returncode == 2
    assert "need --deep" in done.stderr
    done = run_cli("verify", finished, "--deep", "--in", images, "--inputs", "0")
    assert done.returncode == 2
    assert "inputs 0 is below 1" in done.stderr
