"""A user's own scorer, named as MODULE:CALLABLE."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from command_line import run_cli
from job_runs import tokenize_small

import quadpipe
from forging import edit_json
from quadpipe.errors import ConfigError, JobError
from quadpipe.job.reproduce import Reproducer
from quadpipe.tokenizer import TokenizerConfig

OWN = """
import numpy as np
from quadpipe.scorers import Scorer

class Brightness(Scorer):
    weights_sha256 = "0" * 64

    def __init__(self, geometry, gamma=2):
        super().__init__(geometry)
        self.gamma = gamma

    @property
    def parameters(self):
        return {"gamma": self.gamma}

    def _score(self, images, hints):
        maps = []
        for scale in range(self.geometry.max_scale, 0, -1):
            rows, columns = self.geometry.grid(scale)
            patches = images.reshape(len(images), rows, images.shape[1] // rows, columns, -1)
            maps.append((patches.mean((2, 4)) / 255) ** self.gamma)
        return maps

class Other(Brightness):
    def __init__(self, geometry, kind):
        super().__init__(geometry)
        self.kind = kind

    def _score(self, images, hints):
        maps = super()._score(images, hints)
        if self.kind == "raises":
            raise KeyError("layer")
        if self.kind == "nan":
            return [level / 0 for level in maps]
        if self.kind == "random":
            return [np.random.random(level.shape) for level in maps]
        return {"short": maps[:1], "flat": [level[0] for level in maps], "none": None}[self.kind]

def other(kind):
    return lambda geometry: Other(geometry, kind)

raises, nan, random, short, flat, none = map(
    other, ("raises", "nan", "random", "short", "flat", "none")
)

class Labelled(Brightness):
    hint, label_aware = "the class", True

    def _score(self, images, hints):
        return super()._score(images * np.uint8(hints == ["flower"] * len(images)), hints)

class Gaze(Brightness):
    hint = "the viewer's gaze"

class Complex(Brightness):
    parameters = {"gamma": 1j}

def fails(geometry):
    raise RuntimeError("no licence")

def text(geometry):
    return "brightness"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's module, in the working folder."""
    (tmp_path / "my_scorers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield sys.modules
    sys.modules.pop("my_scorers", None)
    importlib.invalidate_caches()


def test_bright_patches_are_split_first(own):
    image = np.zeros((256, 256, 3), np.uint8)
    image[:64, 192:] = 255
    tokenizer = quadpipe.Tokenizer(scorer="my_scorers:Brightness", crop_pct=1.0, tokens=19)
    assert tokenizer(image).nodes[3].tolist() == [12, 0, 2, 0]
    assert tokenizer.scorer.as_json() == {
        "name": "my_scorers:Brightness", "parameters": {"gamma": 2}, "weights_sha256": "0" * 64,
        "label_aware": False, "torch": None, "device": None,
    }  # fmt: skip


def test_process_and_workers_give_the_same_bytes_and_verify_names_the_scorer(
    own, image_folder, tmp_path, files_of
):
    given = ("tokenize", "--in", image_folder, "--scorer", "my_scorers:Brightness", "--limit", 6)
    for out, more in (("one", ("--in-process",)), ("two", ("--workers", 1))):
        done = run_cli(*given, "--out", out, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    for name, part in (("dataset.json", "tokenizer"), (".quadpipe/plan.json", "tokenizer")):
        document = json.loads(files[name])
        assert document[part]["scorer"] == "my_scorers:Brightness"
        assert document["scorer"]["name"] == "my_scorers:Brightness"
    verify = ("verify", "one", "--deep", "--in", image_folder)
    refused = run_cli(*verify, cwd=tmp_path)
    assert refused.returncode == 2
    assert "name it with --scorer my_scorers:Brightness" in refused.stderr
    done = run_cli(*verify, "--scorer", "my_scorers:Brightness", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 inputs retokenized" in done.stdout


def test_a_labelled_scorer_sees_the_classes(own, image_folder, tmp_path):
    dataset = quadpipe.tokenize(
        image_folder, tmp_path / "out", scorer="my_scorers:Labelled", in_process=True, score_batch=1
    )
    assert dataset.manifest.scorer["label_aware"] is True
    for sample in dataset.samples("train"):
        assert sample.mosaic.importance.any() == (sample.info["class"] == "flower")
    with pytest.raises(ConfigError, match="scorer my_scorers:Labelled needs labels"):
        quadpipe.tokenize(
            image_folder, tmp_path / "x", scorer="my_scorers:Labelled", use_labels=False
        )


def test_a_dataset_does_not_run_the_scorer_that_it_names(own, image_folder, tmp_path):
    made = tmp_path / "made"
    quadpipe.tokenize(image_folder, made, tokens=40, in_process=True, limit=3)
    for name in ("dataset.json", ".quadpipe/plan.json"):
        edit_json(made / name, tokenizer__scorer="my_scorers:Brightness", fingerprint=None)
    dataset = quadpipe.Dataset(made)
    assert len(list(dataset.samples("train"))) == 3
    with pytest.raises(ConfigError, match="a user's own code; if you trust it, name it with --sc"):
        Reproducer(dataset, image_folder)
    with pytest.raises(ConfigError, match=r"with scorer my_scorers:Brightness, not my_scorers:nan"):
        Reproducer(dataset, image_folder, scorer="my_scorers:nan")
    with pytest.raises(ConfigError, match="name it yourself with --scorer my_scorers:Brightness"):
        quadpipe.Tokenizer(dataset.manifest.tokenizer)
    assert "my_scorers" not in own


def test_predict_runs_the_scorer_only_if_the_user_names_it(own, image_folder, tmp_path):
    from quadpipe.model import train

    tokenize_small(image_folder, tmp_path / "shards", limit=6, scorer="my_scorers:Brightness")
    train(tmp_path / "shards", tmp_path / "run", model="nano", epochs=1, batch_size=2, device="cpu")
    shutil.copy(next(image_folder.rglob("*.jpg")), tmp_path / "a.jpg")
    refused = run_cli("predict", "run", "a.jpg", cwd=tmp_path)
    assert refused.returncode == 2
    assert "name it with --scorer my_scorers:Brightness" in refused.stderr
    done = run_cli("predict", "run", "a.jpg", "--scorer", "my_scorers:Brightness", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_scorer_that_differs_on_another_machine_is_not_run(own):
    config = TokenizerConfig(scorer="my_scorers:Brightness")
    code = config.find_code()
    own["my_scorers"].Brightness.parameters = {"gamma": 3}
    with pytest.raises(JobError, match=r"\"gamma\": 3.* here, and was .*\"gamma\": 2"):
        config.make_scorer(code)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:make", "cannot be made: ModuleNotFoundError: No module named"),
        ("my_scorers:nothing", "cannot be made: AttributeError: module 'my_scorers' has no"),
        ("my_scorers:fails", "cannot be made: RuntimeError: no licence; give MODULE:CALLABLE"),
        ("my_scorers:Complex", "cannot be made: TypeError: Object of type complex is not JSON"),
        ("my_scorers:text", "returned str; it must return a quadpipe.scorers.Scorer"),
        ("my_scorers:Gaze", "needs the viewer's gaze per image; a scorer named on the command"),
        ("my_scorers:raises", r"failed on images \[1, 256, 256, 3\]: KeyError: 'layer'; fix it"),
        ("my_scorers:nan", "gave importances that are not finite"),
        ("my_scorers:random", "gives different importance for the same image; switch off its ran"),
        (
            "my_scorers:short",
            r"gave maps \[\[1, 4, 4\]\] for images .*they must be \[\[1, 4, 4\], ",
        ),
        ("my_scorers:flat", r"gave maps \[\[4, 4\], \[8, 8\]\] for images"),
        ("my_scorers:none", "failed on images .*TypeError: 'NoneType'"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_invalid_scorers_are_refused_before_the_job(own, target, message, image_folder, tmp_path):
    with pytest.raises(ConfigError, match=f"scorer {target} {message}"):
        quadpipe.tokenize(image_folder, tmp_path / "out", scorer=target, in_process=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "efficientnet-lite0"},
            "backbone is for scorer feature-saliency and feature and grad-cam, not my_",
        ),
        ({"scorer_weights": "x.pth"}, "scorer my_scorers:Brightness has no network; omit the"),
        ({"scorers": 1}, "scorer my_scorers:Brightness has no network to run in actors"),
    ],
)
def test_options_of_network_scorers_are_refused(own, options, message, image_folder, tmp_path):
    with pytest.raises(ConfigError, match=message):
        quadpipe.tokenize(image_folder, tmp_path / "out", scorer="my_scorers:Brightness", **options)
