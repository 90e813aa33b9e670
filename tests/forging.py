"""Small datasets, and changes of their shards and lists with checksums that fit."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import quadpipe
from quadpipe import Dataset
from quadpipe.cli.gallery import exhibits
from quadpipe.cli.summary import summary_text
from quadpipe.errors import ShardError
from quadpipe.loader import Loader, webdataset
from quadpipe.loader.samples import SampleReader
from quadpipe.render import draw
from quadpipe.shards.format import gains_name, index_name, npy_header
from quadpipe.shards.index import FIELDS, checksum, scan
from quadpipe.shards.statistics import statistics
from quadpipe.shards.summary import summarize
from quadpipe.shards.tar import END, member_bytes, read_members, read_part


def make_dataset(folder: Path, inputs: int = 20, **options: Any) -> Path:
    """Noise of 32 x 32 pixels in two classes: 16 tokens, shards of four samples, about 4 kB each.

    The first 16 of the inputs are the split train, the others val.
    """
    rng = np.random.default_rng(0)
    for number in range(inputs):
        split = "train" if number < 16 else "val"
        path = folder / "images" / split / ("left", "right")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    given: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 4,
        "max_patch_size": 16,
        "tokens": 16,
        "crop_pct": 1.0,
    }
    given |= {"samples_per_shard": 4, "in_process": True} | options
    quadpipe.tokenize(folder / "images", folder / "shards", **given)
    return folder / "shards"


def members_of(path: Path) -> dict[str, bytes]:
    return {name: bytes(data) for name, _, data in read_members(memoryview(path.read_bytes()))}


def tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(member_bytes(name, data) for name, data in members) + END


def edit_json(file: Path, **changes: Any) -> None:
    """Set entries by their path with __ between the keys; None removes one."""
    document = json.loads(file.read_text())
    for path, value in changes.items():
        *above, last = path.split("__")
        place = document
        for key in above:
            place = place[key]
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    file.write_text(json.dumps(document))


def edit_manifest(dataset: Path, **changes: Any) -> None:
    """Change entries of the manifest, as `edit_json` does; its fingerprint is computed then."""
    edit_json(dataset / "dataset.json", **{"fingerprint": None} | changes)


def rewrite_shard_list(
    dataset: Path, change: Callable[[list[dict[str, Any]]], Any], split: str = "val"
) -> None:
    """Change the rows of a shard list and make its checksum and totals fit."""
    path = dataset / f"{split}.shards.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    totals: dict[str, Any] = {
        f"splits__{split}__shard_list_sha256": digest,
        f"splits__{split}__shards": len(rows),
    }
    numbers = all(type(row.get(key)) is int for row in rows for key in ("bytes", "samples"))
    if numbers and all(row.get("view") in (0, 1) for row in rows):
        totals[f"splits__{split}__bytes"] = sum(row["bytes"] for row in rows)
        totals[f"splits__{split}__samples"] = sum(row["samples"] for row in rows)
        first = sum(row["samples"] for row in rows if row["view"] == 0)
        totals[f"splits__{split}__inputs"] = first
    edit_manifest(dataset, **totals)
    rewrite_index(dataset, split)


def remove_index(dataset: Path, *splits: str) -> None:
    """Make the dataset like those of versions that wrote neither index nor gains."""
    for split in splits or ("train", "val"):
        for name, field in ((index_name, "index_sha256"), (gains_name, "gains_sha256")):
            (dataset / name(split)).unlink(missing_ok=True)
            edit_manifest(dataset, **{f"splits__{split}__{field}": None})


def rewrite_index(dataset: Path, split: str) -> None:
    """Make the index fit the shards; leave it out if they cannot be parsed."""
    remove_index(dataset, split)
    parts = []
    try:
        for number, shard in enumerate(Dataset(dataset).shards(split)):
            if not (dataset / shard.name).is_file():
                return
            contents = memoryview((dataset / shard.name).read_bytes())
            rows, damage = scan(contents, shard)
            if damage:
                return
            rows["shard"] = number
            for row in rows:
                part = contents[row["offset"] :][: row["size"]]
                row["checksum"] = checksum(part)
                labels = [bytes(data) for name, _, data in read_part(part) if name[-4:] == ".cls"]
                readable = labels and re.fullmatch(rb"[0-9]{1,9}", labels[0])
                row["label"] = int(labels[0]) if readable else -1
            parts.append(rows)
    except (ShardError, OSError):
        return
    put_index(dataset, split, np.concatenate(parts))


def put_index(dataset: Path, split: str, rows: np.ndarray) -> None:
    """Write these rows as the index, with the checksum that the manifest then names."""
    data = npy_header(FIELDS, rows.shape) + rows.tobytes()
    (dataset / index_name(split)).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(dataset, **{f"splits__{split}__index_sha256": digest})


def reseal(dataset: Path, name: str, data: bytes, *, markers: bool = False) -> None:
    """Replace a shard and make all checksums fit."""
    (dataset / name).write_bytes(data)
    split = name.partition("-")[0]
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_shard_list(
        dataset, lambda rows: [row.update(found) for row in rows if row["name"] == name], split
    )
    if not markers:
        shutil.rmtree(dataset / ".quadpipe", ignore_errors=True)


def replace_member(dataset: Path, shard: str, member: str, data: bytes | None) -> None:
    """Put other content in one member of a shard, or leave the member out."""
    members = members_of(dataset / shard) | {member: data}
    kept = [(name, content) for name, content in members.items() if content is not None]
    reseal(dataset, shard, tar_of(kept))


@contextmanager
def without_compiled_reader() -> Iterator[None]:
    """The loader reads every sample with `Dataset.parse_sample`."""

    def nothing(reader: SampleReader, addresses: np.ndarray, *rest: object) -> np.ndarray:
        return np.zeros(len(addresses), np.bool_)

    with patch.object(SampleReader, "_gather_usual", nothing):
        yield


def _load(dataset: Path) -> None:
    list(Loader(dataset, "train", batch_size=5, tokens=13).epoch(0))


def _load_slowly(dataset: Path) -> None:
    with without_compiled_reader():
        _load(dataset)


READERS: dict[str, Callable[[Path], object]] = {
    "samples": lambda dataset: list(Dataset(dataset).samples("train")),
    "loader": _load,
    "loader without its compiled reader": _load_slowly,
    "webdataset": lambda dataset: list(webdataset(dataset, "train")),
    "info": lambda dataset: summary_text(json.loads(json.dumps(summarize(Dataset(dataset))))),
    "statistics": lambda dataset: statistics(Dataset(dataset)),
    "show": lambda dataset: draw(exhibits(Dataset(dataset), "train", 16), [16]),
}
"""All that reads the split train of a dataset and raises when something is wrong."""


def count_with_skip(dataset: Path) -> dict[str, tuple[int, int]]:
    """By reader: the samples of the split train that were read with "skip", and those skipped."""
    counts = {}
    opened = Dataset(dataset)
    found = len(list(opened.samples("train", on_error="skip")))
    counts["samples"] = found, opened.skipped.samples
    opened = Dataset(dataset)
    found = len(list(webdataset(opened, "train", on_error="skip")))
    counts["webdataset"] = found, opened.skipped.samples
    for name, how in (("loader", nullcontext()), ("slowly", without_compiled_reader())):
        with how:
            loader = Loader(dataset, "train", batch_size=5, tokens=13, on_error="skip")
            batches = list(loader.epoch(0))
        assert [len(batch.keys) for batch in batches] == [5, 5, 5, 1]
        found = sum(int(batch.weight.sum()) for batch in batches)
        assert found + sum(batch.skipped for batch in batches) == 16
        counts[name] = found, loader.skipped.samples
    return counts
