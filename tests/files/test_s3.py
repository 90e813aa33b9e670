"""Datasets on an S3 server: the same bytes as on a disk, whatever dies or fails on the way."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from injection import Fault
from servers import Trouble, s3_server

import quadpipe
from quadpipe.errors import ConfigError, OutputError, ShardError, UnreadableError
from quadpipe.files import (
    Cache,
    CachedFolder,
    LocalFolder,
    RemoteFolder,
    lock,
    open_folder,
)
from quadpipe.loader import Loader
from quadpipe.model.run_folder import RunFolder
from quadpipe.shards.verify import verify

OPTIONS = {"samples_per_shard": 4, "tokens": 40, "val_share": 0.2}
GO_ON = "the next run goes on; bytes of an undisturbed run, no unfinished upload is left"


@pytest.fixture(scope="module")
def proxy():
    """The proxy before the server, with a bucket and the environment to find it."""
    with pytest.MonkeyPatch.context() as patched, s3_server() as proxy:
        patched.setenv("AWS_ENDPOINT_URL", proxy.url)
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "anybody"),
            ("AWS_SECRET_ACCESS_KEY", "anything"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patched.setenv(name, value)
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        yield proxy
        type(system).clear_instance_cache()


@pytest.fixture(autouse=True)
def calm(proxy):
    yield
    proxy.troubles.clear()


@pytest.fixture
def url(proxy, request) -> str:
    """A place of its own for each test."""
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
    """A copy of all that lies at a URL."""
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


def test_a_dataset_on_s3_is_that_on_a_disk(image_folder, url, tmp_path, undisturbed, account):
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


@pytest.mark.fault("SIGKILL around uploads and commits to S3, in process", GO_ON)
@pytest.mark.parametrize(
    "point", [*KILLS, *(pytest.param(point, marks=pytest.mark.soak) for point in RARER_KILLS)]
)
def test_a_kill_on_the_way_to_s3_loses_nothing(
    point, image_folder, url, tmp_path, undisturbed, account
):
    killed = run(image_folder, url, "--in-process", fault=Fault(at=point))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if point.startswith("before commit"):
        assert unfinished(url) != []
    done = run(image_folder, url, "--in-process")
    assert done.returncode == 0, done.stderr
    account(stored(url, tmp_path), undisturbed)
    assert unfinished(url) == []


@pytest.mark.fault(
    "SIGKILL of a Ray worker in the middle of an upload to S3", "its shard is made again"
)
def test_a_worker_killed_in_an_upload_is_replaced(
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
    "tried again with back-off; the same bytes",
)
def test_errors_of_the_server_that_pass_leave_no_trace(
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
    "S3 fails for good", "exit code 1 with one line; once it works the next run goes on"
)
def test_errors_of_the_server_that_stay_end_the_run(
    image_folder, url, tmp_path, proxy, undisturbed, account, monkeypatch
):
    monkeypatch.setattr("quadpipe.patience.PAUSES", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    proxy.troubles.append(Trouble("refuse", "PUT", "markers/train/0000/000001", 10**6))
    with pytest.raises(OutputError, match="cannot write s3://.*000001.json: .*run the same"):
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


@pytest.mark.fault("two drivers on one URL at once", "the first goes on, the second is refused")
def test_of_two_drivers_on_s3_one_wins(url, image_folder, monkeypatch):
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
def test_a_dead_drivers_lock_on_s3_does_not_block(
    url, image_folder, tmp_path, undisturbed, account
):
    folder = open_folder(url)
    there = lock.Holder(token="t", host="far", machine="another boot", process=1, started="1")
    lock._write(folder, ".quadpipe/logs/lock.json", there)
    started = time.monotonic()
    done = run(image_folder, url, "--in-process", fault=Fault(heartbeat=0.4, stale=2))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started > 2
    account(stored(url, tmp_path), undisturbed)


class NoHoldingBack(fsspec.get_filesystem_class("memory")):
    """Publishes what was never committed, as some file systems do."""

    protocol = "hasty"

    def _open(self, path, mode="rb", *arguments, autocommit=True, **options):
        return super()._open(path, mode, *arguments, autocommit=True, **options)


def test_storage_that_cannot_hold_files_back_is_refused(image_folder):
    fsspec.register_implementation("hasty", NoHoldingBack, clobber=True)
    with pytest.raises(OutputError, match="cannot hold a file back until it is whole; write to a"):
        quadpipe.tokenize(image_folder, "hasty://data", in_process=True, **OPTIONS)


@pytest.fixture(scope="module")
def published(proxy, whole) -> str:
    """A whole dataset on S3."""
    system = fsspec.filesystem("s3")
    system.put(f"{whole}/", "bucket/published", recursive=True)
    return "s3://bucket/published"


def batches(dataset: quadpipe.Dataset, **options: object) -> list[tuple[list[str], bytes]]:
    loader = Loader(dataset, batch_size=5, seed=3, **options)
    return [
        (batch.keys, batch.tokens.numpy().tobytes())
        for epoch in (0, 1)
        for batch in loader.epoch(epoch)
    ]


def test_batches_from_s3_are_those_from_a_disk(published, whole):
    assert batches(quadpipe.Dataset(published)) == batches(quadpipe.Dataset(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_fetched_once_into_a_cache_of_bounded_size(
    workers, published, whole, proxy, tmp_path
):
    cache = Cache(folder=tmp_path / "cache", bytes=10**7)
    proxy.requests.clear()
    expected = batches(quadpipe.Dataset(whole))
    assert batches(quadpipe.Dataset(published, cache=cache), workers=workers) == expected
    assert batches(quadpipe.Dataset(published, cache=cache), workers=workers) == expected
    fetched = [path for method, path in proxy.requests if method == "GET" and ".tar" in path]
    shards = quadpipe.Dataset(whole).shards("train")
    assert sorted(fetched) == sorted(f"/bucket/published/{shard.name}" for shard in shards)
    kept = {path.name for path in cache.folder.iterdir()} - {".lock"}
    assert kept == {f"{shard.sha256}.tar" for shard in shards}


def test_a_full_cache_forgets_what_was_used_least_lately(published, whole, tmp_path):
    dataset = quadpipe.Dataset(whole)
    shards = dataset.shards("train")
    room = shards[0].bytes + shards[1].bytes
    cached = quadpipe.Dataset(published, cache=Cache(folder=tmp_path / "cache", bytes=room))
    (tmp_path / "cache" / "mine.txt").write_text("not a shard")
    for _ in range(2):
        found = [s.key for s in cached.samples("train")]
        assert found == [s.key for s in dataset.samples("train")]
        kept = list((tmp_path / "cache").glob("*.tar"))
        assert 1 <= len(kept) <= 2
        assert sum(path.stat().st_size for path in kept) <= room
    assert (tmp_path / "cache" / "mine.txt").exists()


def test_a_cache_that_is_too_small_is_refused_with_what_is_needed(published, whole, tmp_path):
    sizes = [shard.bytes for shard in quadpipe.Dataset(whole).shards("train")]
    cache = Cache(folder=tmp_path, bytes=sum(sizes) - 1)
    with pytest.raises(ConfigError, match=f"{len(sizes)} shards of {sum(sizes):,} bytes are"):
        Loader(quadpipe.Dataset(published, cache=cache), batch_size=5)
    with pytest.raises(ConfigError, match="a cache is for URLs; leave out --cache"):
        quadpipe.Dataset(whole, cache=cache)
    with pytest.raises(ConfigError, match="a cache of 0 bytes holds nothing"):
        Cache(folder=tmp_path, bytes=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the cache .*file.* cannot be used: .*; choose another"):
        quadpipe.Dataset(published, cache=Cache(folder=tmp_path / "file" / "in", bytes=10**9))


@pytest.mark.fault(
    "a shard arrives from S3 with a flipped bit, once; and for good",
    "fetched again; then an error that names it",
)
def test_a_shard_that_arrives_damaged_is_fetched_again(published, proxy, tmp_path, whole):
    expected = batches(quadpipe.Dataset(whole))
    proxy.troubles.append(Trouble("flip", "GET", "train-000002.tar"))
    cache = Cache(folder=tmp_path / "a", bytes=10**7)
    assert batches(quadpipe.Dataset(published, cache=cache)) == expected
    assert proxy.troubles[0].times == 0
    proxy.troubles[0].times = 10**6
    cache = Cache(folder=tmp_path / "b", bytes=10**7)
    with pytest.raises(ShardError, match="train-000002.tar has arrived twice with another"):
        batches(quadpipe.Dataset(published, cache=cache))
    assert list((tmp_path / "b").glob("*.part")) == []


def test_a_cache_never_holds_more_while_shards_arrive_slowly(
    published, whole, tmp_path, monkeypatch
):
    shards = quadpipe.Dataset(whole).shards("train")
    room = 2 * max(shard.bytes for shard in shards)
    folder, seen, real = tmp_path / "cache", [], RemoteFolder.download

    def slow(remote: RemoteFolder, name: str, path: Path) -> None:
        real(remote, name, path)
        time.sleep(0.1)
        files = [p for p in folder.iterdir() if p.suffix in (".tar", ".data")]
        seen.append(sum(p.stat().st_size for p in files if p.exists()))

    monkeypatch.setattr(RemoteFolder, "download", slow)
    cached = quadpipe.Dataset(published, cache=Cache(folder=folder, bytes=room))
    cached.shards("train")
    cached.folder.fetch([shard.name for shard in shards])
    assert len(seen) >= len(shards)
    assert max(seen) <= room
    assert sum(path.stat().st_size for path in folder.iterdir()) <= room
    assert {path.suffix for path in folder.glob("?*.*")} == {".tar"}


@pytest.mark.fault(
    "the disk of the cache is full", "an error that says so, also with --on-error skip"
)
def test_a_cache_on_a_full_disk_is_said(published, tmp_path, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cached = quadpipe.Dataset(published, cache=Cache(folder=tmp_path, bytes=10**7))
    monkeypatch.setattr(cached.folder._remote._system, "get_file", full)
    with pytest.raises(OutputError, match="the cache .* cannot be used: .*No space left on device"):
        list(cached.samples("train", on_error="skip"))


@pytest.mark.fault(
    "the server of a training's dataset is away for longer, with --on-error skip",
    "the training ends and can be resumed: what cannot be reached is not taken for damaged",
)
def test_an_outage_is_no_damage(published, proxy, whole, monkeypatch):
    monkeypatch.setattr("quadpipe.patience.PAUSES", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    dataset = quadpipe.Dataset(published)
    loader = Loader(dataset, batch_size=5, on_error="skip")
    proxy.troubles += [Trouble("refuse", method, "train-", 10**6) for method in ("GET", "HEAD")]
    with pytest.raises(UnreadableError, match="check the URL, and whether this machine has"):
        list(loader.epoch(0))
    with pytest.raises(UnreadableError):
        list(dataset.samples("train", on_error="skip"))
    proxy.troubles.clear()
    assert sum(len(batch.keys) for batch in loader.epoch(0)) == loader.samples
    assert loader.skipped.samples == 0


def test_names_that_storages_take_for_patterns_are_refused():
    for url in ("s3://bucket/data[1]", "s3://bucket/*", "memory://what?"):
        with pytest.raises(ConfigError, match=r"holds one of \* \? \[ \], which storages take"):
            open_folder(url)


def test_uploads_of_others_in_the_bucket_are_left_alone(proxy, tmp_path, image_folder):
    system = fsspec.filesystem("s3")
    system.mkdir("shared")
    others = ("backup.bin", "below/dataset.json", "train-notes.txt")
    for key in (*others, "train-000099.tar"):
        system.call_s3("create_multipart_upload", Bucket="shared", Key=key)
    RemoteFolder("s3://shared").clear_staging()
    left = system.call_s3("list_multipart_uploads", Bucket="shared")["Uploads"]
    assert {upload["Key"] for upload in left} == set(others)


def test_a_list_that_lies_about_a_size_does_not_fetch_for_ever(published, whole, tmp_path):
    shard = quadpipe.Dataset(whole).shards("train")[0]
    folder = CachedFolder(RemoteFolder(published), Cache(folder=tmp_path, bytes=10**7))
    folder.know({shard.name: (shard.sha256, shard.bytes - 512)})
    with pytest.raises(ShardError, match="has arrived twice with another checksum or size"):
        folder.map(shard.name)


def test_two_processes_share_a_cache(published, proxy, tmp_path, whole):
    program = (
        "import sys, quadpipe; from pathlib import Path; from quadpipe.files import Cache\n"
        "cache = Cache(folder=Path(sys.argv[2]), bytes=10**7)\n"
        "print(len(list(quadpipe.Dataset(sys.argv[1], cache=cache).samples('train'))))\n"
    )
    proxy.requests.clear()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, published, str(tmp_path)], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    counts = [int(process.communicate(timeout=100)[0]) for process in both]
    assert counts == [quadpipe.Dataset(whole).split("train").samples] * 2
    fetched = [path for method, path in proxy.requests if method == "GET" and ".tar" in path]
    assert len(fetched) == len(set(fetched)) == len(quadpipe.Dataset(whole).shards("train"))


@pytest.mark.fault(
    "a process that fetches a shard into the cache is killed", "its part is removed by the next one"
)
def test_what_a_dead_process_left_in_the_cache_is_removed(published, tmp_path, whole):
    orphan = tmp_path / f"{'0' * 64}.part"
    orphan.write_bytes(b"half")
    cache = Cache(folder=tmp_path, bytes=10**7)
    assert batches(quadpipe.Dataset(published, cache=cache)) == batches(quadpipe.Dataset(whole))
    assert not orphan.exists()


def test_training_from_s3_with_a_cache_is_training_from_a_disk(published, whole, tmp_path):
    runs: list[RunFolder] = []
    for where, more in (
        (str(whole), ()),
        (published, ("--cache", str(tmp_path / "cache"), "--cache-size", "10MB")),
    ):
        out = tmp_path / f"run{len(runs)}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "quadpipe.cli", "train", where, "--out", str(out)),
                *("--model", "nano", "--epochs", "1", "--batch-size", "8", *more),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        runs.append(RunFolder(out))
    one, other = (run.weights("last.safetensors")[0] for run in runs)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert list((tmp_path / "cache").glob("*.tar"))


def test_relative_names_and_urls_of_folders(tmp_path):
    assert isinstance(open_folder(f"file://{tmp_path}"), LocalFolder)
    assert open_folder(f"file://{tmp_path}").root == tmp_path
