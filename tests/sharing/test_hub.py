"""Copies to and from the Hugging Face Hub, a small one on this machine."""

import json
import pickle
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from fake_hub import Tree

import quadpipe
from forging import make_dataset
from quadpipe.errors import ConfigError, OutputError, QuadpipeError, ShardError
from quadpipe.files import hub as hub_room
from quadpipe.files import open_folder
from quadpipe.loader import Loader
from quadpipe.shards.verify import verify
from quadpipe.sharing import CopyPreview, CopyProgress

# huggingface_hub itself uses an old argument of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "hf://datasets/org/name"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("source"), samples_per_shard=8)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """Another dataset: shards of the same names and sizes with other bytes, and more of them."""
    return make_dataset(tmp_path_factory.mktemp("earlier"), inputs=29, samples_per_shard=8, seed=1)


def visible(tree: Tree) -> Tree:
    return {name: data for name, data in tree.items() if not name.startswith(".")}


def files_of(folder: Path) -> Tree:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def shown(tree: Tree) -> str | None:
    """The fingerprint of the dataset in a commit, None without one."""
    if "dataset.json" not in tree:
        return None
    manifest = json.loads(tree["dataset.json"])
    names = {"dataset.json"}
    for split, info in manifest["splits"].items():
        lines = tree[f"{split}.shards.jsonl"]
        assert sha256(lines).hexdigest() == info["shard_list_sha256"]
        names |= {f"{split}.shards.jsonl", f"{split}.index.npy", f"{split}.gains.npy"}
        for line in map(json.loads, lines.splitlines()):
            assert sha256(tree[line["name"]]).hexdigest() == line["sha256"]
            names.add(line["name"])
    assert names | {"README.md", "croissant.json"} <= visible(tree).keys()
    assert not [name for name in visible(tree).keys() - names if name.endswith((".tar", ".npy"))]
    return str(manifest["fingerprint"])


def test_a_dataset_goes_to_the_hub_and_back(source, hub, tmp_path):
    made = quadpipe.copy(source, URL)
    assert list(verify(made)) == []
    repo = hub.repos["org/name"]
    assert repo.private
    assert visible(repo.files) == files_of(source)
    quadpipe.copy(URL, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)
    smaller = quadpipe.copy(URL, tmp_path / "smaller", tokens=10, in_process=True)
    assert list(verify(smaller)) == []


def test_what_is_there_already_is_not_sent_again(source, hub):
    quadpipe.copy(source, URL)
    tree = dict(hub.repos["org/name"].files)
    hub.requests.clear()
    quadpipe.copy(source, URL)
    assert not hub.sent("POST", "/") + hub.sent("PUT", "/")
    assert not hub.sent("GET", ".tar")  # the Hub knows the checksums
    del tree["train-000001.tar"], tree["val.shards.jsonl"]
    hub.repos["org/name"].commit("main", tree)
    hub.objects.clear()
    quadpipe.copy(source, URL)
    assert hub.sent("PUT", "/objects/") == 1
    assert visible(hub.repos["org/name"].files) == files_of(source)


def test_a_commit_has_fewer_than_100_files_and_the_last_one_card_and_manifest(
    source, hub, monkeypatch
):
    assert hub_room._FILES_IN_COMMIT + hub_room._MORE_SMALL_FILES < 100
    monkeypatch.setattr(hub_room, "_FILES_IN_COMMIT", 4)
    quadpipe.copy(source, URL)
    repo = hub.repos["org/name"]
    *before, last = [repo.trees[commit] for commit in repo.log]
    assert len(before) > 2
    cards = {"README.md", "croissant.json", "dataset.json"}
    assert not any(cards & tree.keys() for tree in before)
    assert cards <= last.keys()


class Once:
    """Whether a request is the one of this number, from 0, among those that change something."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, method: str, path: str) -> bool:
        self.left -= method != "GET"
        return self.left == -1 and method != "GET"


@pytest.mark.fault(
    "each request of a copy to the Hub that replaces a dataset is refused, or its answer is lost",
    "each commit shows the old dataset, none, or the new one; the next run finishes it",
)
@pytest.mark.parametrize("kind", ["fail", "lost"])
def test_a_failure_of_any_request_leaves_one_whole_dataset_or_none(
    kind, source, earlier, hub, monkeypatch
):
    monkeypatch.setattr(hub_room, "_FILES_IN_COMMIT", 3)
    old, new = (quadpipe.Dataset(place).manifest.fingerprint for place in (earlier, source))
    quadpipe.copy(earlier, URL)
    repo = hub.repos["org/name"]
    begin, objects = dict(repo.files), dict(hub.objects)
    seen, number = set(), 0
    while True:
        repo.log.clear()
        repo.commit("main", begin)
        hub.objects.clear()
        hub.objects.update(objects)
        setattr(hub, kind, Once(number))
        try:
            quadpipe.copy(source, URL, replace=True, workers=1)
            failed = False
        except OutputError:
            failed = True
        setattr(hub, kind, lambda method, path: False)
        if not failed:
            break
        quadpipe.copy(source, URL, replace=True)
        assert visible(repo.files) == files_of(source)
        seen |= {shown(repo.trees[commit]) for commit in repo.log}
        number += 1
    assert seen == {old, None, new}
    assert number > 15


def test_a_small_dataset_replaces_another_one_in_one_commit(source, earlier, hub):
    quadpipe.copy(earlier, URL)
    repo = hub.repos["org/name"]
    commits = len(repo.log)
    quadpipe.copy(source, URL, replace=True)
    assert len(repo.log) == commits + 1
    assert visible(repo.files) == files_of(source)  # with its own card


def test_a_dataset_that_is_being_replaced_keeps_its_provenance_as_long_as_it_is_shown(
    source, earlier, hub, monkeypatch
):
    quadpipe.copy(earlier, URL, provenance=True)
    repo = hub.repos["org/name"]
    before = dict(repo.files)
    provenance = {name for name in before if name.startswith(".quadpipe/")}
    assert len(provenance) > 5
    repo.log.clear()
    monkeypatch.setattr(hub_room, "_FILES_IN_COMMIT", 3)
    monkeypatch.setattr(hub_room, "_MORE_SMALL_FILES", 0)
    quadpipe.copy(source, URL, replace=True)
    *between, last = [repo.trees[commit] for commit in repo.log]
    assert len(between) > 3
    for tree in between:
        assert "dataset.json" not in tree or provenance <= tree.keys()
    assert {name for name in last if name.startswith(".quadpipe/")} == {".quadpipe/copy.json"}


def test_a_commit_of_another_process_meanwhile_stops_the_copy(source, hub):
    class Meanwhile(CopyProgress):
        def planned(self, preview: CopyPreview) -> None:
            repo = hub.repos["org/name"]
            repo.commit("main", {**repo.files, "notes.txt": b"theirs"})

    with pytest.raises(OutputError, match="commit from another process meanwhile; rerun the same"):
        quadpipe.copy(source, URL, progress=Meanwhile())
    with pytest.raises(OutputError, match=r"is not empty \(notes.txt\) and holds no dataset"):
        quadpipe.copy(source, URL)


def test_an_open_dataset_stays_what_it_was_when_another_one_replaces_it(source, earlier, hub):
    quadpipe.copy(earlier, URL)
    opened = quadpipe.Dataset(URL)
    sent = pickle.loads(pickle.dumps(open_folder(URL)))
    quadpipe.copy(source, URL, replace=True)
    assert list(verify(opened)) == []
    assert sent.read("dataset.json") == (earlier / "dataset.json").read_bytes()
    assert quadpipe.Dataset(URL).manifest == quadpipe.Dataset(source).manifest


def test_batches_come_from_the_hub_as_from_the_folder(source, hub):
    quadpipe.copy(source, URL)
    keys = [
        [batch.keys for batch in Loader(place, batch_size=3).epoch(0)] for place in (source, URL)
    ]
    assert keys[0] == keys[1]


def test_a_branch_is_created_and_read(source, hub):
    quadpipe.copy(source, f"{URL}@v1.0/inside")
    repo = hub.repos["org/name"]
    assert visible(repo.files) == {}
    found = repo.trees[repo.branches["v1.0"]]
    assert found["inside/dataset.json"] == (source / "dataset.json").read_bytes()
    assert list(verify(quadpipe.Dataset(f"{URL}@v1.0/inside"))) == []
    hub.requests.clear()
    with pytest.raises(
        ShardError, match=f"^cannot read {URL}@v2.0: there is no such repository or revision, or"
    ):
        quadpipe.Dataset(f"{URL}@v2.0")
    assert len(hub.requests) == 1
    quadpipe.copy(source, f"{URL}@v2.0")
    assert visible(repo.trees[repo.branches["v2.0"]]) == files_of(source)


def test_a_library_that_is_offline_is_not_asked_again(hub, monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled

    asked = []

    def ask(*_: object, **__: object) -> None:
        asked.append(1)
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", ask)
    with pytest.raises(ShardError, match=f"cannot read {URL}/: offline mode is enabled; check"):
        quadpipe.Dataset(URL)
    assert asked == [1]


def test_large_files_that_the_hub_keeps_in_git_are_sent_with_the_commit(source, hub, monkeypatch):
    monkeypatch.setattr(hub_room, "_LARGEST_IN_MEMORY", 0)
    quadpipe.copy(source, URL)
    assert visible(hub.repos["org/name"].files) == files_of(source)


def test_a_repository_that_was_made_on_the_web_page_is_empty(source, hub):
    quadpipe.copy(source, URL)
    repo = hub.repos["org/name"]
    page = {".gitattributes": b"", "README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"MIT"}
    repo.commit("main", page)
    quadpipe.copy(source, URL)
    assert visible(repo.files) == files_of(source) | visible(page)


def test_an_edited_card_on_the_hub_stays(source, hub):
    quadpipe.copy(source, URL)
    repo = hub.repos["org/name"]
    tree = {**repo.files, "README.md": b"---\nlicense: mit\n---\nour words"}
    del tree["train-000001.tar"]
    repo.commit("main", tree)
    quadpipe.copy(source, URL)
    quadpipe.copy(source, URL, provenance=True)
    assert repo.files["README.md"].endswith(b"our words")
    assert shown(repo.files) == quadpipe.Dataset(source).manifest.fingerprint


def test_a_public_repository_is_asked_for(source, hub, tmp_path):
    quadpipe.copy(source, URL, public=True)
    assert not hub.repos["org/name"].private
    hub.repos["org/name"].private = True
    with pytest.raises(ConfigError, match="exists and is private; omit --public"):
        quadpipe.copy(source, URL, public=True)
    with pytest.raises(ConfigError, match="--public is for a repository on the Hub"):
        quadpipe.copy(source, tmp_path / "out", public=True)


def test_without_the_right_token_nothing_is_written(source, hub, monkeypatch):
    quadpipe.copy(source, URL)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(ShardError, match="it is private; check the name, and log in with `hf auth"):
        quadpipe.Dataset(URL)
    with pytest.raises(OutputError, match="log in with `hf auth login` as somebody who may write"):
        quadpipe.copy(source, "hf://datasets/org/other")
    assert list(hub.repos) == ["org/name"]


@pytest.mark.parametrize(
    "path", ["name", "", "a/b//c", "a--b/c", "org/name/a/../b", "org/name/./a", "org/name@main/.."]
)
def test_a_wrong_url_is_refused(path):
    with pytest.raises(
        ConfigError,
        match="is not a dataset on the Hub(; give hf://datasets/ORG/NAME|: Cannot have --)",
    ):
        quadpipe.Dataset(f"hf://datasets/{path}")


def test_urls_of_one_place_are_not_apart(source, hub):
    quadpipe.copy(source, URL)
    for one, other in ((URL, f"{URL}@main"), (f"{URL}@main/", f"{URL}/inside")):
        with pytest.raises(ConfigError, match="are not apart"):
            quadpipe.copy(one, other)
    quadpipe.copy(URL, f"{URL}@other")


def test_shards_are_not_made_on_the_hub(source, hub, tmp_path):
    with pytest.raises(OutputError, match="not made on the Hub; make the dataset in a local"):
        quadpipe.copy(source, URL, tokens=10, in_process=True)
    with pytest.raises(OutputError, match="not made on the Hub"):
        quadpipe.tokenize(source.parent / "images", URL, in_process=True)
    assert not hub.repos


def test_without_huggingface_hub_its_installation_is_named(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(QuadpipeError, match=r"pip install 'quadpipe\[hf\]'"):
        quadpipe.copy(source, URL)
