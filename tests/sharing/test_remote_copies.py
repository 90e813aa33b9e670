"""Copies to and from S3 servers and web servers."""

import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from injection import Fault
from servers import Trouble, files_by_http

import quadpipe
from forging import make_dataset
from quadpipe.errors import OutputError, ShardError
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("source"))


@pytest.fixture
def url(proxy, request) -> str:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"s3://bucket/{name}/data"


def same_files(source: Path, out: Path | str) -> bool:
    names = [path.name for path in source.iterdir() if path.is_file()]
    system, root = fsspec.core.url_to_fs(str(out))
    system.invalidate_cache()
    return all(system.cat_file(f"{root}/{name}") == (source / name).read_bytes() for name in names)


def test_a_dataset_goes_to_s3_and_back(source, url, tmp_path):
    assert list(verify(quadpipe.copy(source, url))) == []
    assert same_files(source, url)
    quadpipe.copy(url, tmp_path / "back")
    assert same_files(source, tmp_path / "back")
    quadpipe.copy(url, f"{url}-2", provenance=False)
    assert same_files(source, f"{url}-2")


@pytest.mark.parametrize("kind", ["flip", "cut", "refuse"])
def test_bytes_that_change_on_the_way_are_fetched_again(kind, source, url, proxy, tmp_path):
    quadpipe.copy(source, url)
    trouble = Trouble(kind, "GET", "train-000001.tar")
    proxy.troubles.append(trouble)
    quadpipe.copy(url, tmp_path / "back")
    assert not trouble.times
    assert same_files(source, tmp_path / "back")


def test_bytes_that_change_every_time_are_refused(source, url, proxy, tmp_path):
    quadpipe.copy(source, url)
    proxy.troubles.append(Trouble("flip", "GET", "train-000001.tar", times=9))
    with pytest.raises(ShardError, match="arrived twice with another checksum"):
        quadpipe.copy(url, tmp_path / "back")
    assert not (tmp_path / "back" / "dataset.json").exists()


@pytest.mark.fault(
    "SIGKILL of a copy to S3 in the middle of a shard",
    "no dataset is there; the next run finishes it, no unfinished upload is left",
)
def test_a_killed_copy_to_s3_is_finished(source, url, proxy):
    command = [sys.executable, "-m", "quadpipe.cli", "copy", str(source), url]
    fault = Fault(at="before commit train-000002.tar")
    done = subprocess.run(command, env=fault.environment(), capture_output=True)
    assert done.returncode == -9
    with pytest.raises(ShardError, match="is not a finished dataset"):
        quadpipe.Dataset(url)
    proxy.requests.clear()
    quadpipe.copy(source, url)
    assert same_files(source, url)
    system, root = fsspec.core.url_to_fs(url)
    pending = system.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", [])
    assert [u for u in pending if u["Key"].startswith(root.removeprefix("bucket/"))] == []


def test_what_is_at_the_url_already_is_not_sent_again(source, url, proxy):
    quadpipe.copy(source, url)
    proxy.requests.clear()
    quadpipe.copy(source, url)
    sent = [path for method, path in proxy.requests if method in ("PUT", "POST")]
    assert [path for path in sent if "logs/lock" not in path and "tmp/probe" not in path] == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dataset_is_fetched_from_a_web_server(ranges, source, tmp_path):
    with files_by_http(source, ranges=ranges) as url:
        quadpipe.copy(url, tmp_path / "out", provenance=True)
        assert same_files(source, tmp_path / "out")
        assert (tmp_path / "out/.quadpipe/plan.json").exists()
        with pytest.raises(OutputError, match="read-only; write to a local folder"):
            quadpipe.copy(source, f"{url}/other")


def test_a_web_server_with_missing_files_is_reported(source, tmp_path):
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    (broken / "train-000001.tar").unlink()
    with (
        files_by_http(broken, ranges=True) as url,
        pytest.raises(ShardError, match=r"train-000001.tar: .*the dataset is incomplete"),
    ):
        quadpipe.copy(url, tmp_path / "out")
