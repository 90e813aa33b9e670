"""What a copy finds at its destination, and sources that change."""

import json
import shutil
from pathlib import Path

import pytest

import quadpipe
from forging import edit_json, make_dataset
from quadpipe import faults
from quadpipe.errors import OutputError, ShardError
from quadpipe.sharing import CopyPreview, CopyProgress


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("source"), name="Noise")


def test_a_new_name_keeps_the_fields_that_this_version_does_not_write(source, tmp_path):
    old = Path(shutil.copytree(source, tmp_path / "old"))
    edit_json(old / "dataset.json", tokenizer__scale_weight=None, fingerprint=None, later="field")
    made = quadpipe.copy(old, tmp_path / "out", name="Other")
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    assert made.manifest.name == document["name"] == "Other"
    assert document["later"] == "field"
    assert made.manifest.fingerprint == quadpipe.Dataset(old).manifest.fingerprint


def test_a_source_that_changes_meanwhile_is_not_called_whole(source, tmp_path):
    changing = Path(shutil.copytree(source, tmp_path / "changing"))
    other = make_dataset(tmp_path / "other", inputs=18, seed=1)

    class Changing(CopyProgress):
        def planned(self, preview: CopyPreview) -> None:
            shutil.copytree(other, changing, dirs_exist_ok=True)

    with pytest.raises(ShardError, match="was changed while it was copied; rerun the same command"):
        quadpipe.copy(changing, tmp_path / "out", progress=Changing())
    assert not (tmp_path / "out/dataset.json").exists()


def test_an_output_of_tokenize_in_the_place_of_a_copy_is_not_replaced(source, tmp_path):
    made = make_dataset(tmp_path)
    shutil.rmtree(made)
    quadpipe.copy(source, made)
    for path in made.glob("[!.]*"):
        path.unlink()
    make_dataset(tmp_path)
    with pytest.raises(OutputError, match="is the output of quadpipe tokenize"):
        quadpipe.copy(source, made)


def test_a_copy_does_not_replace_what_another_tool_put_in_its_place(source, tmp_path):
    out = tmp_path / "out"
    quadpipe.copy(source, out)
    shutil.copytree(make_dataset(tmp_path / "other", seed=1), out, dirs_exist_ok=True)
    shutil.rmtree(out / ".quadpipe/listing")
    (out / ".quadpipe/plan.json").unlink()
    with pytest.raises(OutputError, match="holds another dataset, fingerprint .*--replace"):
        quadpipe.copy(source, out)


def test_an_edited_card_stays_and_that_of_another_dataset_does_not(source, tmp_path):
    out = tmp_path / "out"
    quadpipe.copy(source, out)
    (out / "README.md").write_text("our words")
    (out / "train-000001.tar").unlink()
    quadpipe.copy(source, out)
    assert (out / "README.md").read_text() == "our words"
    bare = Path(shutil.copytree(make_dataset(tmp_path / "other", seed=1), tmp_path / "bare"))
    (bare / "README.md").unlink()
    quadpipe.copy(bare, out, replace=True)
    assert "our words" not in (out / "README.md").read_text()


class Noted(CopyProgress):
    """Keeps the notes of a copy."""

    def planned(self, preview: CopyPreview) -> None:
        self.notes = preview.notes


def test_other_options_keep_the_cards_of_the_same_dataset(source, tmp_path):
    out = Path(shutil.copytree(source, tmp_path / "out", ignore=lambda *_: [".quadpipe"]))
    quadpipe.copy(source, out)
    names = ("README.md", "croissant.json")
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in names)
    (out / "README.md").write_text("our words")
    quadpipe.copy(source, out, provenance=True)
    (out / "dataset.json").unlink()  # as an interrupted copy leaves it
    quadpipe.copy(source, out)
    assert (out / "README.md").read_text() == "our words"
    for name in names:
        (out / name).unlink()
    quadpipe.copy(source, out)
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in names)


def test_an_edited_card_of_a_dataset_that_was_being_replaced_does_not_stay(source, tmp_path):
    out = tmp_path / "out"
    quadpipe.copy(source, out)
    (out / "README.md").write_text("our words")
    (out / "dataset.json").unlink()
    other = make_dataset(tmp_path / "other", seed=1)
    quadpipe.copy(other, out)
    assert (out / "README.md").read_bytes() == (other / "README.md").read_bytes()


def test_the_cards_follow_the_license_of_the_source(source, tmp_path):
    middle, out, made = (tmp_path / name for name in ("middle", "out", "made"))
    for text in ("mit", "cc-by-nc-4.0"):
        quadpipe.copy(source, middle, license=text)
        quadpipe.copy(middle, out)
        quadpipe.copy(middle, made, tokens=10, in_process=True, replace=True)
        assert f"license: {text}\n" in (out / "README.md").read_text()
        assert f"license: {text}\n" in (made / "README.md").read_text()
    (out / "README.md").write_text("license: cc-by-nc-4.0")
    quadpipe.copy(source, middle, license="cc0-1.0")
    progress = Noted()
    quadpipe.copy(middle, out, progress=progress)
    assert (out / "README.md").read_text() == "license: cc-by-nc-4.0"
    (note,) = progress.notes
    assert note.endswith("README.md was edited and is kept: correct license in it")
    quadpipe.copy(middle, out, progress=progress)
    assert progress.notes == ()


def test_a_readme_that_was_there_before_is_kept(source, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "LICENSE").write_text("MIT")
    progress = Noted()
    quadpipe.copy(source, tmp_path, progress=progress)
    assert (tmp_path / "README.md").read_text() == "---\nlicense: mit\n---\n"
    (note,) = progress.notes
    assert "README.md is kept, and names no `configs`" in note
    (tmp_path / "README.md").unlink()
    quadpipe.copy(source, tmp_path, progress=progress)
    assert progress.notes == ()
    assert (tmp_path / "README.md").read_bytes() == (source / "README.md").read_bytes()


@pytest.mark.parametrize("options", [{}, {"tokens": 10, "in_process": True}])
def test_provenance_goes_after_the_manifest_of_its_dataset(options, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    quadpipe.copy(make_dataset(tmp_path / "other", seed=1), out, provenance=True)
    before = {path for path in (out / ".quadpipe").rglob("*.json") if path.name != "copy.json"}
    assert len(before) > 5

    def stop(point: str) -> None:
        if point == "after removal dataset.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(faults, "hook", stop)
    with pytest.raises(KeyboardInterrupt):
        quadpipe.copy(source, out, replace=True, **options)
    assert all(path.exists() for path in before)
    monkeypatch.setattr(faults, "hook", None)
    quadpipe.copy(source, out, **options)
    assert not (out / ".quadpipe/plan.json").exists()
    assert not (out / ".quadpipe/listing").exists()


def test_a_manifest_with_one_class_twice_is_refused(source, tmp_path):
    forged = Path(shutil.copytree(source, tmp_path / "forged"))
    edit_json(forged / "dataset.json", classes=["left", "left"], fingerprint=None)
    with pytest.raises(ShardError, match="classes names one class twice"):
        quadpipe.Dataset(forged)
