"""Datasets on plain web servers."""

import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers import _QuietHandler, files_by_http, serving

import quadpipe
from quadpipe.cli import commands
from quadpipe.errors import OutputError, ShardError
from quadpipe.files import Cache
from quadpipe.loader import Loader
from quadpipe.shards.summary import summarize
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def published(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("published")
    quadpipe.tokenize(image_folder, out, in_process=True, samples_per_shard=4, tokens=40)
    return out


def keys(dataset: quadpipe.Dataset) -> list[list[str]]:
    return [batch.keys for batch in Loader(dataset, batch_size=5, workers=1).epoch(0)]


def test_a_web_server_with_range_requests_is_read_and_verified(published):
    with files_by_http(published, ranges=True) as url:
        dataset = quadpipe.Dataset(url)
        assert keys(dataset) == keys(quadpipe.Dataset(published))
        assert list(verify(dataset)) == []
        assert [s.key for s in dataset.samples("train")] == [
            s.key for s in quadpipe.Dataset(published).samples("train")
        ]


def test_a_web_server_without_range_requests_needs_a_cache(published, tmp_path):
    with files_by_http(published, ranges=False) as url:
        with pytest.raises(
            ShardError, match="does not serve parts of files; copy the whole dataset"
        ):
            keys(quadpipe.Dataset(url))
        cache = Cache(folder=tmp_path, bytes=10**7)
        assert keys(quadpipe.Dataset(url, cache=cache)) == keys(quadpipe.Dataset(published))
        assert list(verify(quadpipe.Dataset(url))) == []


def test_files_that_a_web_server_lacks_are_reported_missing(published):
    with files_by_http(published, ranges=True) as url:
        with pytest.raises(ShardError, match="/nothing is not a finished dataset"):
            quadpipe.Dataset(f"{url}/nothing")


def test_an_output_on_a_web_server_is_refused(image_folder, published):
    with files_by_http(published, ranges=True) as url:
        with pytest.raises(OutputError, match="storage is read-only; write to a local folder"):
            quadpipe.tokenize(image_folder, f"{url}/new", in_process=True)


@pytest.fixture(scope="module")
def large(image_folder, tmp_path_factory) -> Path:
    """A shard of 17 MB: of larger files than 5 MiB, fsspec reads parts."""
    out = tmp_path_factory.mktemp("large")
    quadpipe.tokenize(image_folder, out, in_process=True, image_size=512, tokens=784)
    return out


def test_verify_reads_each_shard_once_without_range_requests(large):
    requests = Counter()

    class Counting(_QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            requests[self.path] += 1
            super().do_GET()

    with serving(partial(Counting, directory=large)) as url:
        assert list(verify(quadpipe.Dataset(url))) == []
    assert requests["/train-000000.tar"] == 1


def test_the_summary_without_range_requests_equals_that_of_a_disk(large, monkeypatch):
    monkeypatch.setattr("quadpipe.shards.summary.BYTES_LOOKED_AT", 3_000_000)
    with files_by_http(large, ranges=False) as url:
        remote = summarize(quadpipe.Dataset(url))
    local = summarize(quadpipe.Dataset(large))
    assert remote["splits"] == local["splits"]
    assert 1 <= local["splits"]["train"]["looked_at"] < 5


def test_commands_take_urls_and_verify_takes_a_cache(published, tmp_path):
    run = partial(CliRunner().invoke, commands, catch_exceptions=False)
    with files_by_http(published, ranges=False) as url:
        done = run(["verify", url, "--cache", str(tmp_path / "cache")])
        assert (done.exit_code, "intact, 23 samples checked" in done.output) == (0, True)
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 6
        done = run(["show", url, "--samples", "2", "--out", str(tmp_path / "x.png")])
        assert done.exit_code == 0
        assert (tmp_path / "x.png").exists()
        done = run(["show", url, "--samples", "2", "--out", str(tmp_path / "x.html")])
        assert done.exit_code == 0
        assert url in (tmp_path / "x.html").read_text()
        done = run(["info", url, "--stats"])
        assert "23 of train" in done.output
        assert "23 samples of train" in done.output
        done = run(["info", url, str(published)])
        assert (done.exit_code, "the same tokens" in done.output) == (0, True)


def test_a_damaged_copy_in_the_cache_is_found_and_named(published, tmp_path):
    with files_by_http(published, ranges=True) as url:
        dataset = quadpipe.Dataset(url, cache=Cache(folder=tmp_path, bytes=10**7))
        assert list(verify(dataset)) == []
        shard = dataset.shards("train")[0]
        copy = tmp_path / f"{shard.sha256}.tar"
        data = bytearray(copy.read_bytes())
        data[1000] ^= 1
        copy.write_bytes(data)
        (line,) = verify(quadpipe.Dataset(url, cache=Cache(folder=tmp_path, bytes=10**7)))
        assert line.endswith(f"; remove its copy {copy.name} from the cache")


def test_an_incomplete_copy_on_a_web_server_is_reported_in_one_line(published, tmp_path):
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    for name in ("train-000001.tar", "train-000004.tar"):
        (copy / name).unlink()
    with files_by_http(copy, ranges=False) as url:
        (line,) = verify(quadpipe.Dataset(url))
        assert "4 of 6 shards; train-000001.tar, train-000004.tar are missing" in line
        with pytest.raises(ShardError, match="000001.tar: missing: the dataset is incomplete"):
            list(quadpipe.Dataset(url).samples("train"))
