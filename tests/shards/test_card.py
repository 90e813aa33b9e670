from dataclasses import replace
from typing import Any

import pytest
import yaml

import quadpipe
from quadpipe.shards.card import card
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
                {"split": "train", "path": "train-*.tar"},
                {"split": "validation", "path": "val-*.tar"},
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
