"""Every command as a person types it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run_cli as run
from PIL import Image

from quadpipe.cli import commands
from quadpipe.errors import QuadpipeError

OPTIONS = ("--in-process", "--val-share", 0.2, "--samples-per-shard", 8, "--name", "Temples")


@pytest.fixture(scope="module")
def shards(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "shards"
    done = run("tokenize", "--in", image_folder, "--out", out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "inputs   23 images, 3 classes: train 18, val 5" in done.stderr
    assert "23 samples of about 104.7 kB" in done.stderr
    assert "100% 23 of 23 images" in done.stderr
    assert "dataset     Temples, 3 classes" in done.stdout
    return out


def test_a_job_with_nothing_left_prints_no_progress(shards, image_folder):
    done = run("tokenize", "--in", image_folder, "--out", shards, *OPTIONS)
    assert "done     23 inputs" in done.stderr
    assert "left" not in done.stderr


def test_help_names_the_commands():
    done = run("--help")
    assert done.returncode == 0
    for command in ("tokenize", "info", "verify", "show"):
        assert command in done.stdout
        assert "Usage: quadpipe" in run(command, "--help").stdout
    assert run("--version").stdout.startswith("quadpipe, version ")


def test_help_shows_the_defaults():
    text = " ".join(run("tokenize", "--help").stdout.split())
    for option in (
        "--tokens INTEGER Tokens per image; every smaller budget is stored with it. [default: 100]",
        "--image-size N|HxW Image size in pixels: 256, or HxW. [default: 256]",
        "[default: 0.35,1]",
        "[default: 1%]",
        "--seed INTEGER Seed of the order, the views and the random scorer. [default: 0]",
    ):
        assert option in text


def test_a_flag_of_an_earlier_version_works_and_is_not_in_the_help(tmp_path):
    text = run("train", "--help").stdout
    assert "--ema-decay" in text
    for old, message in (
        ("--ema", "ema_decay 2 is not from 0 to below 1"),
        ("--smoothing", "label_smoothing 2 is not from 0 to below 1"),
        ("--colour-jitter", "color_jitter 2 is not from 0 to 1"),
    ):
        assert f"{old} " not in text
        done = CliRunner().invoke(
            commands, ["train", "x", "--out", str(tmp_path / "run"), old, "2"]
        )
        assert isinstance(done.exception, QuadpipeError)
        assert message in str(done.exception)


def test_info_prints_text_or_json(shards):
    text = run("info", shards).stdout
    assert "budgets     16 to 100 in steps of 3 tokens" in text
    assert "train      18         0      1       18       3" in text
    summary = json.loads(run("info", shards, "--json").stdout)
    assert summary["splits"]["val"]["samples"] == 5


def test_verify_reports_a_whole_dataset_or_what_is_wrong(shards, tmp_path):
    done = run("verify", shards)
    assert "intact, 23 samples checked" in done.stdout
    assert "100%" in done.stderr
    for path in shards.iterdir():
        if path.is_file():
            os.link(path, tmp_path / path.name)
    (tmp_path / "val-000000.tar").unlink()
    done = run("verify", tmp_path)
    assert done.returncode == 1
    assert "val-000000.tar: missing" in done.stdout
    assert "1 problem" in done.stderr


def test_show_draws_an_image_at_several_budgets(image_folder, tmp_path):
    picture = next(image_folder.rglob("*.jpg"))
    done = run("show", picture, "--tokens", 64, "--tokens", 100, "--out", tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (16 + 3 * 528, 2 * (512 + 36) + 36 + 16)


def test_show_compares_scorers(image_folder, tmp_path):
    picture = next(image_folder.rglob("*.jpg"))
    np.save(tmp_path / "map.npy", np.eye(16))
    given = ("show", picture, "--tokens", 37, "--out", tmp_path / "x.png", "--scorer", "random")
    done = run(*given, "--scorer", "precomputed", "--map", tmp_path / "map.npy",
               "--scorer", "pixel-blur", "--seed", 3)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (16 + 4 * 528, 2 * (512 + 36) + 16)
    for options, message in (
        (("--class", "cat"), "--class does not apply to scorer random and entropy; omit it"),
        (("--backbone", "efficientnet-lite0"), "not random; omit it"),
        (("--scorer", "precomputed"), "needs an importance map of the image; give --map"),
    ):
        done = run(*given, "--scorer", "entropy", *options)
        assert done.returncode == 2, options
        assert message in done.stderr


def test_scorers_are_listed_with_options_and_costs():
    text = run("scorers").stdout
    assert "feature-saliency  where a network's features" in text
    assert "feature           change of a network's features when a patch is blurred" in text
    assert "By default efficientnet-lite0." in " ".join(text.split())
    assert "needs the class of each image, from the labels" in text
    assert "One of mse, cosine." in text
    rows = {row["name"]: row for row in json.loads(run("scorers", "--json").stdout)}
    assert rows["feature"]["uses_network"]
    assert rows["random"]["options"] == ["seed"]


def test_show_passes_class_and_map_to_the_scorer(image_folder, tmp_path):
    picture = next(image_folder.rglob("*.jpg"))
    np.save(tmp_path / "map.npy", np.eye(16))
    given = (picture, "--out", tmp_path / "x.png", "--tokens", 31)
    with_map = ("--scorer", "precomputed", "--map", tmp_path / "map.npy")
    assert run("show", *given, *with_map).returncode == 0
    assert run("show", *given, "--scorer", "grad-cam", "--class", "n11939491").returncode == 0
    for options, message in (
        (("--scorer", "grad-cam"), "scorer grad-cam needs the class of the image; give --class"),
        (("--scorer", "precomputed"), "needs an importance map of the image; give --map"),
        (("--class", "cat"), "--class does not apply to scorer saliency; omit it"),
        ((*with_map, "--class", "cat"), "--class does not apply to scorer precomputed; omit it"),
        (("--thresholds", "32:5"), "'32:5' is not SIDE=THRESHOLD,SIDE=THRESHOLD"),
        (("--thresholds", "32=5"), "give one for each size that can be split: 32=T,64=T"),
    ):
        done = run("show", *given, *options)
        assert done.returncode == 2, options
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    done = run("show", tmp_path, "--out", tmp_path / "x.png", "--class", "cat")
    assert "--class applies to an image file only; omit it" in done.stderr


def test_show_draws_a_dataset_with_or_without_its_images(shards, image_folder, tmp_path):
    done = run("show", shards, "--samples", 2, "--out", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    done = run("show", shards, "--samples", 2, "--split", "val", "--in", image_folder,
               "--out", tmp_path / "b.png")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as bare, Image.open(tmp_path / "b.png") as full:
        assert full.width - bare.width == 528
        assert full.height == bare.height


def test_a_dry_run_prints_the_plan_and_writes_nothing(image_folder, tmp_path):
    done = run("tokenize", "--in", image_folder, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "23 images, 3 classes" in done.stderr
    assert "2.4 MB in all" in done.stderr
    assert "free" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_the_shards_of_all_views(image_folder, tmp_path):
    arguments = ("--in", image_folder, "--out", tmp_path / "out", "--val-share", 0.2)
    options = ("--samples-per-shard", 8, "--views", 2, "--dry-run")
    done = run("tokenize", *arguments, *options)
    assert "shards   7, of up to 8 inputs" in done.stderr  # 2 x 3 of train, 1 of val


def test_too_many_rejects_exit_with_3(image_folder, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    arguments = ("tokenize", "--in", tmp_path / "images", "--out", tmp_path / "out", "--in-process")
    done = run(*arguments)
    assert done.returncode == 3
    assert "1 of 4 inputs were rejected (1 empty), more than 0; the first is bad.png" in done.stderr
    assert run(*arguments, "--max-rejected", "25%").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("tokenize", "--in", "x"), 2, "Missing option '--out'"),
        (("tokenize", "--in", "x", "--out", "y", "--tokns", "3"), 2, "No such option"),
        (("tokenize", "--in", "x", "--out", "y", "--tokens", "99"), 2, "use 97 or 100"),
        (("tokenize", "--in", "x", "--out", "y", "--tokens", "few"), 2, "'few' is not a valid int"),
        (
            ("tokenize", "--in", "x", "--out", "y", "--image-size", "1x2x3"),
            2,
            "neither a number nor",
        ),
        (("tokenize", "--in", "x", "--out", "y", "--view-scale", "1"), 2, "is not two numbers"),
        (("tokenize", "--in", "x", "--out", "y", "--scorer", "magic"), 2, "unknown scorer"),
        (("tokenize", "--in", "x", "--out", "y"), 1, "x does not exist; give a folder"),
        (("info", "."), 1, "is not a finished dataset"),
        (("verify", "nowhere"), 1, "is not a finished dataset"),
        (("show", "nowhere.jpg", "--out", "x.png"), 1, "nowhere.jpg does not exist"),
        (
            ("show", "text.jpg", "--out", "x.png"),
            1,
            "text.jpg cannot be decoded: not_an_image",
        ),
        (("show", ".", "--out", "x.gif"), 2, "x.gif does not end in .png"),
        (
            ("show", "text.jpg", "--out", "x.png", "--samples", "3"),
            2,
            "--samples applies to a dataset",
        ),
        (
            ("show", ".", "--out", "x.png", "--scorer", "random"),
            2,
            "--scorer applies to an image file",
        ),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_user_errors_are_one_line_without_a_traceback(arguments, code, message, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", 196), "holds 100 tokens, not 196"),
        (("--split", "test"), "has no split 'test'"),
        (("--samples", 0), "--samples 0 is below 1"),
        (("--in", "nowhere"), "nowhere does not exist"),
    ],
)
def test_show_refuses_what_a_dataset_cannot_show(shards, tmp_path, arguments, message):
    done = run("show", shards, "--out", tmp_path / "x.png", *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_warnings_about_the_source_are_printed_before_the_work(image_folder, tmp_path):
    wrapper = tmp_path / "data"
    wrapper.mkdir()
    (wrapper / "imagenet").symlink_to(image_folder)
    done = run("tokenize", "--in", wrapper, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "warning  all images are of one class, 'imagenet'; if its folder holds" in done.stderr
    names = tmp_path / "names.txt"
    names.write_text("zebra\nflower\ntemple\ncat\n")
    arguments = ("tokenize", "--in", image_folder, "--out", tmp_path / "out", "--dry-run")
    done = run(*arguments, "--classes", names)
    assert "inputs   23 images, 4 classes (1 without images): train 23" in done.stderr
    assert "warning  " not in done.stderr
    names.write_text("zebra\nflower\n")
    done = run(*arguments, "--classes", names)
    assert done.returncode == 1
    assert "1 of 3 classes are not among the 2 names" in done.stderr
    assert "'temple'; add them at its end" in done.stderr
    assert "Traceback" not in done.stderr
