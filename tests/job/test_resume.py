"""A job that is run again: resumed, compared with its plan, or refused."""

import json
import shutil
from pathlib import Path

import pytest
from job_runs import tokenize

import quadpipe
from quadpipe.errors import ConfigError, JobError, TooManyRejectsError
from quadpipe.job import Progress
from quadpipe.job.reproduce import Reproducer
from quadpipe.shards.verify import verify


class StopAfter(Progress):
    def __init__(self, shards: int) -> None:
        self.left = shards

    def shard_done(self, report: object) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_job_continues_to_the_same_bytes(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "whole")
    for shards in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            tokenize(image_folder, tmp_path / "out", progress=StopAfter(shards))
        assert not (tmp_path / "out" / "dataset.json").exists()
    done = []

    class Count(Progress):
        def planned(self, preview) -> None:
            done.append(preview.done)

    tokenize(image_folder, tmp_path / "out", progress=Count())
    assert done == [12]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_rerunning_a_finished_job_changes_nothing_and_keeps_an_edited_card(
    image_folder, tmp_path, files_of
):
    tokenize(image_folder, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("# Mine\n")
    before = files_of(tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.*")}
    tokenize(image_folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.*")} == times


def test_a_lost_or_truncated_shard_is_made_again(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "train-000002.tar").unlink()
    (tmp_path / "out" / "train-000003.tar").write_bytes(b"cut")
    (tmp_path / "out" / ".quadpipe/markers/train/0000/000004.json").write_text("{")
    tokenize(image_folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 64}, "tokenizer.tokens was 100, now 64"),
        ({"seed": 1}, "tokenizer.seed was 0, now 1"),
        ({"codec": "png"}, 'codec.name was "raw", now "png"'),
        ({"views": 2}, "splits.train.views was 1, now 2"),
        ({"name": None}, 'dataset.name was "Temples", now null'),
        ({"use_labels": False}, "classes were 3, now 0"),
    ],
)
def test_another_plan_is_refused_with_what_differs(image_folder, tmp_path, options, message):
    tokenize(image_folder, tmp_path / "out", name="Temples")
    with pytest.raises(ConfigError, match=f"was planned differently: .*{message}"):
        tokenize(image_folder, tmp_path / "out", **{"name": "Temples"} | options)


def test_another_name_or_license_changes_no_shard(images, tmp_path, files_of):
    (images / "zebra" / "bad.jpg").write_bytes(b"")
    texts = {"name": "Temples", "license": "mit"}
    with pytest.raises(TooManyRejectsError):
        tokenize(images, tmp_path / "out")
    for number in range(2):  # of an unfinished job, and of a finished one
        given = texts | {"name": f"Temples {number}"}
        stop = StopAfter(1)
        dataset = tokenize(images, tmp_path / "out", max_rejected="1", progress=stop, **given)
        assert dataset.manifest.name == f"Temples {number}"
        assert f"# Temples {number}" in (tmp_path / "out" / "README.md").read_text()
        assert list(verify(dataset)) == []
    assert dataset.manifest.revision == 2
    tokenize(images, tmp_path / "whole", max_rejected="1", **given)
    found, whole = files_of(tmp_path / "out"), files_of(tmp_path / "whole")
    changed = {name for name in whole if found.get(name) != whole[name]}
    assert changed == {"dataset.json", "croissant.json"}  # which hold the revision
    assert found.keys() == whole.keys()


def test_changed_inputs_are_refused(images, tmp_path):
    tokenize(images, tmp_path / "out")
    (images / "flower" / "00.jpg").rename(images / "flower" / "renamed.jpg")
    with pytest.raises(ConfigError, match="the inputs .files were added, removed, renamed"):
        tokenize(images, tmp_path / "out")


def test_temporary_files_of_an_interrupted_writer_are_removed(image_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tokenize(image_folder, out, progress=StopAfter(1))
    (out / ".quadpipe" / "tmp").mkdir(exist_ok=True)
    (out / ".quadpipe" / "tmp" / "train-000001.tar.99-abc").write_bytes(b"half")
    tokenize(image_folder, out)
    assert not (out / ".quadpipe" / "tmp").exists()


def test_a_damaged_plan_is_refused(image_folder, tmp_path):
    tokenize(image_folder, tmp_path / "out")
    (tmp_path / "out" / ".quadpipe" / "plan.json").write_text("{")
    with pytest.raises(
        quadpipe.errors.ShardError, match=r"plan\.json cannot be used: .*; choose another --out"
    ):
        tokenize(image_folder, tmp_path / "out")


def test_a_changed_listing_is_refused(image_folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tokenize(image_folder, tmp_path / "out", progress=StopAfter(1))
    listing = tmp_path / "out" / ".quadpipe" / "listing" / "train" / "0000" / "000000.jsonl"
    listing.write_bytes(listing.read_bytes().replace(b"zebra", b"horse"))
    with pytest.raises(JobError, match=r"000000\.jsonl was changed: its checksum is not the one"):
        tokenize(image_folder, tmp_path / "out")


def test_a_listing_without_a_plan_is_rewritten(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "whole")
    tokenize(image_folder, tmp_path / "out", val_share=0.3, limit=4)
    shutil.copytree(tmp_path / "out" / ".quadpipe", tmp_path / "cut" / ".quadpipe")
    (tmp_path / "cut" / ".quadpipe" / "plan.json").unlink()
    (tmp_path / "cut" / ".quadpipe" / "rejected.jsonl").unlink()
    tokenize(image_folder, tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_lost_shard_list_is_made_again(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "train.shards.jsonl").unlink()
    tokenize(image_folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def unfinished(source: Path, out: Path) -> Path:
    """The plan of a job that was stopped after writing it, as a document that may be edited."""

    class Stop(Progress):
        def shard_done(self, report: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(source, out, progress=Stop())
    return out / ".quadpipe" / "plan.json"


def test_a_plan_without_fields_of_a_later_version_is_resumed_with_their_defaults(
    image_folder, tmp_path, files_of
):
    tokenize(image_folder, tmp_path / "whole")
    plan = unfinished(image_folder, tmp_path / "out")
    document = json.loads(plan.read_text())
    del document["tokenizer"]["max_pixels"], document["dataset"]["limit"]
    plan.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="max_pixels was 89478485, now 100000"):
        tokenize(image_folder, tmp_path / "out", max_pixels=100_000)
    dataset = tokenize(image_folder, tmp_path / "out")
    found, expected = files_of(tmp_path / "out"), files_of(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == {".quadpipe/plan.json"}
    assert list(verify(dataset)) == []
    again = Reproducer(dataset, image_folder)
    assert [line for _, lines in again.check(3) for line in lines] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tokenizer", "new_option"), None),
        (("dataset", "new_option"), 1),
        (("codec", "new_option"), True),
        (("splits", "train", "new_option"), 1),
        (("new_option",), {}),
        (("scorer", "new_option"), 1),
        (("scorer", "parameters", "new_option"), 1),
        (("decode_margin",), 3),
    ],
)
def test_a_plan_with_unknown_fields_is_refused_with_their_names(
    image_folder, tmp_path, path, value
):
    dataset = tokenize(image_folder, tmp_path / "out", limit=4)
    plan = tmp_path / "out" / ".quadpipe" / "plan.json"
    document = json.loads(plan.read_text())
    inside = document
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    plan.write_text(json.dumps(document))
    name = ".".join(path)
    message = rf"by another version of quadpipe: .* {name}; use the version that planned"
    with pytest.raises(
        ConfigError, match=rf"{message}|planned differently: {name} was 1, now null"
    ):
        tokenize(image_folder, tmp_path / "out", limit=4)
    with pytest.raises(ConfigError, match=message):
        Reproducer(dataset, image_folder)
