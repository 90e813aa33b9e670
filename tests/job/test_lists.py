"""Lists of paths: images outside the list's folder, and images that are listed twice."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_runs import SMALL

import quadpipe
from quadpipe.cli.gallery import exhibits
from quadpipe.errors import ConfigError, JobError, RejectError, TooManyRejectsError
from quadpipe.job import Job, JobConfig, decoding
from quadpipe.job.reproduce import Reproducer
from quadpipe.shards.verify import verify

OPTIONS = SMALL | {"samples_per_shard": 4, "score_batch": 3, "max_rejected": "50%"}
PEOPLE = ("alice", "bob", "carol")


def tokenize(source: Path, out: Path, **options: Any) -> quadpipe.Dataset:
    return quadpipe.tokenize(source, out, **OPTIONS | options)


@pytest.fixture
def home(tmp_path, jpeg) -> Path:
    """A list of images of three people, with the same names; one image is broken."""
    home = tmp_path / "home"
    lines = []
    for number in range(4):
        for person in PEOPLE:
            path = home / person / "private" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            broken = (person, number) == ("bob", 2)
            path.write_bytes(b"" if broken else jpeg(len(lines), (80, 70)))
            given = str(path) if person == "carol" else f"../{person}/private/{number}.jpg"
            lines.append(f"{given},{person == 'bob':d}\n")
    (home / "lists").mkdir()
    (home / "lists" / "list.csv").write_text("".join(lines))
    return home


def findings(dataset: quadpipe.Dataset, source: Path) -> list[str]:
    return [line for _, lines in Reproducer(dataset, source).check(1000) for line in lines]


def test_a_dataset_does_not_name_folders_of_images_outside_the_list(home, tmp_path, files_of):
    path = home / "lists" / "list.csv"
    dataset = tokenize(path, tmp_path / "out")
    for name, data in files_of(tmp_path / "out").items():
        assert not any(word.encode() in data for word in (*PEOPLE, "private", "home")), name
        assert b"../" not in data, name
    samples = list(dataset.samples("train"))
    assert sorted(sample.info["path"] for sample in samples) == sorted(
        f"{number}.jpg" for row, number in enumerate(sorted("0123" * 3)) if row != 7
    )
    assert sorted(sample.info["row"] for sample in samples) == [*range(1, 8), *range(9, 13)]
    for sample in samples:
        assert sample.info["path"] == f"{(sample.info['row'] - 1) // 3}.jpg"
        assert sample.label == (sample.info["row"] % 3 == 2)
    (rejected,) = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    row = json.loads(rejected)
    assert (row["path"], row["row"], row["reason"]) == ("2.jpg", 8, "empty")
    assert list(verify(dataset)) == []
    assert findings(dataset, path) == []


def test_the_location_of_listed_images_does_not_change_the_bytes(home, tmp_path, files_of):
    """Neither do the names and order of their folders, nor how the list spells them."""
    tokenize(home / "lists" / "list.csv", tmp_path / "out")
    moved = tmp_path / "zoe" / "of" / "list.csv"
    moved.parent.mkdir(parents=True)
    for number, person in enumerate(PEOPLE):
        shutil.copytree(home / person, tmp_path / f"{9 - number}")
    text = (home / "lists" / "list.csv").read_text()
    for number, person in enumerate(PEOPLE):
        text = text.replace(str(home / person), f"../{person}")
        text = text.replace(f"../{person}", f"../../{9 - number}")
    moved.write_text(text)
    tokenize(moved, tmp_path / "moved")
    assert files_of(tmp_path / "moved") == files_of(tmp_path / "out")


def test_workers_read_images_outside_the_list_too(home, tmp_path, files_of):
    tokenize(home / "lists" / "list.csv", tmp_path / "out")
    tokenize(home / "lists" / "list.csv", tmp_path / "by-ray", in_process=False, workers=2)
    assert files_of(tmp_path / "by-ray") == files_of(tmp_path / "out")


def test_a_job_over_images_outside_the_list_resumes(home, tmp_path, files_of):
    path = home / "lists" / "list.csv"
    with pytest.raises(TooManyRejectsError):
        tokenize(path, tmp_path / "out", max_rejected="0")
    (tmp_path / "out" / "train-000001.tar").unlink()
    tokenize(path, tmp_path / "out")
    tokenize(path, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_verify_deep_finds_which_image_of_a_shared_name_has_changed(home, tmp_path, jpeg):
    path = home / "lists" / "list.csv"
    dataset = tokenize(path, tmp_path / "out")
    (home / "bob" / "private" / "2.jpg").write_bytes(jpeg(50, (80, 70)))
    (home / "carol" / "private" / "3.jpg").write_bytes(jpeg(51, (80, 70)))
    found = findings(dataset, path)
    assert len(found) == 2
    assert (
        "2.jpg: was rejected (empty: the file has no bytes), is a sample when retokenized" in found
    )
    assert sum("3.jpg gives other bytes when retokenized" in line for line in found) == 1


def test_a_reject_applies_to_its_row_not_to_other_images_of_its_name(home, tmp_path, monkeypatch):
    """The first is rejected as after a crash of its decoder; the others are still decoded."""
    path = home / "lists" / "list.csv"
    first = (home / "alice" / "private" / "0.jpg").read_bytes()
    decode = decoding.decode_views

    def deadly(plan, encoded):
        if encoded.data == first:
            raise RejectError("crashed_decoder", "the decoder crashes on it")
        return decode(plan, encoded)

    monkeypatch.setattr(decoding, "decode_views", deadly)
    tokenize(path, tmp_path / "out", samples_per_shard=12)
    monkeypatch.undo()
    (tmp_path / "out" / "train-000000.tar").unlink()
    dataset = tokenize(path, tmp_path / "out", samples_per_shard=12)
    rows = [sample.info["row"] for sample in dataset.samples("train")]
    assert sorted(rows) == [*range(2, 8), *range(9, 13)]
    assert findings(dataset, path) == []


def test_images_outside_the_list_have_no_maps(home, tmp_path):
    (tmp_path / "maps").mkdir()
    with pytest.raises(TooManyRejectsError, match="11 no_map, 1 empty|12 no_map"):
        tokenize(
            home / "lists" / "list.csv",
            tmp_path / "out",
            scorer="precomputed",
            maps=tmp_path / "maps",
        )


def test_show_does_not_confuse_images_outside_the_list_with_those_inside(home, tmp_path):
    path = home / "lists" / "list.csv"
    dataset = tokenize(path, tmp_path / "out")
    for number in range(4):
        shutil.copy(home / "alice" / "private" / "0.jpg", home / "lists" / f"{number}.jpg")
    with pytest.raises(ConfigError, match="is outside the folder of its list; omit --in"):
        exhibits(dataset, "train", 1, path)


@pytest.mark.parametrize(
    "row",
    [
        *(["x.jpg"], ["x.jpg", "0"], [1, 1], ["x.jpg", 0, 1.5], ["x.jpg", 0, True]),
        *(["x.jpg", 0, [], 1, 1], ["x.jpg", 0, "1"], {}, 5),
    ],
)
def test_a_listing_with_other_rows_is_refused(row, home, tmp_path):
    path = home / "lists" / "list.csv"
    dataset = tokenize(path, tmp_path / "out", samples_per_shard=12)
    listing = tmp_path / "out" / ".quadpipe" / "listing" / "train" / "0000" / "000000.jsonl"
    rows = [json.dumps(row), *listing.read_text().splitlines()[1:]]
    listing.write_text("".join(f"{line}\n" for line in rows))
    plan = tmp_path / "out" / ".quadpipe" / "plan.json"
    document = json.loads(plan.read_text())
    document["splits"]["train"]["listing"] = [hashlib.sha256(listing.read_bytes()).hexdigest()]
    plan.write_text(json.dumps(document))
    (line,) = findings(dataset, path)
    assert "000000.jsonl holds a row that is not an input" in line


def test_an_image_that_is_listed_twice_is_in_one_split(tmp_path, jpeg):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    spellings = ("{}", "./{}", "sub/../{}", f"{images}/{{}}")
    rows = []
    for number in range(20):
        (images / f"{number}.jpg").write_bytes(jpeg(number, (80, 70)))
        rows += [spelling.format(f"{number}.jpg") for spelling in spellings]
    (images / "list.csv").write_text("".join(f"{row}\n" for row in rows))
    dataset = tokenize(images / "list.csv", tmp_path / "out", val_share=0.5)
    train, val = (
        {sample.info["path"] for sample in dataset.samples(split)} for split in ("train", "val")
    )
    assert (len(train), len(val), train & val) == (10, 10, set())
    preview = Job(
        images / "list.csv",
        tmp_path / "other",
        JobConfig.from_options(**OPTIONS),
    ).preview()
    assert preview.plan.inputs == 20
    assert preview.skipped == {"a row of an image that is listed already": 60}


def test_a_val_share_of_images_that_are_read_twice_through_links_is_refused(image_folder, tmp_path):
    images = shutil.copytree(image_folder, tmp_path / "images")
    (images / "zebra" / "more").symlink_to("../flower")
    with pytest.raises(ConfigError, match="8 files read more than once, through links in the"):
        tokenize(images, tmp_path / "out", val_share=0.2)
    with pytest.warns(UserWarning, match="8 files read more than once"):
        assert tokenize(images, tmp_path / "out").manifest.splits["train"].inputs == 31


def test_a_list_that_changes_during_the_job_fails_and_loses_nothing(
    home, tmp_path, files_of: Callable[[Path], dict[str, bytes]]
):
    path = home / "lists" / "list.csv"
    tokenize(path, tmp_path / "whole")
    kept = path.read_bytes()

    class Change(quadpipe.job.Progress):
        def planned(self, preview: object) -> None:
            path.write_bytes(b"../alice/private/9.jpg,0\n" + kept)

    message = "3 of 3 shards could not be made(.|\n)*list.csv was changed while the job ran"
    with pytest.raises(JobError, match=message):
        tokenize(path, tmp_path / "out", progress=Change())
    path.write_bytes(kept)
    tokenize(path, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
