"""Sources at a URL: the same inputs and the same dataset as from a disk."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from job_runs import SMALL
from source_files import list_inputs, make_tar, rows, write

import quadpipe
from quadpipe.cli.gallery import exhibits
from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.job.reproduce import Reproducer
from quadpipe.sources import Input, open_source

OPTIONS = SMALL | {"samples_per_shard": 8, "val_share": 0.2}


@pytest.fixture
def url() -> Iterator[str]:
    """A separate URL in memory for each test."""
    name = uuid4().hex
    yield f"memory://{name}/data"
    system = fsspec.filesystem("memory")
    if system.exists(name):
        system.rm(name, recursive=True)


def upload(folder: Path, url: str) -> str:
    system = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return url


def contents(location: str | Path, split: str = "train") -> list[bytes]:
    source = pickle.loads(pickle.dumps(open_source(location)))
    listing = source.list().splits[split]
    return [source.read(listing[index]) for index in range(len(listing))]


def test_a_folder_at_a_url_is_listed_as_on_a_disk(tmp_path, url):
    names = ("train/b/1.jpg", "train/a/2.jpg", "val/a/100%.jpg", "val/b/x.txt", "val/.hidden/3.jpg")
    for name in names:
        write(tmp_path, name, data=name.encode())
    upload(tmp_path, url)
    assert list_inputs(url).skipped == list_inputs(tmp_path).skipped
    for split in ("train", "val"):
        assert rows(list_inputs(url), split) == rows(list_inputs(tmp_path), split)
        assert contents(url, split) == contents(tmp_path, split)


@pytest.mark.parametrize("below", ["", "b.tar"])
def test_tars_at_a_url_are_listed_as_on_a_disk(below, tmp_path, url, monkeypatch):
    monkeypatch.setattr("quadpipe.sources.roots._BLOCK_BYTES", 1000)
    for name in ("b.tar", "a.tar"):
        members = [
            (f"{n:03}.{e}", (name * n).encode()) for n in range(1, 9) for e in ("jpg", "cls")
        ]
        make_tar(tmp_path / name, *members)
    upload(tmp_path, url)
    here, there = (os.path.join(root, below).rstrip("/") for root in (str(tmp_path), url))
    listed = [list_inputs(location, use_labels=False) for location in (here, there)]
    assert rows(listed[0]) == rows(listed[1])
    assert contents(there) == contents(here)
    assert rows(list_inputs(there)) == rows(list_inputs(here))


def test_a_damaged_tar_at_a_url_is_named(tmp_path, url):
    make_tar(tmp_path / "x.tar", ("a.jpg", b"A" * 5000))
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"cannot read memory://.*/data/x\.tar: "):
        list_inputs(upload(tmp_path, url))


def test_a_dataset_from_a_url_has_the_same_bytes(image_folder, tmp_path, url, files_of):
    images = shutil.copytree(image_folder, tmp_path / "images")
    (images / "zebra" / "02.jpg").write_bytes(b"")
    upload(images, url)
    for source, out in ((images, "here"), (url, "there")):
        quadpipe.tokenize(source, tmp_path / out, max_rejected="1", **OPTIONS)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    dataset = quadpipe.Dataset(tmp_path / "there")
    assert [line for _, lines in Reproducer(dataset, url).check(1000) for line in lines] == []
    assert exhibits(dataset, "train", 1, url)[0].image.shape == (64, 64, 3)
    fsspec.filesystem("memory").rm_file(f"{url}/flower/00.jpg")
    (line,) = [line for _, lines in Reproducer(dataset, url).check(1000) for line in lines]
    assert line.startswith("cannot read flower/00.jpg in memory://")


def test_urls_that_cannot_be_used_are_refused(tmp_path, url):
    write(tmp_path, "list.csv", data=b"x.jpg\n")
    write(tmp_path, "x.jpg")
    upload(tmp_path, url)
    with pytest.raises(SourceError, match="memory://.*/nothing does not exist; give a folder"):
        open_source(f"{url}/nothing")
    with pytest.raises(SourceError, match=r"csv is not a folder, a \.csv list on a local disk or"):
        open_source(f"{url}/list.csv")
    with pytest.raises(SourceError, match="nosuch://x cannot be opened: .*; give another --in"):
        open_source("nosuch://x")
    with pytest.raises(ConfigError, match="--out memory://.* is inside --in memory://.*; choose"):
        quadpipe.tokenize(url, f"{url}/out", **OPTIONS)


def test_reading_from_a_url_is_retried_and_then_fails_with_the_path(url, monkeypatch):
    pauses = []
    monkeypatch.setattr("quadpipe.retries.time.sleep", pauses.append)
    system = fsspec.filesystem("memory")
    system.pipe_file(f"{url}/huge.jpg", b"x" * 9)
    source = open_source(url)
    with pytest.raises(
        SourceError, match=r"cannot read gone\.jpg in memory://.*; fix it and rerun"
    ):
        source.read(Input("gone.jpg", None))
    assert len(pauses) == 4
    read = type(system).cat_file

    def fail_once(self, path, **options):
        monkeypatch.setattr(type(system), "cat_file", read)
        raise RuntimeError("the server is busy")

    monkeypatch.setattr(type(system), "cat_file", fail_once)
    assert source.read(Input("huge.jpg", None)) == b"x" * 9
    monkeypatch.setattr("quadpipe.sources.roots.MAX_FILE_BYTES", 8)
    with pytest.raises(RejectError, match="too_many_bytes: 9 bytes, more than 8"):
        source.read(Input("huge.jpg", None))
