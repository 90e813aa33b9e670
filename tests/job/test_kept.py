"""Kept members in shards: captions, and boxes and masks that follow the crop of each view."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from painted import KEPT, OPTIONS, assert_painted, inside, make_source, members, put_together
from PIL import Image
from source_files import make_tar, write

import quadpipe
from quadpipe.cli import commands
from quadpipe.errors import ConfigError, ShardError
from quadpipe.job.plan import ShardId, read_inputs, read_plan
from quadpipe.job.reproduce import Reproducer
from quadpipe.shards.summary import summarize
from quadpipe.shards.verify import verify


def tokenize(source: Path, out: Path, **options: object) -> quadpipe.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quadpipe.tokenize(source, out, **OPTIONS | options)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("kept") / "source")


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "out"
    tokenize(source, out, views=3, **KEPT)
    return out


def test_members_are_in_every_view_and_missing_ones_stay_missing(finished):
    dataset = quadpipe.Dataset(finished)
    kinds = {"txt": "bytes", "original.json": "bytes", "bbox.json": "boxes", "seg.png": "mask"}
    assert dataset.manifest.members == kinds == summarize(dataset)["members"]
    for view in range(3):
        samples = list(dataset.samples("train", view))
        assert len(samples) == 8
        for number, sample in enumerate(samples):
            expected = sorted(kinds.keys() - ({"txt"} if number == 1 else set()))
            assert list(sample.extra) == expected
            assert sample.extra["original.json"] == b'{"n": %d}' % number
            assert sample.extra.get("txt") in (b"caption %d" % number, None)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_boxes_and_masks_are_where_the_tokens_show_them(resize, source, finished, tmp_path):
    out = finished
    if resize == "squash":
        out = tmp_path / "out"
        tokenize(source, out, resize=resize, **KEPT)
    seen = 0
    for sample in quadpipe.Dataset(out).samples("train"):
        image = put_together(sample.mosaic.leaves().tokens, sample.mosaic.leaves().boxes)
        box, corner = json.loads(sample.extra["bbox.json"])
        assert_painted(image, box)
        mask = np.asarray(Image.open(io.BytesIO(sample.extra["seg.png"])))
        np.testing.assert_array_equal(mask, inside(box, (48, 48)) * 7)
        seen += corner is None
    assert bool(seen) == (resize == "crop")


def test_a_dataset_with_members_is_intact_and_can_be_made_again(source, finished):
    dataset = quadpipe.Dataset(finished)
    assert list(verify(dataset)) == []
    findings = list(Reproducer(dataset, source).check(1000))
    assert sum(count for count, _ in findings) == 8
    assert [line for _, lines in findings for line in lines] == []
    plan = read_plan(dataset.folder)
    assert plan.members == dataset.manifest.members
    assert plan.config.dataset.keep == ("txt", "json")


def test_plain_webdataset_reads_members(finished):
    import webdataset

    tars = str(finished / "train-000000.tar")
    first = next(iter(webdataset.WebDataset(tars, shardshuffle=False).decode("pil")))
    assert first["txt"] == "caption 0"
    assert first["original.json"] == {"n": 0}
    assert len(first["bbox.json"]) == 2
    assert first["seg.png"].size == (48, 48)


def test_bytes_without_members_are_as_before(source, tmp_path):
    tokenize(source, tmp_path / "out")
    plan = json.loads((tmp_path / "out" / ".quadpipe" / "plan.json").read_text())
    assert "members" not in plan
    assert not {"keep", "boxes", "masks"} & plan["dataset"].keys()
    rows = (tmp_path / "out" / ".quadpipe/listing/train/0000/000000.jsonl").read_text()
    assert all(len(json.loads(row)) == 5 for row in rows.splitlines())


def test_another_selection_of_members_is_another_plan(source, finished):
    with pytest.raises(
        ConfigError, match=r'planned differently: dataset.keep was \["txt", "json"\]'
    ):
        tokenize(source, finished, views=3, **KEPT | {"keep": ("txt",)})


def test_bad_boxes_and_masks_reject_their_image_only(tmp_path):
    sample = members(60, 60, (10, 10, 40, 40))
    other = members(60, 61, (10, 10, 40, 40))
    make_tar(
        tmp_path / "x.tar",
        *((f"a.{name}", data) for name, data in sample.items()),
        *((f"b.{name}", data) for name, data in (sample | {"bbox.json": b"[1]"}).items()),
        *((f"c.{name}", data) for name, data in (sample | {"seg.png": other["seg.png"]}).items()),
        *((f"d.{name}", data) for name, data in (sample | {"png": b"x", "bbox.json": b""}).items()),
    )
    kept = {"boxes": ("bbox.json",), "masks": ("seg.png",)}
    tokenize(tmp_path / "x.tar", tmp_path / "out", max_rejected="3", **kept)
    rejects = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    reasons = {row["path"]: row["reason"] for row in map(json.loads, rejects)}
    assert reasons == {
        "x.tar/b.png": "bad_boxes",
        "x.tar/c.png": "bad_mask",
        "x.tar/d.png": "not_an_image",
    }
    assert len(list(quadpipe.Dataset(tmp_path / "out").samples("train"))) == 1


def test_captions_of_a_list_and_a_changed_one(tmp_path):
    picture = members(60, 50, (10, 10, 40, 40))["png"]
    write(tmp_path, "data/a.png", "else/b.png", data=picture)
    path = tmp_path / "data" / "list.csv"
    path.write_text('path,caption,box\na.png,"a, b","[[1,2,30,40]]"\n../else/b.png,ü,[]\n')
    kept = {"keep": ("caption",), "boxes": ("box",)}
    dataset = tokenize(path, tmp_path / "out", seed=3, **kept)
    found = {sample.info["path"]: sample.extra for sample in dataset.samples("train")}
    assert found["b.png"] == {"box.json": b"[]", "caption.txt": "ü".encode()}
    assert found["a.png"]["caption.txt"] == b"a, b"
    assert [line for _, lines in Reproducer(dataset, path).check(9) for line in lines] == []
    path.write_text(path.read_text().replace("ü", "other"))
    with pytest.raises(ConfigError, match="the inputs .* or kept members changed"):
        tokenize(path, tmp_path / "out", seed=3, **kept)


def test_a_listing_with_members_that_are_not_in_the_plan_is_refused(finished, monkeypatch):
    folder = quadpipe.Dataset(finished).folder
    plan = read_plan(folder)
    object.__setattr__(plan, "members", {"txt": "bytes"})
    with pytest.raises(ShardError, match="holds a row that is not an input"):
        read_inputs(folder, plan, ShardId(split="train", index=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("T T",)}, "'t t' cannot be the name of a member; give letters from a to z"),
        ({"keep": ("TXT", "txt")}, "keep, boxes and masks name 'txt' twice"),
        ({"keep": ("../txt",)}, "cannot be the name of a member"),
        ({"keep": ("a", "a")}, "name 'a' twice; name it once"),
        ({"keep": ("a.json",), "boxes": ("a.json",)}, "name 'a.json' twice"),
        ({"keep": tuple(f"a{n}" for n in range(17))}, "17 members are to be kept, more than 16"),
        ({"keep": "txt"}, "keep must be a list, not 'txt'"),
    ],
)
def test_names_that_members_cannot_have_are_refused(options, message, source, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tokenize(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_not_kept_before_and_after(source, tmp_path):
    options = [
        word
        for name, value in OPTIONS.items()
        for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)]))
    ]
    given = ["tokenize", "--in", str(source), "--out", str(tmp_path / "out"), *options]
    ran = CliRunner().invoke(commands, [*given, "--keep", "txt, id"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    kinds = "(boxes: --boxes, masks: --masks)"
    line = f"note     not kept: bbox.json (8), json (8); --keep bbox.json,json keeps them {kinds}\n"
    assert ran.output.count(line) == 2
    assert ran.output.count("note     txt is missing in 1 of 8 images\n") == 2
    assert "members     id, txt\n" in ran.output
    with pytest.warns(UserWarning, match="not kept: bbox.json"):
        quadpipe.tokenize(source, tmp_path / "again", **OPTIONS)


def test_samples_are_looked_at_whose_members_are_larger_than_their_mosaics(tmp_path, monkeypatch):
    picture = members(60, 60, (10, 10, 40, 40))["png"]
    contents = [(f"{n}.{name}", data) for n in range(3)
                for name, data in (("png", picture), ("txt", bytes(400_000)))]  # fmt: skip
    make_tar(tmp_path / "x.tar", *contents)
    dataset = tokenize(tmp_path / "x.tar", tmp_path / "out", keep=("txt",))
    monkeypatch.setattr("quadpipe.shards.summary.BYTES_LOOKED_AT", 1000)
    assert summarize(dataset)["splits"]["train"]["looked_at"] == 3
