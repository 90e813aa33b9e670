"""Reading datasets from an S3 server, in parts and through a cache of bounded size."""

import errno
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
from servers import Trouble

import quadpipe
from quadpipe.errors import ConfigError, OutputError, ShardError, UnreadableError
from quadpipe.files import Cache, CachedFolder, RemoteFolder
from quadpipe.loader import Loader
from quadpipe.model.run_folder import RunFolder


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    options: dict[str, Any] = {"samples_per_shard": 4, "tokens": 40, "val_share": 0.2}
    quadpipe.tokenize(image_folder, out, in_process=True, **options)
    return out


@pytest.fixture(scope="module")
def published(s3, whole) -> str:
    """A whole dataset on S3."""
    system = fsspec.filesystem("s3")
    system.put(f"{whole}/", "bucket/published", recursive=True)
    return "s3://bucket/published"


def batches(dataset: quadpipe.Dataset, **options: Any) -> list[tuple[list[str], bytes]]:
    loader = Loader(dataset, batch_size=5, seed=3, **options)
    return [
        (batch.keys, batch.tokens.numpy().tobytes())
        for epoch in (0, 1)
        for batch in loader.epoch(epoch)
    ]


def test_batches_from_s3_equal_those_from_a_disk(published, whole):
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


def test_a_full_cache_evicts_the_least_recently_used_shard(published, whole, tmp_path):
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


def test_a_cache_that_is_too_small_is_refused_with_the_size_it_needs(published, whole, tmp_path):
    sizes = [shard.bytes for shard in quadpipe.Dataset(whole).shards("train")]
    cache = Cache(folder=tmp_path, bytes=sum(sizes) - 1)
    with pytest.raises(ConfigError, match=f"for {len(sizes)} shards of {sum(sizes):,} bytes at"):
        Loader(quadpipe.Dataset(published, cache=cache), batch_size=5)
    with pytest.raises(ConfigError, match="a cache is for URLs; omit --cache"):
        quadpipe.Dataset(whole, cache=cache)
    with pytest.raises(ConfigError, match="a cache of 0 bytes is empty"):
        Cache(folder=tmp_path, bytes=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the cache .*file.* cannot be used: .*; choose another"):
        quadpipe.Dataset(published, cache=Cache(folder=tmp_path / "file" / "in", bytes=10**9))


@pytest.mark.fault(
    "a shard arrives from S3 with a flipped bit, once, or every time",
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
    with pytest.raises(ShardError, match="train-000002.tar arrived twice with another"):
        batches(quadpipe.Dataset(published, cache=cache))
    assert list((tmp_path / "b").glob("*.part")) == []


def test_the_cache_stays_within_its_size_while_shards_arrive_slowly(
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
    "the disk of the cache is full", "an error that names the cause, also with --on-error skip"
)
def test_a_cache_on_a_full_disk_is_an_error(published, tmp_path, monkeypatch):
    def full(*arguments: object, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cached = quadpipe.Dataset(published, cache=Cache(folder=tmp_path, bytes=10**7))
    folder: Any = cached.folder
    monkeypatch.setattr(folder._remote._system, "get_file", full)
    with pytest.raises(OutputError, match="the cache .* cannot be used: .*No space left on device"):
        list(cached.samples("train", on_error="skip"))


def test_a_cache_is_not_to_blame_when_the_process_may_not_open_more_files(tmp_path, monkeypatch):
    def exhausted(*arguments: object, **options: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def fails_to_connect(*arguments: object, **options: Any) -> None:
        raise ConnectionError("Could not connect") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("quadpipe.retries.PAUSES", ())
    fsspec.filesystem("memory").pipe_file("/exhausted/a.tar", b"shard")
    remote = RemoteFolder("memory://exhausted")
    folder = CachedFolder(remote, Cache(folder=tmp_path, bytes=10**7))
    folder.know({"a.tar": (sha256(b"shard").hexdigest(), 5)}.get)
    for place, name, fails in (
        (Path, "open", exhausted),
        (remote._system, "get_file", exhausted),
        (remote._system, "get_file", fails_to_connect),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, fails)
            with pytest.raises(UnreadableError, match="Too many open files; raise the limit"):
                folder.contents("a.tar")
    folder.contents("a.tar")
    monkeypatch.setattr("quadpipe.files.cache.np.memmap", exhausted)
    with pytest.raises(UnreadableError, match="Too many open files; raise the limit"):
        folder.contents("a.tar")


@pytest.mark.fault(
    "the server of a training dataset is down for longer, with --on-error skip",
    "the training ends and can be resumed: an unreachable dataset is not treated as damaged",
)
def test_an_outage_is_not_skipped_as_damage(published, proxy, whole, monkeypatch):
    monkeypatch.setattr("quadpipe.retries.PAUSES", (0.01,))
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


def test_a_shard_of_another_size_than_listed_is_fetched_at_most_twice(published, whole, tmp_path):
    shard = quadpipe.Dataset(whole).shards("train")[0]
    folder = CachedFolder(RemoteFolder(published), Cache(folder=tmp_path, bytes=10**7))
    folder.know({shard.name: (shard.sha256, shard.bytes - 512)}.get)
    with pytest.raises(ShardError, match="arrived twice with another checksum or size"):
        folder.contents(shard.name)


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
def test_partial_files_of_a_dead_process_are_removed_from_the_cache(published, tmp_path, whole):
    orphan = tmp_path / f"{'0' * 64}.part"
    orphan.write_bytes(b"half")
    cache = Cache(folder=tmp_path, bytes=10**7)
    assert batches(quadpipe.Dataset(published, cache=cache)) == batches(quadpipe.Dataset(whole))
    assert not orphan.exists()


def test_training_from_s3_with_a_cache_equals_training_from_a_disk(published, whole, tmp_path):
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
