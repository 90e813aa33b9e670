from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml

import quadpipe
from quadpipe.shards.card import card
from quadpipe.shards.hub import MOST_NAMES, quoted
from quadpipe.shards.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(image_folder, tmp_path_factory) -> Manifest:
    out = tmp_path_factory.mktemp("card")
    described: dict[str, Any] = {
        "name": 'Temples: "old" ones',
        "license": "cc-by-4.0",
        "source": "scikit-learn",
    }
    options: dict[str, Any] = {"in_process": True, "val_share": 0.2, "codec": "jpg", **described}
    return quadpipe.tokenize(image_folder, out, **options).manifest


def front_matter(text: str) -> dict:
    start, matter, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter)


def test_the_front_matter_describes_the_dataset_to_the_hub(manifest):
    matter = front_matter(card(manifest))
    assert matter["pretty_name"] == 'Temples: "old" ones'
    assert matter["license"] == "cc-by-4.0"
    assert matter["task_categories"] == ["image-classification"]
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "train-[0-9]*.tar"},
                {"split": "validation", "path": "val-[0-9]*.tar"},
            ],
        }
    ]


def test_the_text_counts_and_names_the_source(manifest):
    text = card(manifest)
    assert "| train | 18 | 0 | 1 | 18 | 1 |" in text
    assert "3 classes" in text
    assert "Every budget of 16 to 100 tokens in steps of 3" in text
    assert "codec jpg, quality 95" in text
    assert "Source: scikit-learn" in text
    assert "License: cc-by-4.0" in text
    assert "looked at the labels" not in text
    assert "Kept beside" not in text
    kept = card(replace(manifest, members={"txt": "bytes", "bbox.json": "boxes"}))
    boxes = "bbox.json (boxes [left, top, right, bottom] in pixels of the crop)"
    assert f"\n\nKept beside the tokens of each sample: {boxes}, txt.\n\n" in kept
    aware = replace(manifest, scorer=manifest.scorer | {"label_aware": True})
    assert "The scorer looked at the labels: for analysis" in card(aware)


@pytest.mark.parametrize(
    ("samples", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (1_281_167, "1M<n<10M"), (10**9, "n>1B")],
)
def test_the_size_category_is_one_of_those_of_the_hub(manifest, samples, category):
    split = replace(manifest.splits["train"], samples=samples, inputs=samples)
    text = card(replace(manifest, splits={"train": split}))
    assert front_matter(text)["size_categories"] == [category]


def test_without_labels_there_is_no_task(manifest):
    assert "task_categories" not in front_matter(card(replace(manifest, classes=None)))


def test_kept_members_have_the_types_that_datasets_decodes(manifest):
    members = {
        "bbox.json": "boxes", "depth.npy": "bytes", "embedding.f16": "bytes", "id": "bytes",
        "original.json": "bytes", "seg.png": "mask", "txt": "bytes",
    }  # fmt: skip
    found = features(replace(manifest, members=members))
    assert {name: found[name] for name in members if name in found} == {
        "bbox.json": {"sequence": {"sequence": "float64"}},
        "embedding.f16": {"dtype": "binary"},
        "id": {"dtype": "int64"},
        "seg.png": {"dtype": "image"},
        "txt": {"dtype": "string"},
    }


HOSTILE = ["a: b", '"', "\\", "---", "'", "# no", "{x: 1}", "*star", "\ufffe", "naïve", " ", "null"]


def features(manifest: Manifest, config: int = 0) -> dict[str, Any]:
    """Type by name of member, as YAML has it."""
    found = front_matter(card(manifest))["dataset_info"][config]["features"]
    return {each.pop("name"): each for each in found}


def test_the_features_name_the_types_of_all_members(manifest):
    found = features(manifest)
    assert list(found) == [
        *("__key__", "__url__", "tokens.jpg", "nodes.npy", "importance.npy", "cls", "json"),
    ]
    assert found["tokens.jpg"] == {"dtype": "image"}
    assert found["nodes.npy"] == {"dtype": {"array2_d": {"shape": [128, 4], "dtype": "int32"}}}
    assert found["importance.npy"] == {"sequence": "float32"}
    names = {"0": "flower", "1": "temple", "2": "zebra"}
    assert found["cls"] == {"dtype": {"class_label": {"names": names}}}
    assert {each["name"] for each in found["json"]["struct"]} == {
        *("path", "class", "width", "height", "view", "box"),
    }
    raw = features(replace(manifest, codec={"name": "raw"}, classes=None, preview=128))
    pixels = {"shape": [128, 16, 16, 3], "dtype": "uint8"}
    assert raw["tokens.npy"] == {"dtype": {"array4_d": pixels}}
    assert raw["preview.jpg"] == {"dtype": "image"}
    assert "cls" not in raw


def test_class_names_cannot_leave_their_place_in_the_front_matter(manifest):
    found = features(replace(manifest, classes=HOSTILE))["cls"]["dtype"]["class_label"]["names"]
    assert list(found.values()) == HOSTILE
    assert yaml.safe_load(quoted("".join(HOSTILE))) == "".join(HOSTILE)


def test_each_view_is_a_configuration(manifest):
    train = manifest.splits["train"]
    viewed = replace(train, views=3, samples=3 * train.samples)
    both = replace(manifest, splits=manifest.splits | {"train": viewed})
    matter = front_matter(card(both))
    patterns = {
        config["config_name"]: {file["split"]: file["path"] for file in config["data_files"]}
        for config in matter["configs"]
    }
    assert patterns == {
        "default": {"train": "train-[0-9]*.tar", "validation": "val-[0-9]*.tar"},
        "view-01": {"train": "train-v01-*.tar"},
        "view-02": {"train": "train-v02-*.tar"},
    }
    assert [each["config_name"] for each in matter["dataset_info"]] == list(patterns)
    assert features(both, 2) == features(manifest)


def test_very_many_classes_are_numbers(manifest):
    few = replace(manifest, classes=[f"class {n}" for n in range(1000)])
    assert len(features(few)["cls"]["dtype"]["class_label"]["names"]) == 1000
    many = replace(manifest, classes=[f"class {n}" for n in range(MOST_NAMES + 1)])
    assert features(many)["cls"] == {"dtype": "int64"}
    assert "The names of the classes are in `dataset.json`" in card(many)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        (
            "ImageNet terms https://image-net.org/download",
            {
                "license": "other",
                "license_name": "imagenet-terms",
                "license_link": "https://image-net.org/download",
            },
        ),
        (
            "1.0 (https://example.org/terms).",
            {
                "license": "other",
                "license_name": "1.0",
                "license_link": "https://example.org/terms",
            },
        ),
        ("ours: \n only", {"license": "other", "license_name": "ours-only"}),
        ("??", {"license": "other", "license_name": "other"}),
    ],
)
def test_the_license_is_one_of_those_of_the_hub_or_another_one_with_a_name(
    given, expected, manifest
):
    matter = front_matter(card(replace(manifest, license=given)))
    assert {key: value for key, value in matter.items() if "license" in key} == expected


@pytest.mark.parametrize("codec", ["raw", "jpg"])
def test_the_lines_in_the_card_give_the_leaves_at_a_budget(
    codec, image_folder, tmp_path, monkeypatch
):
    made = quadpipe.tokenize(
        image_folder, tmp_path, in_process=True, limit=3, tokens=64, codec=codec, split="train"
    )
    lines = card(made.manifest).split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines, names)
    expected = next(iter(made.samples("train"))).mosaic.leaves(len(names["leaf_tokens"]))
    assert 16 < len(expected) < 64
    assert np.array_equal(names["leaf_tokens"], expected.tokens)
    assert np.array_equal(names["boxes"], expected.boxes)


def test_the_citation_holds_the_fingerprint(manifest):
    text = card(replace(manifest, name="Our {set}\n```", quadpipe="0.1.0"))
    entry = text.split("```bibtex\n")[1].split("```")[0]
    assert entry.startswith(f"@misc{{quadpipe-{manifest.fingerprint[:12]},")
    assert f"fingerprint {manifest.fingerprint}}}" in entry
    assert "title = {Our set}" in entry
    assert entry.count("{") == entry.count("}")
