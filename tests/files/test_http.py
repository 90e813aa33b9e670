"""Datasets on plain web servers."""

import pytest
from servers import files_by_http

import quadpipe
from quadpipe.errors import OutputError, ShardError
from quadpipe.files import Cache
from quadpipe.loader import Loader
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def published(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("published")
    quadpipe.tokenize(image_folder, out, in_process=True, samples_per_shard=4, tokens=40)
    return out


def keys(dataset: quadpipe.Dataset) -> list[list[str]]:
    return [batch.keys for batch in Loader(dataset, batch_size=5, workers=1).epoch(0)]


def test_a_web_server_that_gives_parts_is_read_and_verified(published):
    with files_by_http(published, ranges=True) as url:
        dataset = quadpipe.Dataset(url)
        assert keys(dataset) == keys(quadpipe.Dataset(published))
        assert list(verify(dataset)) == []
        assert [s.key for s in dataset.samples("train")] == [
            s.key for s in quadpipe.Dataset(published).samples("train")
        ]


def test_one_that_gives_whole_files_needs_a_cache(published, tmp_path):
    with files_by_http(published, ranges=False) as url:
        with pytest.raises(ShardError, match="gives whole files only; keep shards in a local"):
            keys(quadpipe.Dataset(url))
        cache = Cache(folder=tmp_path, bytes=10**7)
        assert keys(quadpipe.Dataset(url, cache=cache)) == keys(quadpipe.Dataset(published))
        assert list(verify(quadpipe.Dataset(url))) == []


def test_what_a_web_server_does_not_have_is_missing(published):
    with files_by_http(published, ranges=True) as url:
        with pytest.raises(ShardError, match="/nothing is not a finished dataset"):
            quadpipe.Dataset(f"{url}/nothing")


def test_a_web_server_is_not_written_to(image_folder, published):
    with files_by_http(published, ranges=True) as url:
        with pytest.raises(OutputError, match="cannot write http://.*; when it can be written"):
            quadpipe.tokenize(image_folder, f"{url}/new", in_process=True)
