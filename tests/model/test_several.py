"""Training on several datasets: resuming, what is refused, and evaluation on one of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from command_line import run_cli
from job_runs import tokenize_small
from runs import SMALL, RecordedProgress, command, losses, stop_after

import quadpipe
from quadpipe.cli import commands
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import Cache, CachedFolder, LocalFolder
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.checks import warn_of_differences
from quadpipe.model.evaluate import evaluate, find_differences
from quadpipe.model.predict import Predictor
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.signals import InterruptedTrainingError
from quadpipe.model.step import NonFiniteLossError
from quadpipe.shards.joined import how_made, open_datasets, told_apart

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = SMALL | {
    "tokens": "16-40", "epochs": 2, "batch_size": 16, "weights": (0.7, 0.3), "repeat": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def other(image_folder, tmp_path_factory) -> Path:
    """23 photographs in the classes flower, temple and zebra; jpg, and another resize."""
    out = tmp_path_factory.mktemp("several") / "other"
    tokenize_small(image_folder, out, codec="jpg", resize="squash", val_share=0.2, license="mit")
    return out


@pytest.fixture(scope="module")
def both(shards, other, tmp_path_factory) -> Path:
    """A run on `shards`, which has no zebras, and `other`."""
    run = tmp_path_factory.mktemp("both") / "run"
    train([shards, other], run, **OPTIONS)
    return run


def test_an_interrupted_run_continues_to_the_same_losses(
    shards, other, both, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(InterruptedTrainingError):
            train([shards, other], run, **OPTIONS)
    assert len(losses(run)) < len(losses(both))
    moved = shutil.copytree(other, tmp_path / "moved")
    train([shards, moved], run, **OPTIONS | {"workers": 2}, resume=True)
    assert losses(run) == losses(both)
    one, two = (RunFolder(place).weights("last.safetensors")[0] for place in (run, both))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_other_datasets_or_weights_are_not_resumed(shards, other, both):
    for places, change, message in (
        (
            [shards, other],
            {"weights": (0.5, 0.5)},
            r"train\.weights was \[0\.7, 0\.3\], now \[0\.5",
        ),
        ([shards, other], {"repeat": False}, r"train\.repeat was True, now False"),
        (
            [shards],
            {"weights": None, "repeat": False},
            r"on other datasets: they were \['.*', '.*'\], now one; resume with the same ones",
        ),
        ([other, shards], {}, r"they were \['.*', '.*'\], now \['.*', '.*'\]; resume"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(places, both, **OPTIONS | change, resume=True)


def test_the_run_names_its_datasets_and_their_joined_classes(shards, other, both):
    document = json.loads((both / "config.json").read_text())
    manifests = [quadpipe.Dataset(place).manifest for place in (shards, other)]
    assert [d["fingerprint"] for d in document["datasets"]] == [m.fingerprint for m in manifests]
    assert document["datasets"][1]["license"] == "mit"
    assert document["train"]["weights"] == [0.7, 0.3]
    assert document["classes"] == ["flower", "temple", "zebra"]
    assert (both / "gains.npy").exists()
    config = RunFolder(both).config()
    assert all(find_differences(config, manifest) == [] for manifest in manifests)


def test_differences_of_the_datasets_are_told(shards, other, tmp_path):
    recorded = RecordedProgress()
    options = OPTIONS | {"epochs": 1, "weights": None, "repeat": False}
    train([shards, other], tmp_path / "run", **options, progress=recorded)
    (line,) = (line for line in recorded.warnings if "made differently" in line)
    for text in (
        "codec.name raw and jpg",
        "resize crop and squash",
    ):
        assert text in line
    (score,) = recorded.scores
    assert list(score.by_dataset) == [str(shards), str(other)]
    sizes = [quadpipe.Dataset(place).split("val") for place in (shards, other)]
    assert score.samples == sum(info.samples // info.views for info in sizes)
    model = RunFolder(tmp_path / "run").model(CPU)
    for place, top1 in score.by_dataset.items():
        loader = Loader(
            place, "val", batch_size=16, tokens=40, classes=["flower", "temple", "zebra"]
        )
        assert evaluate(model, loader, CPU).top1 == top1


def test_a_run_is_evaluated_on_one_dataset_by_the_names_of_its_classes(
    both, other, shards, tmp_path, stderr_of, capsys
):
    assert "has 2 of the 3 classes of" in stderr_of("eval", both, shards, "--tokens", 40)
    zebras = tmp_path / "zebras"
    quadpipe.copy(other, zebras, classes="zebra", in_process=True)  # whose index was 2, and is 0
    commands.main(
        ["eval", str(both), str(zebras), "--tokens", "40", "--split", "train", "--json"],
        standalone_mode=False,
    )
    (score,) = json.loads(capsys.readouterr().out)
    predictor = Predictor(RunFolder(both), CPU, tokens=40)
    samples = list(quadpipe.Dataset(zebras).samples("train"))
    model = RunFolder(both).model(CPU)
    right = 0
    for sample in samples:
        leaves = sample.mosaic.leaves(40)
        logits, _ = model(
            torch.from_numpy(leaves.tokens)[None], torch.from_numpy(leaves.boxes)[None]
        )
        right += int(logits.argmax()) == 2
    assert score["top1"] == right / len(samples)
    assert predictor(next((shards.parent / "images").rglob("*.png"))).tokens == 40


def test_images_of_two_datasets_share_tokens_in_training(shards, made_otherwise, tmp_path):
    options = SMALL | {"tokens": None, "mean_tokens": 28, "epochs": 1, "batch_size": 16}
    second = made_otherwise(tokens=28)
    train([shards, second], tmp_path / "run", **options, weights=(1.0, 2.0))
    run = RunFolder(tmp_path / "run")
    table = run.gains()
    assert table is not None
    assert table.shape[1] == (28 - 4) // 3
    assert run.config().tokenizer.tokens == 28
    with pytest.raises(ConfigError, match="cannot be compared, .* scored differently: scorer"):
        other = made_otherwise(scorer="laplacian", limit=12)
        train([shards, other], tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_samples_of_a_loss_that_is_not_finite_are_named_with_their_dataset(shards, other, tmp_path):
    changed = {"clip_grad": 0.0, "warmup_epochs": 0.0, "lr": 1e6, "epochs": 9}
    with pytest.raises(NonFiniteLossError, match=r"Samples: 0.* of dataset [12]"):
        train([shards, other], tmp_path / "run", **OPTIONS | changed)


def test_each_dataset_has_its_expected_fingerprint(shards, other):
    prints = [quadpipe.Dataset(place).manifest.fingerprint[:12] for place in (shards, other)]
    assert len(open_datasets([shards, other], None, ",".join(prints))) == 2
    with pytest.raises(ShardError, match="is not the expected dataset"):
        open_datasets([shards, other], None, ",".join(prints[::-1]))
    with pytest.raises(ConfigError, match="expect names 1 fingerprint for 2 datasets; give one"):
        open_datasets([shards, other], None, prints[0])


def test_a_cache_is_for_the_datasets_at_urls(shards, other, tmp_path):
    fsspec.filesystem("memory").put(str(other), "/several", recursive=True)
    cache = Cache(folder=tmp_path, bytes=10**9)
    opened = open_datasets([shards, "memory://several"], cache)
    assert [type(dataset.folder) for dataset in opened] == [LocalFolder, CachedFolder]
    with pytest.raises(ConfigError, match="a cache is for datasets at URLs, and none is given"):
        open_datasets([shards, other], cache)


def test_datasets_may_be_open_and_none_is_refused(shards, other):
    opened = [quadpipe.Dataset(place) for place in (shards, other)]
    assert open_datasets(opened) == opened
    assert open_datasets(opened[0]) == opened[:1]
    with pytest.raises(ShardError, match="is not the expected dataset"):
        open_datasets(opened[0], expect="0" * 12)
    with pytest.raises(ConfigError, match="no dataset is given; give one or more"):
        train([], "never")


def test_a_dataset_copied_from_another_is_told(shards, tmp_path):
    copies = [tmp_path / name for name in ("copy", "second")]
    quadpipe.copy(shards, copies[0], tokens=28, in_process=True)
    quadpipe.copy(copies[0], copies[1], tokens=16, in_process=True)
    said: list[str] = []
    warn_of_differences([quadpipe.Dataset(place) for place in (copies[1], shards)], said.append)
    assert f"{copies[1]} was copied from {shards}, so samples that both have come more" in said[-1]
    said.clear()
    warn_of_differences([quadpipe.Dataset(place) for place in (*copies, shards)], said.append)
    assert sum("was copied from" in line for line in said) == 3


def test_another_imaging_library_is_told_and_more_than_eight_differences_are_cut(shards):
    manifest = quadpipe.Dataset(shards).manifest
    library = manifest.imaging_library | {"version": "1.2.3"}
    other = how_made(replace(manifest, imaging_library=library))
    assert told_apart(how_made(manifest), other).startswith("imaging_library ")
    assert "1.2.3" in told_apart(how_made(manifest), other)
    one, two = ({f"{n}": f"{side}{n}" for n in range(9)} for side in "ab")
    assert told_apart(one, two).endswith("; 7 a7 and b7; ..")
    assert told_apart(one, two | {"8": "a8"}).endswith("; 7 a7 and b7")


def test_a_run_without_gains_says_why(both, tmp_path):
    run = RunFolder(shutil.copytree(both, tmp_path / "run"))
    (tmp_path / "run" / "gains.npy").unlink()
    with pytest.raises(ConfigError, match=r"needs: a dataset of its training .*; give --tokens, "):
        run.threshold(28, run.config().limits())


def test_the_command_takes_several_datasets(shards, other, tmp_path, capsys):
    options = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items() if k != "epochs"]
    commands.main(
        ["train", str(shards), str(other), "--out", str(tmp_path / "run"), "--weights", "0.7,0.3",
         "--epochs", "1", *options],
        standalone_mode=False,
    )  # fmt: skip
    output = capsys.readouterr()
    assert f"data     70.0% of {shards}, which has 59 samples" in output.out
    size = quadpipe.Dataset(other).split("train").samples
    assert f"data     30.0% of {other}, which has {size} samples" in output.out
    assert f"({shards} " in output.out
    assert "were made differently: codec.name" in output.err
    evals = [f"quadpipe eval {tmp_path / 'run'} {place}" for place in (shards, other)]
    assert f"done; {'; '.join(evals)}\n" in output.out


def test_a_head_that_is_not_loaded_is_reported_once(other, undisturbed, tmp_path):
    changed = {"model": None, "epochs": 1}
    given = command(other, tmp_path / "run", "--init", str(undisturbed), changed=changed)
    done = run_cli(*given)
    assert done.returncode == 0, done.stderr
    assert "init     head not loaded: other classes\n" in done.stdout
    assert " is new" not in done.stdout
