"""The commands and examples of README.md and docs/ run."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_hub import hub
from painted import make_source
from PIL import Image
from servers import s3

import quadpipe
from quadpipe.cli import commands

__all__ = ["hub", "s3"]  # fixtures

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
TRAINING, SCORERS, CLUSTER, SHARING, SOURCES = (
    (REPOSITORY / "docs" / f"{page}.md").read_text()
    for page in ("training", "scorers", "cluster", "sharing", "sources")
)


def blocks(text: str, kind: str) -> list[str]:
    """Contents of the fenced blocks of one kind."""
    found, inside = [], None
    for line in text.splitlines():
        if line.startswith("```"):
            if inside is None:
                inside = line[3:]
                found.append((inside, []))
            else:
                inside = None
        elif inside is not None:
            found[-1][1].append(line)
    return ["\n".join(lines) + "\n" for name, lines in found if name == kind]


@pytest.fixture(scope="module")
def folder(image_folder, tmp_path_factory) -> Path:
    """A folder with images, in which the commands of the README have run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "imagenet").symlink_to(image_folder)
    (folder / "cat.jpg").write_bytes(next(image_folder.rglob("*.jpg")).read_bytes())
    # Of the commands that stand in several pages, the first is run.
    run(dict.fromkeys(console(README + TRAINING)), folder)
    return folder


def console(page: str) -> list[str]:
    return "".join(blocks(page, "console")).splitlines()


# In one process: most of the time of a command is that of imports.
COMMANDS = """
import json, sys
from quadpipe.cli import main
for sys.argv in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{sys.argv}: exit code {end.code}")
"""


def run(lines: Iterable[str], folder: Path, **places: str) -> None:
    """Run commands of a page, with names in capitals replaced."""
    commands = []
    for line in lines:
        command = line.removeprefix("$ quadpipe ")
        assert command != line, f"not a quadpipe command: {line}"
        for name, place in places.items():
            command = command.replace(name, place)
        commands.append(["quadpipe", *shlex.split(command)])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_scorers_page_run(folder, image_folder, tmp_path):
    (tmp_path / "cat.jpg").symlink_to(folder / "cat.jpg")
    (tmp_path / "imagenet").symlink_to(image_folder)
    (module,) = blocks(SCORERS, 'python title="my_scorers.py"')
    (tmp_path / "my_scorers.py").write_text(module)
    lines = console(SCORERS)
    run([f"{line} --in-process" if "tokenize" in line else line for line in lines], tmp_path)
    (example,) = blocks(SCORERS, "python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "(64, 3)\n", done.stderr


def test_the_commands_of_the_cluster_page_run(image_folder, tmp_path):
    from ray.cluster_utils import Cluster

    (tmp_path / "imagenet").symlink_to(image_folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        run(console(CLUSTER), tmp_path, **{"HEAD:6379": cluster.address})
    finally:
        cluster.shutdown()


def test_the_commands_of_the_sharing_page_run(folder, s3, hub, jpeg, tmp_path):
    (tmp_path / "shards").symlink_to(folder / "shards")
    fingerprint = json.loads((folder / "shards" / "dataset.json").read_text())["fingerprint"]
    for number in range(8):
        photographs = tmp_path / "photographs" / ("cat", "zebra")[number % 2]
        photographs.mkdir(parents=True, exist_ok=True)
        (photographs / f"{number}.jpg").write_bytes(jpeg(30 + number))
    # One of the copies is made with Ray, the others without a start of it.
    made = re.compile(r" (part|first|joined)/ ")
    lines = [f"{line} --in-process" if made.search(line) else line for line in console(SHARING)]
    run(lines, tmp_path, FINGERPRINT=fingerprint)
    joined = json.loads((tmp_path / "together" / "dataset.json").read_text())
    assert joined["classes"] == ["flower", "temple", "zebra", "cat"]
    assert joined["splits"]["train"]["inputs"] == 6 + 8
    assert joined["parents"][0]["parents"][0]["fingerprint"] == fingerprint


def test_the_commands_and_the_example_of_the_sources_page_run(jpeg, tmp_path, monkeypatch, capsys):
    make_source(tmp_path / "captions")
    (listed,) = blocks(SOURCES, "csv")
    (tmp_path / "photos.csv").write_text(listed)
    (tmp_path / "photos").mkdir()
    for number, line in enumerate(listed.splitlines()[1:]):
        (tmp_path / line.partition(",")[0]).write_bytes(jpeg(number))
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(SOURCES, "console")).splitlines():
        given = [*shlex.split(line.removeprefix("$ quadpipe ")), "--in-process"]
        done = CliRunner().invoke(commands, given, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    (example,) = blocks(SOURCES, "python")
    exec(example, {})
    assert capsys.readouterr().out.startswith("caption ")
    names = {
        name for sample in quadpipe.Dataset("listed").samples("train") for name in sample.extra
    }
    assert names == {"bbox.json", "caption.txt", "photo_id.txt"}


def test_every_scorer_is_on_the_scorers_page():
    from quadpipe.scorers import SCORERS as KINDS

    for name in KINDS:
        assert f"`{name}`" in SCORERS


def test_the_commands_of_the_readme_write_the_files_it_lists(folder):
    tree = next(block for block in blocks(README, "") if block.startswith("shards/"))
    for line in tree.splitlines()[1:]:
        assert (folder / "shards" / line.split()[0]).exists(), line
    with Image.open(folder / "mosaics.png") as picture:
        assert picture.width > 1500


def test_a_run_writes_the_files_that_the_training_page_lists(folder):
    tree = next(block for block in blocks(TRAINING, "") if block.startswith("run/"))
    named = {line.split()[0] for line in tree.splitlines()[1:]}
    found = {path.name for path in (folder / "run").iterdir() if path.name[0] != "."}
    assert {name.partition("-")[0] for name in named} == {n.partition("-")[0] for n in found}
    assert (folder / "seen.png").exists()


def test_the_training_example_runs(folder):
    (example,) = blocks(TRAINING, "python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([8, 100, 16, 16, 3])" in done.stdout


def test_the_python_examples_run(folder):
    examples = blocks(README, "python")
    assert len(examples) == 2
    for example in examples:
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("0000000000")


def test_the_file_tree_names_existing_files():
    tree = blocks(README, "")[-1]
    above = ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            above = name
        assert (REPOSITORY / ("" if name == above else above) / name).exists(), line
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    here = {p.name for p in (REPOSITORY / "quadpipe").iterdir() if p.name[0] not in "_."}
    assert {name for name in here if name != "py.typed"} == named


def test_links_in_the_docs_have_targets():
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_format_page_names_every_key_of_a_manifest(folder):
    page = (REPOSITORY / "docs" / "format.md").read_text()
    manifest = json.loads((folder / "shards" / "dataset.json").read_text())
    splits = manifest["splits"]["train"]
    for key in (
        *manifest,
        *manifest["tokenizer"],
        *manifest["scorer"],
        *manifest["codec"],
        *splits,
    ):
        assert f"`{key}`" in page, key
