"""Datasets on an S3 server: the same bytes as on a disk, whatever process dies or request fails."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from injection import Fault
from servers import Trouble

import quadpipe
from quadpipe.errors import ConfigError, OutputError
from quadpipe.files import (
    LocalFolder,
    RemoteFolder,
    lock,
    open_folder,
)
from quadpipe.shards.statistics import statistics
from quadpipe.shards.summary import summarize
from quadpipe.shards.verify import verify

OPTIONS: dict[str, Any] = {"samples_per_shard": 4, "tokens": 40, "val_share": 0.2}
CONTINUES = "the next run continues; bytes of an undisturbed run, no unfinished upload is left"


@pytest.fixture
def url(proxy, request) -> str:
    """A separate URL for each test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"s3://bucket/{name}/data"


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    quadpipe.tokenize(image_folder, out, in_process=True, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def undisturbed(whole, files_of) -> dict[str, bytes]:
    return files_of(whole)


def stored(url: str, tmp_path: Path) -> Path:
    """A copy of all files at a URL."""
    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    copy = tmp_path / "stored"
    for path in system.find(root):
        target = copy / path.removeprefix(root).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(system.cat_file(path))
    return copy


def unfinished(url: str) -> list[str]:
    system, root = fsspec.core.url_to_fs(url)
    found = system.call_s3("list_multipart_uploads", Bucket="bucket")
    prefix = root.removeprefix("bucket/")
    return [u["Key"] for u in found.get("Uploads", []) if u["Key"].startswith(prefix)]


def run(
    images: Path, url: str, *more: str, fault: Fault | None = None
) -> subprocess.CompletedProcess:
    given = [w for name, v in OPTIONS.items() for w in (f"--{name.replace('_', '-')}", str(v))]
    arguments = ("tokenize", "--in", str(images), "--out", url, *given, *more)
    return subprocess.run(
        [sys.executable, "-m", "quadpipe.cli", *arguments],
        env=(fault or Fault()).environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_dataset_on_s3_equals_that_on_a_disk(image_folder, url, tmp_path, undisturbed, account):
    dataset = quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    assert str(dataset.folder) == url
    assert list(verify(dataset)) == []
    account(stored(url, tmp_path), undisturbed)
    assert unfinished(url) == []
    # Again: nothing is done, nothing is changed.
    quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    account(stored(url, tmp_path), undisturbed)


KILLS = ("before commit train-000001.tar", "before upload dataset.json")
RARER_KILLS = (
    "before upload .quadpipe/markers/train/0000/000001.json",
    "before upload .quadpipe/plan.json",
    "after upload .quadpipe/plan.json",
    "after write train-000001.tar",
    "after commit train-000001.tar",
    "after upload .quadpipe/markers/train/0000/000001.json",
    "before commit train.shards.jsonl",
    "after upload dataset.json",
)


@pytest.mark.fault("SIGKILL around uploads and commits to S3, in process", CONTINUES)
@pytest.mark.parametrize(
    "point", [*KILLS, *(pytest.param(point, marks=pytest.mark.soak) for point in RARER_KILLS)]
)
def test_a_kill_during_writes_to_s3_loses_nothing(
    point, image_folder, url, tmp_path, undisturbed, account
):
    killed = run(image_folder, url, "--in-process", fault=Fault(at=point))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if point.startswith("before commit"):
        assert unfinished(url) != []
    quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    account(stored(url, tmp_path), undisturbed)
    assert unfinished(url) == []


@pytest.mark.fault(
    "SIGKILL of a Ray worker in the middle of an upload to S3", "its shard is remade"
)
def test_a_worker_killed_during_an_upload_is_replaced(
    image_folder, url, tmp_path, undisturbed, account
):
    fault = Fault(at="before commit train-.*", once=str(tmp_path / "once"))
    done = run(image_folder, url, "--workers", "2", fault=fault)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "once").exists()
    account(stored(url, tmp_path), undisturbed)
    assert unfinished(url) == []


@pytest.mark.fault(
    "S3 answers 500, or drops the connection in the middle, on reading and on writing",
    "retried with back-off; the same bytes",
)
def test_transient_server_errors_do_not_change_the_bytes(
    image_folder, url, tmp_path, proxy, undisturbed, account
):
    proxy.troubles += [
        Trouble("refuse", "PUT", "plan.json"),
        Trouble("cut", "PUT", "train-000000.tar"),
        Trouble("refuse", "PUT", "train-000001.tar", 2),
        Trouble("cut", "POST", "train-000002.tar"),
        Trouble("refuse", "GET", "listing"),
        Trouble("cut", "GET", "markers/train/0000/000001.json"),
        Trouble("refuse", "PUT", "dataset.json"),
    ]
    dataset = quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    assert [trouble for trouble in proxy.troubles if trouble.times] == []
    account(stored(url, tmp_path), undisturbed)
    proxy.troubles += [
        Trouble("cut", "GET", "train-000000.tar"),
        Trouble("refuse", "GET", "train-000001.tar", 2),
        Trouble("cut", "GET", "dataset.json"),
    ]
    assert list(verify(quadpipe.Dataset(url))) == []
    assert [trouble for trouble in proxy.troubles if trouble.times] == []
    assert dataset.manifest == quadpipe.Dataset(url).manifest


@pytest.mark.fault(
    "S3 fails permanently", "exit code 1 with one line; once it works, the next run continues"
)
def test_permanent_server_errors_end_the_run(
    image_folder, url, tmp_path, proxy, undisturbed, account, monkeypatch
):
    monkeypatch.setattr("quadpipe.retries.PAUSES", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    proxy.troubles.append(Trouble("refuse", "PUT", "markers/train/0000/000001", 10**6))
    with pytest.raises(OutputError, match="cannot write s3://.*000001.gains.npy: .*run the same"):
        quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    proxy.troubles.clear()
    quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    account(stored(url, tmp_path), undisturbed)
    assert unfinished(url) == []


@pytest.mark.fault(
    "an exception while a file is written to S3", "nothing appears, the upload is aborted"
)
def test_an_upload_that_raises_publishes_nothing(url):
    folder = RemoteFolder(url)
    with pytest.raises(ZeroDivisionError), folder.staged("x.tar") as file:
        file.write(bytes(20 << 20))  # more than a part: some of it is there already
        raise ZeroDivisionError
    assert not folder.exists("x.tar")
    assert unfinished(url) == []
    with folder.staged("x.tar") as file:
        file.write(bytes(20 << 20))
        assert not folder.exists("x.tar")
    assert folder.size("x.tar") == 20 << 20


@pytest.mark.fault("two drivers on one URL at once", "the first continues, the second is refused")
def test_of_two_drivers_on_s3_the_second_is_refused(url, image_folder, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.5)
    folder = open_folder(url)
    with folder.lock(".quadpipe/logs/lock"):
        done = run(image_folder, url, "--in-process")
    assert done.returncode == 1
    assert "another quadpipe (process" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.read_many(["dataset.json"]).__next__() is None


@pytest.mark.fault(
    "the driver of a dataset on S3 is dead, on another machine",
    "its lock is watched for a minute, then taken over",
)
def test_the_lock_of_a_dead_driver_on_s3_is_taken_over(
    url, image_folder, tmp_path, undisturbed, account, monkeypatch
):
    folder = open_folder(url)
    there = lock.Holder(token="t", host="far", machine="another boot", process=1, started="1")
    lock._write(folder, ".quadpipe/logs/lock.json", there)
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append)
    monkeypatch.setattr(lock, "time", clock)
    quadpipe.tokenize(image_folder, url, in_process=True, **OPTIONS)
    assert sum(waited) >= 60
    account(stored(url, tmp_path), undisturbed)


class WithoutAtomicUploads(MemoryFileSystem):
    """Publishes files that were never committed, as some file systems do."""

    protocol = "hasty"

    def _open(self, path, mode="rb", *arguments, autocommit=True, **options):
        return super()._open(path, mode, *arguments, autocommit=True, **options)


class Repository(fsspec.AbstractFileSystem):
    """Makes a commit of each file that is closed, and of each removal, as a Git host does."""

    protocol = "commits"
    commits: ClassVar[list[str]] = []

    class File(fsspec.spec.AbstractBufferedFile):
        def _upload_chunk(self, final: bool = False) -> bool:
            if final:
                Repository.commits.append(self.path)
            return True

    def _open(self, path, mode="rb", *arguments, **options):
        return self.File(self, path, mode, *arguments, **options)

    def info(self, path, **options):
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **options):
        return []

    def rm_file(self, path):
        self.commits.append(path)


@pytest.mark.parametrize("kind", [WithoutAtomicUploads, Repository])
def test_storage_without_atomic_uploads_is_refused_and_nothing_is_left(kind, image_folder):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    with pytest.raises(OutputError, match="has no atomic uploads; write to a"):
        quadpipe.tokenize(image_folder, f"{kind.protocol}://data", in_process=True, **OPTIONS)
    system, root = fsspec.core.url_to_fs(f"{kind.protocol}://data")
    assert system.find(root) == []
    assert Repository.commits == []


def test_info_reads_a_bounded_part_of_the_shards(whole, image_folder, url, proxy, monkeypatch):
    """Samples of this dataset have about 40 kB, its largest shard here has 23 of them."""
    monkeypatch.setattr("quadpipe.shards.summary.BYTES_LOOKED_AT", 150_000)
    monkeypatch.setattr("quadpipe.shards.statistics._BYTES_LOOKED_AT", 150_000)
    read = []
    for per_shard in (8, 23):
        options: dict[str, Any] = {**OPTIONS, "samples_per_shard": per_shard, "val_share": 0.0}
        dataset = quadpipe.tokenize(image_folder, f"{url}-{per_shard}", in_process=True, **options)
        before = proxy.sent
        split = summarize(quadpipe.Dataset(f"{url}-{per_shard}"))["splits"]["train"]
        read.append(proxy.sent - before)
        assert 2 <= split["looked_at"] <= 4
        before = proxy.sent
        found = statistics(quadpipe.Dataset(f"{url}-{per_shard}"))["train"]
        read.append(proxy.sent - before)
        assert 2 <= found["originals"]["of"] <= 4
        assert dataset.manifest.splits["train"].bytes > 800_000
    assert max(read) < 170_000


def test_names_with_glob_characters_are_refused():
    for url in ("s3://bucket/data[1]", "s3://bucket/*", "memory://what?"):
        with pytest.raises(ConfigError, match=r"holds one of \* \? \[ \], which object stores"):
            open_folder(url)


def test_uploads_outside_the_output_are_not_aborted(proxy):
    system = fsspec.filesystem("s3")
    system.mkdir("shared")
    others = ("backup.bin", "below/dataset.json", "train-notes.txt")
    for key in (*others, "train-000099.tar"):
        system.call_s3("create_multipart_upload", Bucket="shared", Key=key)
    RemoteFolder("s3://shared").clear_staging()
    left = system.call_s3("list_multipart_uploads", Bucket="shared")["Uploads"]
    assert {upload["Key"] for upload in left} == set(others)


def test_file_urls_open_local_folders(tmp_path):
    folder = open_folder(f"file://{tmp_path}")
    assert isinstance(folder, LocalFolder)
    assert folder.root == tmp_path


def test_images_on_s3_are_a_source(image_folder, whole, undisturbed, url, tmp_path, account):
    fsspec.filesystem("s3").put(str(image_folder), url, recursive=True)
    quadpipe.tokenize(url, tmp_path / "out", in_process=True, **OPTIONS)
    account(tmp_path / "out", undisturbed)
