import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from job_runs import tokenize_small
from page_texts import hostile
from PIL import Image

import quadpipe
from forging import make_dataset
from quadpipe.cli import commands
from quadpipe.cli.difference import difference_text
from quadpipe.cli.gallery import exhibits
from quadpipe.cli.pictures import write_page
from quadpipe.counts import CountLimits
from quadpipe.errors import ConfigError, SourceError
from quadpipe.page.build import build_page
from quadpipe.page.facts import address_of
from quadpipe.shards.difference import difference


@pytest.fixture(scope="module")
def shards(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "shards"
    tokenize_small(image_folder, out, val_share=0.2, name="Temples", license="cc-by-4.0")
    return out


def limits_of(dataset: quadpipe.Dataset) -> CountLimits:
    return CountLimits.of(dataset.manifest.geometry, dataset.manifest.tokenizer.tokens)


def page_of(dataset: quadpipe.Dataset, samples: int = 4, **given: Any) -> str:
    shown = exhibits(dataset, "train", samples)
    return build_page(dataset, "train", shown, limits_of(dataset), **given)


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return dict(json.loads(text))


class Text(HTMLParser):
    """The text of a page, and the names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements = "", []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_the_dataset_is(shards):
    dataset = quadpipe.Dataset(shards)
    text = Text(page_of(dataset)).text
    for part in (
        "Temples",
        dataset.manifest.fingerprint,
        "cc-by-4.0",
        "4 of the 18 of train",
        "saliency",
        "zebra",
        "quadpipe train shards --out run/ --tokens",
        f"expect='{dataset.manifest.fingerprint}'",
    ):
        assert part in text, part


def test_the_page_names_kept_members_and_previews(shards):
    dataset = quadpipe.Dataset(shards)
    assert "kept members" not in Text(page_of(dataset)).text
    members = {"txt": "bytes", "bbox.json": "boxes"}
    dataset.manifest = replace(dataset.manifest, members=members, preview=64)
    text = Text(page_of(dataset)).text
    for part in (
        "kept members",
        "bbox.json (boxes [left, top, right, bottom] in pixels of the crop), txt",
        "preview",
        "64 pixels",
    ):
        assert part in text, part


def test_samples_of_random_crops_are_named_as_such(tmp_path):
    dataset = quadpipe.Dataset(make_dataset(tmp_path, views=2))
    titles = [exhibit.title for exhibit in exhibits(dataset, "train", 8)]
    assert len(set(titles)) == 8
    assert sum(title.endswith(".png, view 01") for title in titles) == 4


def test_the_page_is_one_file_with_the_same_bytes_each_time(shards, tmp_path, monkeypatch):
    page = page_of(quadpipe.Dataset(shards))
    monkeypatch.chdir(shards.parent)
    assert page_of(quadpipe.Dataset("shards")) == page
    assert not re.findall(r'(?:src|href)="|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', page)
    assert str(shards.parent) not in page


def test_the_splits_give_the_nodes_of_each_sample(shards):
    dataset = quadpipe.Dataset(shards)
    shown = exhibits(dataset, "train", 3)
    data = data_of(build_page(dataset, "train", shown, limits_of(dataset)))
    for sample, exhibit in zip(data["samples"], shown, strict=True):
        nodes = exhibit.mosaic.nodes
        steps = np.full(len(nodes), -1)
        steps[sample["splits"]] = np.arange(len(sample["splits"]))
        np.testing.assert_array_equal(steps, nodes[:, 3])


def test_counts_at_a_mean_are_those_of_the_split(shards):
    dataset = quadpipe.Dataset(shards)
    limits = limits_of(dataset)
    data = data_of(page_of(dataset, 18))
    assert [row["mean"] for row in data["means"]] == list(limits.counts)
    for row in data["means"]:
        gains = dataset.gains("train")
        splits = limits.at_threshold(gains, limits.threshold(gains, row["mean"]))
        roots = limits.geometry.roots
        assert row["tokens"] == (roots + 3 * splits).tolist()
        shares = np.bincount(splits, minlength=len(row["shares"])) / len(splits)
        np.testing.assert_allclose(row["shares"], 1e4 * shares, atol=0.5)


@pytest.mark.parametrize("patch", [{}, {"patch_size": 14, "max_patch_size": 56, "image_size": 224}])
def test_a_page_of_24_samples_has_at_most_3_megabytes_whatever_they_show(tmp_path, patch):
    for number in range(24):
        noise = np.random.default_rng(number).integers(0, 256, (300, 300, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.png", compress_level=0)
    dataset = quadpipe.tokenize(
        tmp_path / "images", tmp_path / "shards", tokens=100, in_process=True, **patch
    )
    assert 1_000_000 < len(page_of(dataset, 24).encode()) <= 3_000_000


def test_hostile_text_stays_text(shards):
    dataset, shown, text = hostile(quadpipe.Dataset(shards))
    page = build_page(dataset, "train", shown, limits_of(dataset))
    parsed = Text(page)
    assert "img" not in parsed.elements
    assert parsed.elements.count("script") == 2
    assert parsed.text.count(text) > 12
    assert "<img" not in page


def test_text_of_any_depth_and_any_characters_is_written(shards, tmp_path):
    dataset = quadpipe.Dataset(shards)
    nested: dict[str, Any] = {}
    for _ in range(900):
        nested = {"deeper": nested}
    library = dataset.manifest.imaging_library | {"jpeg": "\ud800"}
    scorer = dataset.manifest.scorer | {"nested": nested}
    dataset.manifest = replace(dataset.manifest, imaging_library=library, scorer=scorer)
    write_page(page_of(dataset), tmp_path / "page.html")
    assert "scorer nested deeper" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = difference(dataset, quadpipe.Dataset(shards))
    assert "scorer.nested" in found["fields"]
    assert "\ud800" not in difference_text(found)


def test_addresses_have_no_credentials_and_no_folders_of_this_machine(shards):
    for folder, address in (
        (str(shards), "shards"),
        (f"{shards}/../shards/", "shards"),
        ("https://user:secret@host/data?X-Signature=secret#secret", "https://host/data"),
        ("s3://bucket/a b@2", "s3://bucket/a b@2"),
        ("simplecache::http://user:secret@host/d?secret", "simplecache::http://host/d"),
        ("zip://a@b::ftp://me:s@cret@host/d.zip?secret", "zip://b::ftp://host/d.zip"),
        (f"simplecache::file://{shards}", "shards"),
        (f"file://{shards}", "shards"),
    ):
        dataset = quadpipe.Dataset(shards)
        dataset.folder = folder  # type: ignore[assignment]
        assert address_of(dataset) == address


def show(*arguments: object) -> str:
    given = ["show", *map(str, arguments)]
    return CliRunner().invoke(commands, given, catch_exceptions=False).output


def test_show_writes_a_page_that_starts_where_it_is_told(shards, image_folder, tmp_path):
    out = tmp_path / "page.html"
    assert show(shards, "--samples", 2, "--tokens", 31, "--out", out) == f"{out}\n"
    data = data_of(out.read_text())
    assert data["start"] == {"mode": "tokens", "value": 31}
    assert [sample["image"] for sample in data["samples"]] == [None, None]
    show(shards, "--mean-tokens", 22, "--min-tokens", 13, "--in", image_folder, "--split", "val",
         "--out", out)  # fmt: skip
    data = data_of(out.read_text())
    assert data["start"] == {"mode": "mean", "value": 22}
    assert data["means"][0]["mean"] == 13
    assert data["samples"][0]["image"].startswith("data:image/jpeg;base64,")


def test_the_mean_that_is_asked_for_is_on_the_slider(shards, monkeypatch):
    monkeypatch.setattr("quadpipe.page.build._MOST_MEANS", 2)
    for mean in (13, 22):
        data = data_of(page_of(quadpipe.Dataset(shards), mean=mean))
        assert data["start"] == {"mode": "mean", "value": mean}
        assert mean in [row["mean"] for row in data["means"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", 16, "--tokens", 31), "a page has a slider over budgets; give one --tokens"),
        (("--tokens", 15), "15 tokens cannot tile"),
        (("--mean-tokens", 100), "a mean of 100 tokens is not from 4 to 40"),
        (("--mean-tokens", 31, "--tokens", 31), "--tokens applies to pictures without"),
    ],
)
def test_a_page_refuses_budgets_that_the_dataset_does_not_serve(
    shards, tmp_path, arguments, message
):
    with pytest.raises(ConfigError, match=message):
        show(shards, "--out", tmp_path / "page.html", *arguments)
    assert not (tmp_path / "page.html").exists()


def test_an_image_is_drawn_as_a_picture_only(image_folder, tmp_path):
    image = next(image_folder.rglob("*.jpg"))
    with pytest.raises(SourceError, match="nosuch does not exist; give an image file"):
        show(tmp_path / "nosuch", "--out", tmp_path / "page.html")
    with pytest.raises(ConfigError, match="a page is about a dataset, not an image"):
        show(image, "--out", tmp_path / "page.html")


def test_without_samples_there_is_no_page(shards):
    dataset = quadpipe.Dataset(shards)
    with pytest.raises(ConfigError, match="no samples to draw"):
        build_page(dataset, "train", [], limits_of(dataset))


def test_a_dataset_of_one_budget_and_without_labels_has_a_page(image_folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for image in list(image_folder.rglob("*.jpg"))[:3]:
        (tmp_path / "flat" / image.name).write_bytes(image.read_bytes())
    dataset = tokenize_small(
        tmp_path / "flat", tmp_path / "out", max_patch_size=8, tokens=64, scorer="uniform"
    )
    page = page_of(dataset)
    assert "no labels" in Text(page).text
    data = data_of(page)
    assert [sample["splits"] for sample in data["samples"]] == [[]] * 3
    assert data["means"] == [{"mean": 64, "tokens": [64] * 3, "shares": [10_000]}]
