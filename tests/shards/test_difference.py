import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import quadpipe
from forging import make_dataset
from quadpipe.cli import commands
from quadpipe.cli.difference import difference_text
from quadpipe.shards.difference import difference
from quadpipe.sharing.copying import copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """shards/, a copy of it under another name, a part of it, and one with fewer tokens."""
    folder = tmp_path_factory.mktemp("difference")
    shards = [make_dataset(folder)]
    copy(shards, folder / "renamed", name="Noise", license="cc0-1.0")
    copy(shards, folder / "part", shards=2, in_process=True)
    copy(shards, folder / "smaller", tokens=13, classes="right,left", in_process=True)
    return folder


def between(one: Path, other: Path) -> dict:
    return difference(quadpipe.Dataset(one), quadpipe.Dataset(other))


def info(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(commands, ["info", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.output


def test_a_copy_under_another_name_is_equal_and_the_name_is_reported(folder):
    found = between(folder / "shards", folder / "renamed")
    assert found["equal"]
    fields = found["fields"]
    assert (fields["name"], fields["license"]) == ([None, "Noise"], [None, "cc0-1.0"])
    assert fields["parents"][1][0]["fingerprint"] in found["fingerprints"]
    assert (found["classes"], found["splits"]) == (None, {})
    code, text = info(folder / "shards", folder / "renamed")
    assert code == 0
    assert "the same tokens, classes and shards: fingerprint" in text
    assert "Noise" in text


def test_kept_members_and_previews_are_compared(folder):
    one, other = (quadpipe.Dataset(folder / "shards") for _ in range(2))
    one.manifest = replace(one.manifest, members={"txt": "bytes"}, fingerprint="")
    other.manifest = replace(other.manifest, members={}, preview=64, fingerprint="")
    assert difference(one, other)["fields"] == {
        "members.txt": ["bytes", None], "preview": [None, 64]
    }  # fmt: skip


def test_shards_with_the_same_bytes_are_counted(folder):
    found = between(folder / "shards", folder / "part")
    assert not found["equal"]
    train = found["splits"]["train"]
    assert train["of_shards"] == {"same": 2, "only": [2, 0]}
    assert train["samples"] == [16, 8]
    assert "val" not in found["splits"]
    code, text = info(folder / "part", folder / "shards")
    assert code == 1
    assert "2 have the same bytes, 0 are only in the first dataset, 2 only in the second" in text


def test_tokenizers_and_the_order_of_classes_are_compared(folder):
    found = between(folder / "shards", folder / "smaller")
    assert found["fields"]["tokenizer.tokens"] == [16, 13]
    assert "parents" in found["fields"]
    assert found["classes"] == {
        "numbers": [2, 2], "added": [], "removed": [], "reordered": True
    }  # fmt: skip
    assert "the same label means another class" in info(folder / "shards", folder / "smaller")[1]
    document = json.loads(info(folder / "shards", folder / "smaller", "--json")[1])
    assert document == found | {"locations": document["locations"]}


def test_added_and_removed_classes_and_splits_are_named(folder):
    one, other = (quadpipe.Dataset(folder / "shards") for _ in range(2))
    splits = {"train": other.manifest.splits["train"]}
    other.manifest = replace(
        other.manifest, classes=["left", "up\x1b[2J"], splits=splits, fingerprint=""
    )
    found = difference(one, other)
    assert found["classes"]["added"] == ["up\x1b[2J"]
    assert found["classes"]["removed"] == ["right"]
    assert not found["classes"]["reordered"]
    assert found["splits"]["val"]["samples"] == [4, None]
    assert found["splits"]["val"]["of_shards"] == {"same": 0, "only": [1, 0]}
    assert "\x1b" not in difference_text(found)
    one.manifest = replace(one.manifest, classes=None, fingerprint="")
    assert difference(one, other)["classes"]["numbers"] == [None, 2]
