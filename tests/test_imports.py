"""The direction of the imports, what importing costs, and what the wheel holds."""

import ast
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# From the ground up; a room may import from rooms before it, and from within itself.
ROOMS = (
    ("errors", "faults", "names", "plot", "seeds", "text"),
    ("fields", "retries", "weights"),
    ("files", "geometry"),
    ("compiled",),
    ("quadtree_kernels", "mosaic_kernels"),
    ("quadtree", "counts"),
    ("images", "sources"),
    ("scorers",),
    ("mosaic",),
    ("tokenizer",),
    ("render",),
    ("shards",),
    ("job", "loader", "page"),
    ("sharing",),
    ("model",),
    ("cli",),
)
HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}


def modules() -> dict[str, Path]:
    """Module name by file, of everything that is installed as quadpipe."""
    found = {}
    for top, prefix in (
        ("quadpipe", "quadpipe"),
        ("cli", "quadpipe.cli"),
        ("model", "quadpipe.model"),
    ):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / top).with_suffix("").parts
            found[".".join((prefix, *(p for p in parts if p != "__init__")))] = path
    return found


def imports(path: Path) -> set[str]:
    """Names of quadpipe's modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names & modules().keys()


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_place_in_the_import_order():
    assert {room(module) for module in modules() if "." in module} == set(HEIGHT)


@pytest.mark.parametrize("module", [name for name in modules() if name != "quadpipe"])
def test_imports_go_down_the_order(module):
    for imported in imports(modules()[module]) - {"quadpipe"}:
        here, there = HEIGHT[room(module)], HEIGHT[room(imported)]
        assert there < here or room(imported) == room(module), f"{module} imports {imported}"


def test_imports_have_no_cycles():
    graph = {name: imports(path) - {name} for name, path in modules().items() if name != "quadpipe"}
    # A package's __init__ gathers its modules; a module inside never imports its package.
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_quadpipe_loads_no_heavy_packages():
    assert not loaded_by("import quadpipe") & {
        "numpy",
        "PIL",
        "torch",
        "ray",
        "webdataset",
        "numba",
    }
    heavy = {"torch", "ray", "webdataset", "numba"}
    assert not loaded_by("import quadpipe; quadpipe.Tokenizer; quadpipe.Dataset") & heavy
    assert not loaded_by("import quadpipe.cli.tokenize, quadpipe.cli.info") & heavy
    assert not loaded_by("import quadpipe.cli") & {"numpy", "PIL", *heavy}


def test_help_starts_quickly():
    """Half a second is promised; the fastest of three, since machines are busy."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "quadpipe.cli", "--help"], capture_output=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


def test_public_names_exist():
    import quadpipe

    for name in quadpipe.__all__:
        assert getattr(quadpipe, name) is not None
        assert name in dir(quadpipe)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        quadpipe.nonsense  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that nothing is left in the repository."""
    target = tmp_path_factory.mktemp("wheel")
    source = target / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("quadpipe", "cli", "model"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"),
            *("-w", str(target), str(source)),
        ],
        check=True,
    )
    return next(target.glob("*.whl"))


def test_the_wheel_holds_every_module_and_runs(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    expected = {
        f"{name.replace('.', '/')}/__init__.py"
        if path.name == "__init__.py"
        else f"{name.replace('.', '/')}.py"
        for name, path in modules().items()
    }
    data = {"py.typed", "page/page.css", "page/page.js", "page/template.html"}
    assert expected | {f"quadpipe/{name}" for name in data} <= names
    assert not [name for name in names if name.startswith(("tests", "cli/", "docs", "benchmarks"))]
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import quadpipe, quadpipe.cli.info; from quadpipe.job import tokenize; "
        "print(quadpipe.__file__, quadpipe.cli.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())
