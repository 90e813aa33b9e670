"""The job in process: what it writes, that it always writes the same, and how it fails."""

import errno
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from permissions import permissions_that_count
from PIL import Image

import quadpipe
from forging import edit_manifest
from quadpipe.cli.gallery import exhibits
from quadpipe.errors import (
    ConfigError,
    JobError,
    OutputError,
    SourceError,
    TooManyRejectsError,
)
from quadpipe.images.library import imaging_library
from quadpipe.job import Job, JobConfig, Progress, decoding
from quadpipe.job import shard as shard_module
from quadpipe.job.again import Again
from quadpipe.shards.verify import verify


def tokenize(source: Path, out: Path, **options: object) -> quadpipe.Dataset:
    return quadpipe.tokenize(source, out, **{"in_process": True, "samples_per_shard": 4, **options})


@pytest.fixture
def images(image_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def test_every_input_is_accounted_for(image_folder, tmp_path):
    manifest = tokenize(image_folder, tmp_path / "out").manifest
    split = manifest.splits["train"]
    assert (split.inputs, split.samples, split.rejected, split.shards) == (23, 23, 0, 6)
    paths = sorted(s.info["path"] for s in quadpipe.Dataset(tmp_path / "out").samples("train"))
    expected = sorted(p.relative_to(image_folder).as_posix() for p in image_folder.rglob("*.jpg"))
    assert paths == expected


def test_inputs_are_shuffled_by_the_seed(image_folder, tmp_path):
    def order(seed: int) -> list[str]:
        out = tmp_path / str(seed)
        return [s.info["path"] for s in tokenize(image_folder, out, seed=seed).samples("train")]

    first, second = order(0), order(1)
    assert sorted(first) == sorted(second)
    assert first != second != sorted(second)


def test_leaves_at_smaller_budgets_are_those_tokenized_at_them(image_folder, tmp_path):
    large = tokenize(image_folder, tmp_path / "196", tokens=196, limit=5)
    for budget in (64, 100):
        small = tokenize(image_folder, tmp_path / str(budget), tokens=budget, limit=5)
        for one, other in zip(large.samples("train"), small.samples("train"), strict=True):
            ours, theirs = one.mosaic.leaves(budget), other.mosaic.leaves()
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_view_0_is_the_same_however_many_views_there_are(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "1")
    tokenize(image_folder, tmp_path / "3", views=3)
    one, three = files_of(tmp_path / "1"), files_of(tmp_path / "3")
    for name in one:
        if name.endswith(".tar"):
            assert one[name] == three[name]
    assert sum(name.endswith(".tar") for name in three) == 18


def test_views_are_for_training_and_differ(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", views=2, val_share=0.2)
    assert dataset.manifest.splits["val"].views == 1
    boxes = {tuple(s.info["box"]) for s in dataset.samples("train", view=1)}
    assert len(boxes) == 18
    again = tokenize(image_folder, tmp_path / "again", views=2, val_share=0.2)
    assert [s.info for s in again.samples("train")] == [s.info for s in dataset.samples("train")]


def test_the_val_share_is_drawn_and_taken_from_train(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", val_share=0.3)
    val = {s.info["path"] for s in dataset.samples("val")}
    train = {s.info["path"] for s in dataset.samples("train")}
    assert len(val) == 7
    assert not val & train
    assert len(val | train) == 23


def test_datasets_without_labels_have_no_cls(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", use_labels=False, limit=3)
    assert dataset.manifest.classes is None
    assert all(s.label is None and "class" not in s.info for s in dataset.samples("train"))
    assert b".cls" not in (tmp_path / "out" / "train-000000.tar").read_bytes()


@pytest.mark.parametrize("codec", ["jpg", "png"])
def test_image_codecs_give_datasets_that_verify(image_folder, tmp_path, codec):
    dataset = tokenize(image_folder, tmp_path / "out", codec=codec, limit=3)
    assert list(verify(dataset)) == []
    raw = tokenize(image_folder, tmp_path / "raw", limit=3)
    for one, other in zip(dataset.samples("train"), raw.samples("train"), strict=True):
        difference = one.mosaic.tokens.astype(int) - other.mosaic.tokens
        assert abs(difference).mean() < (3 if codec == "jpg" else 1e-9)


# Raise TOKENIZER_VERSION when these have to change. The images are of exactly the size, in a format
# without compression, so `raw` holds for every imaging library; the encoders of the others differ.
PINNED = {
    "raw": "020cdd08c1c25451ca3e141358f8d137a98572b9d3b06dce1383288c09ca59a2",
    "png": "099a87b4d3611cafc6ffbf474e18b0223f0494394de5f950def1d5f2027cef22",
    "jpg": "43fdc32dde2856dffd6345b2e7f39c23d91df0228443c71e39c167782c5fe114",
}
ENCODERS = {"version": "12.1.1.post0", "jpeg": "libjpeg-turbo 2.1.5", "zlib": "zlib 1.2.13"}


@pytest.mark.parametrize("codec", PINNED)
def test_bytes_are_pinned(codec, tmp_path):
    if codec != "raw" and not ENCODERS.items() <= imaging_library().items():
        pytest.skip(f"pinned for {ENCODERS}")
    values = np.arange(128 * 128 * 3, dtype=np.int64)
    for number in range(3):
        pixels = (values * (number + 3) // 7 % 256).astype(np.uint8).reshape(128, 128, 3)
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.ppm")
    options = {"image_size": 128, "tokens": 40, "crop_pct": 1.0, "codec": codec}
    tokenize(tmp_path / "images", tmp_path / "out", **options)
    digest = hashlib.sha256((tmp_path / "out" / "train-000000.tar").read_bytes()).hexdigest()
    assert digest == PINNED[codec]


def test_the_same_input_gives_the_same_bytes_again(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "a", views=2)
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    tokenize(Path(moved), tmp_path / "b", views=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


class StopAfter(Progress):
    def __init__(self, shards: int) -> None:
        self.left = shards

    def shard_done(self, report: object) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_job_goes_on_to_the_same_bytes(image_folder, tmp_path, files_of):
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


def test_a_finished_job_touches_nothing_and_an_edited_card_stays(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("# Mine\n")
    before = files_of(tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.*")}
    tokenize(image_folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.*")} == times


def test_a_lost_or_cut_shard_is_made_again(image_folder, tmp_path, files_of):
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
        ({"name": "other"}, 'dataset.name was null, now "other"'),
        ({"use_labels": False}, "classes were 3, now 0"),
    ],
)
def test_another_plan_is_refused_with_what_differs(image_folder, tmp_path, options, message):
    tokenize(image_folder, tmp_path / "out")
    with pytest.raises(ConfigError, match=f"was planned differently: .*{message}"):
        tokenize(image_folder, tmp_path / "out", **options)


def test_changed_inputs_are_refused(images, tmp_path):
    tokenize(images, tmp_path / "out")
    (images / "flower" / "00.jpg").rename(images / "flower" / "renamed.jpg")
    with pytest.raises(ConfigError, match="the inputs .files were added, removed, renamed"):
        tokenize(images, tmp_path / "out")


def test_rejects_are_counted_and_named(images, tmp_path, jpeg):
    good = jpeg(0)
    for name, data in {
        "empty.jpg": b"",
        "text.png": b"not an image",
        "truncated.jpg": good[: len(good) // 2],
        "renamed.png": good,  # a JPEG under another name is fine
        "drawing.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }.items():
        (images / "zebra" / name).write_bytes(data)
    dataset = tokenize(images, tmp_path / "out", max_rejected="4", views=2)
    split = dataset.manifest.splits["train"]
    assert (split.inputs, split.rejected, split.samples) == (28, 4, 48)
    lines = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    rejects = {row["path"]: row["reason"] for row in map(json.loads, lines)}
    assert rejects == {
        "zebra/empty.jpg": "empty",
        "zebra/text.png": "not_an_image",
        "zebra/truncated.jpg": "truncated",
        "zebra/drawing.jpg": "no_decoder",
    }
    assert list(verify(dataset)) == []


def test_too_many_rejects_leave_all_but_the_manifest(images, tmp_path, files_of):
    (images / "zebra" / "bad.jpg").write_bytes(b"")
    message = r"1 of 24 inputs were rejected \(1 empty\), more than 0; see .*rejected\.jsonl"
    with pytest.raises(TooManyRejectsError, match=message):
        tokenize(images, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    made = []

    class Count(Progress):
        def shard_done(self, report) -> None:
            made.append(report)

    tokenize(images, tmp_path / "out", max_rejected="1", progress=Count())
    assert made == []
    tokenize(images, tmp_path / "whole", max_rejected="100%")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_shard_of_rejects_has_a_marker_and_no_tar(images, tmp_path):
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"")
    dataset = tokenize(images, tmp_path / "out", max_rejected="100%")
    assert dataset.manifest.splits["train"].shards == 0
    assert list((tmp_path / "out").glob("*.tar")) == []
    assert len(list((tmp_path / "out" / ".quadpipe" / "markers").rglob("*.json"))) == 6
    assert list(verify(dataset)) == []


def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_kept(
    images, tmp_path, monkeypatch, files_of
):
    monkeypatch.setattr("quadpipe.retries.time.sleep", lambda seconds: None)
    tokenize(images, tmp_path / "whole")
    vanished = images / "flower" / "00.jpg"
    data = vanished.read_bytes()

    class Vanish(Progress):
        def planned(self, preview) -> None:
            vanished.unlink()

    message = r"1 of 6 shards could not be made; .*\nshard train 00000\d: cannot read flower/00"
    with pytest.raises(JobError, match=message):
        tokenize(images, tmp_path / "out", progress=Vanish())
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5
    vanished.write_bytes(data)
    tokenize(images, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_what_an_interrupted_writer_left_is_removed(image_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tokenize(image_folder, out, progress=StopAfter(1))
    (out / ".quadpipe" / "tmp").mkdir(exist_ok=True)
    (out / ".quadpipe" / "tmp" / "train-000001.tar.99-abc").write_bytes(b"half")
    tokenize(image_folder, out)
    assert not (out / ".quadpipe" / "tmp").exists()


def test_two_jobs_do_not_write_to_one_output(image_folder, tmp_path):
    refused = []

    class Second(Progress):
        def planned(self, preview) -> None:
            with pytest.raises(OutputError, match=r"another quadpipe \(process \d+ on "):
                tokenize(image_folder, tmp_path / "out")
            refused.append(True)

    tokenize(image_folder, tmp_path / "out", progress=Second())
    assert refused == [True]


def test_outputs_that_are_not_ours_are_refused_untouched(image_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        OutputError, match=r"is not empty \(thesis.tex\) and holds no quadpipe plan"
    ):
        tokenize(image_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match=r"thesis\.tex is a file; choose a new or empty folder"):
        tokenize(image_folder, tmp_path / "thesis.tex")


@pytest.mark.fault("the output may not be written to", "exit code 1, says so; nothing is written")
def test_an_output_without_permission_is_refused(image_folder, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with permissions_that_count():
            with pytest.raises(OutputError, match="Permission denied; choose a path"):
                tokenize(image_folder, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_job_and_loses_nothing(image_folder, tmp_path, monkeypatch, files_of):
    real = shard_module.ShardWriter.add
    calls = []

    def full(self, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(shard_module.ShardWriter, "add", full)
        with pytest.raises(OutputError, match="No space left on device; free some space and run"):
            tokenize(image_folder, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    tokenize(image_folder, tmp_path / "out")
    tokenize(image_folder, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_job_that_cannot_fit_is_refused_before_it_starts(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.files.LocalFolder.free_bytes", lambda self: 1_000_000)
    with pytest.raises(OutputError, match="has 1,000,000 bytes free, the job will write about"):
        tokenize(image_folder, tmp_path / "out")
    assert not (tmp_path / "out" / ".quadpipe" / "plan.json").exists()


def test_the_estimate_of_raw_bytes_is_close(image_folder, tmp_path):
    job = Job(image_folder, tmp_path / "out", JobConfig.from_options(in_process=True, views=2))
    preview = job.preview()
    assert preview.write_samples == 46
    dataset = job.run()
    assert preview.write_bytes == pytest.approx(dataset.manifest.splits["train"].bytes, rel=0.03)
    assert job.preview().write_bytes == 0


def test_another_imaging_library_is_refused(image_folder, tmp_path, monkeypatch):
    other = {"name": "Pillow", "version": "1.0", "jpeg": "libjpeg 6b"}
    monkeypatch.setattr(shard_module, "imaging_library", lambda: other)
    with pytest.raises(JobError, match=r"has Pillow 1\.0 .libjpeg 6b., the plan was made with"):
        tokenize(image_folder, tmp_path / "out")


def test_a_val_share_needs_a_training_split_that_can_spare_it(image_folder, tmp_path):
    with pytest.raises(ConfigError, match="--val-share 0.01 of 23 inputs leaves a split empty"):
        tokenize(image_folder, tmp_path / "out", val_share=0.01)
    with pytest.raises(ConfigError, match="draws from training inputs, but there are splits test"):
        tokenize(image_folder, tmp_path / "out", val_share=0.2, split="test")
    with pytest.raises(SourceError, match="does not exist"):
        tokenize(tmp_path / "nowhere", tmp_path / "out")


def test_a_damaged_plan_is_refused(image_folder, tmp_path):
    tokenize(image_folder, tmp_path / "out")
    (tmp_path / "out" / ".quadpipe" / "plan.json").write_text("{")
    with pytest.raises(
        quadpipe.errors.ShardError, match=r"plan\.json cannot be used: .*; choose another --out"
    ):
        tokenize(image_folder, tmp_path / "out")


def test_tars_of_images_keep_their_order(image_folder, tmp_path, jpeg):
    (tmp_path / "tars").mkdir()
    for t in range(2):
        with tarfile.open(tmp_path / "tars" / f"{t}.tar", "w") as tar:
            for n in range(3):
                for field, data in (("jpg", jpeg(3 * t + n)), ("cls", str(n).encode())):
                    info = tarfile.TarInfo(f"s{n}.{field}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    dataset = tokenize(tmp_path / "tars", tmp_path / "out")
    samples = list(dataset.samples("train"))
    paths = [s.info["path"] for s in samples]
    assert paths == [f"{t}.tar/s{n}.jpg" for t in range(2) for n in range(3)]
    assert [s.label for s in samples] == [0, 1, 2, 0, 1, 2]


def test_the_same_output_path_twice_in_one_process_is_two_jobs(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "out", seed=0)
    shutil.rmtree(tmp_path / "out")
    tokenize(image_folder, tmp_path / "out", seed=5)
    tokenize(image_folder, tmp_path / "fresh", seed=5)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_changed_listing_is_refused(image_folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tokenize(image_folder, tmp_path / "out", progress=StopAfter(1))
    listing = tmp_path / "out" / ".quadpipe" / "listing" / "train" / "0000" / "000000.jsonl"
    listing.write_bytes(listing.read_bytes().replace(b"zebra", b"horse"))
    with pytest.raises(JobError, match=r"000000\.jsonl was changed: its checksum is not the one"):
        tokenize(image_folder, tmp_path / "out")


def test_a_listing_without_its_plan_is_written_anew(image_folder, tmp_path, files_of):
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
    """A job that was stopped when its plan was stored, as a document that may be edited."""

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
    again = Again(dataset, image_folder)
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
def test_a_plan_with_fields_that_are_not_known_is_refused_and_names_them(
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
        Again(dataset, image_folder)


def test_the_limit_of_pixels_is_that_of_the_plan_wherever_images_are_decoded(
    image_folder, tmp_path
):
    """The photographs have 30,000 pixels."""
    small = {"image_size": 64, "patch_size": 8, "max_patch_size": 32, "tokens": 40, "limit": 4}
    given = {**small, "max_pixels": 29_999, "max_rejected": "100%"}
    for more in ({}, {"retry_rejected": True}):  # the second decodes in child processes
        dataset = tokenize(image_folder, tmp_path / "out", **given, **more)
        assert dataset.manifest.splits["train"].rejected == 4
        assert dataset.manifest.tokenizer.max_pixels == 29_999
    rejected = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text()
    assert rejected.count("200 x 150 pixels, more than 29,999") == 4
    dataset = tokenize(image_folder, tmp_path / "fits", **small, max_pixels=30_000)
    assert dataset.manifest.splits["train"].samples == 4
    assert len(exhibits(dataset, "train", 4, image_folder)) == 4
    edit_manifest(tmp_path / "fits", tokenizer__max_pixels=29_999)
    with pytest.raises(SourceError, match="too_many_pixels"):
        exhibits(quadpipe.Dataset(tmp_path / "fits"), "train", 4, image_folder)


def test_larger_images_are_given_more_time(image_folder, tmp_path):
    plans = {
        pixels: Job(image_folder, tmp_path, JobConfig.from_options(max_pixels=pixels)).plan
        for pixels in (1000**2, 300 * 1000**2)
    }
    seconds = [decoding.decode_seconds(plan) for plan in plans.values()]
    assert seconds == [60, 240]


def test_an_output_inside_the_input_is_refused(image_folder):
    with pytest.raises(ConfigError, match="lies in --in .*; choose a folder beside it"):
        tokenize(image_folder, image_folder / "shards")
    assert not (image_folder / "shards").exists()


def test_squashing_shows_the_whole_of_every_image(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", resize="squash", limit=3)
    for sample in dataset.samples("train"):
        assert sample.info["box"] == [0, 0, 200, 150]
        path = image_folder / sample.info["path"]
        whole = Image.open(path).resize((256, 256), Image.Resampling.BICUBIC)
        image = quadpipe.Tokenizer(crop_pct=1.0)(np.asarray(whole))
        np.testing.assert_array_equal(sample.mosaic.tokens, image.tokens)


def test_large_jpegs_are_decoded_at_a_reduced_size(jpeg, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    large = Image.open(io.BytesIO(jpeg(0, (400, 300)))).resize((2400, 1800))
    large.save(tmp_path / "images" / "large.jpg")
    asked = []
    real = decoding.EncodedImage.decode

    def decode(self, reduction: int = 1) -> Image.Image:
        asked.append(reduction)
        return real(self, reduction)

    monkeypatch.setattr(decoding.EncodedImage, "decode", decode)
    tokenize(tmp_path / "images", tmp_path / "out")
    assert asked == [2]


def test_the_seed_changes_views_and_the_val_share(image_folder, tmp_path):
    def drawn(seed: int) -> tuple[set, dict]:
        options = {"seed": seed, "views": 2, "val_share": 0.3}
        dataset = tokenize(image_folder, tmp_path / str(seed), **options)
        boxes = {s.info["path"]: tuple(s.info["box"]) for s in dataset.samples("train", view=1)}
        return {s.info["path"] for s in dataset.samples("val")}, boxes

    (val, boxes), (other_val, other_boxes) = drawn(0), drawn(1)
    assert val != other_val
    shared = boxes.keys() & other_boxes.keys()
    assert sum(boxes[path] != other_boxes[path] for path in shared) > len(shared) / 2


def test_views_without_a_training_split_are_refused(image_folder, tmp_path):
    with pytest.raises(ConfigError, match="--views is for a split train, there is only test"):
        tokenize(image_folder, tmp_path / "out", views=2, split="test")


def test_a_lack_of_memory_is_a_shard_that_failed(image_folder, tmp_path, monkeypatch):
    def fail(self, images, maps):
        raise MemoryError

    monkeypatch.setattr(quadpipe.Tokenizer, "cut", fail)
    with pytest.raises(JobError, match="6 of 6 shards could not be made.*\n.*out of memory"):
        tokenize(image_folder, tmp_path / "out")


def test_a_log_that_cannot_be_written_stops_nothing(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.job.run.time.strftime", lambda *a: "no/such/folder")
    tokenize(image_folder, tmp_path / "out")
    assert (tmp_path / "out" / "dataset.json").exists()
