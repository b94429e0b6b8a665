"""The rooms of the package: imports run one way, fronts hand on what they say, and the drawing of them is true."""

import ast
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import purinet_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "purinet_jax"

# Each may import those that stand before it; those of one row know nothing of each other. What lies beside the rooms
# (errors, memory, workers …) belongs to the first row.
ORDER = (
    ("",),
    ("configs",),
    ("network", "data"),
    ("weights",),
    ("training", "prediction"),
    ("evaluation", "export", "serve"),
    ("benchmarks",),
    ("commands",),
)
ROOMS = [room for row in ORDER[2:] for room in row]
RANK = {room: rank for rank, row in enumerate(ORDER) for room in row}

LAZY_ROOMS = ("export", "network", "prediction", "serve", "training", "weights")

MODULES = {
    ".".join(("purinet_jax", *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): file
    for folder, files in ((PACKAGE, PACKAGE.rglob("*.py")),)
    for file in files
} | {f"purinet_jax.configs.{file.stem}".removesuffix(".__init__"): file for file in (ROOT / "configs").glob("*.py")}


def room_of(module: str) -> str:
    """The room of a module; "" for what lies beside the rooms, and for the front of the whole."""
    name = ".".join(module.split(".")[1:2])
    return name if name in RANK else ""


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and module of every import of the package's own modules in a file, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            source = ".".join(part for part in (base, node.module or "") if part)
            found = [
                name if (name := f"{source}.{alias.name}") in MODULES or source == "purinet_jax" else source
                for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] == "purinet_jax")


def wrong_imports(importer: str, file: Path, source: str) -> list[str]:
    """The imports of a file that run back up, each as one line that names both files."""
    package = importer if file.stem == "__init__" else importer.rpartition(".")[0]
    wrong = []
    for line, imported in imports(ast.parse(source), package):
        ours, theirs = room_of(importer), room_of(imported)
        # The front stands above all rooms.
        if imported not in MODULES or imported == "purinet_jax" or (ours != theirs and RANK[theirs] >= RANK[ours]):
            target = MODULES.get(imported, PACKAGE / "__init__.py")
            wrong.append(f"{file.relative_to(ROOT)}:{line} imports {target.relative_to(ROOT)}")
    return wrong


def test_imports_run_one_way() -> None:
    files = [(name, file) for name, file in MODULES.items() if name != "purinet_jax"]
    files += [(f"purinet_jax.{room}", PACKAGE / room / "__init__.pyi") for room in LAZY_ROOMS]
    assert len(files) > 70
    assert [line for name, file in files for line in wrong_imports(name, file, file.read_text())] == []


@pytest.mark.parametrize(
    ("importer", "source", "target"),
    [
        ("data.pairs", "def f():\n    from purinet_jax.training.train import train", "training/train.py"),
        ("data.pairs", "import purinet_jax.network.layers", "network/layers.py"),
        ("weights.convert", "from purinet_jax.training import train_step", "training/__init__.py"),
        ("training.train", "from purinet_jax import load", "__init__.py"),
        ("errors", "from purinet_jax.data import images", "data/images.py"),
    ],
)
def test_an_import_that_runs_back_up_is_named_with_both_files(importer: str, source: str, target: str) -> None:
    file = MODULES[f"purinet_jax.{importer}"]
    line = source.count("\n") + 1
    expected = f"{file.relative_to(ROOT)}:{line} imports purinet_jax/{target}"
    assert wrong_imports(f"purinet_jax.{importer}", file, source) == [expected]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {}
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text())
        # Types alone are no circle: nothing is imported when the program runs.
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        package = name if file.stem == "__init__" else name.rpartition(".")[0]
        graph[name] = {imported for _, imported in imports(tree, package)}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)  # CycleError names the circle


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_each_room_says_what_it_is_for_and_hands_on_what_it_names(room: str) -> None:
    front = import_module(f"purinet_jax.{room}".rstrip("."))
    assert front.__doc__ is not None
    assert "\n\n" not in front.__doc__.strip()
    for name in getattr(front, "__all__", ()):
        assert hasattr(front, name), name


def test_public_names_are_those_of_the_docs() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Names for programs")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert sorted(named) == sorted(purinet_jax.__all__)


def test_the_drawing_names_only_modules_that_are_there_and_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert text.count("```mermaid") == 3
    named = set(re.findall(rf"\b(?:{'|'.join(ROOMS)})/\w+", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if f"purinet_jax.{name.replace('/', '.')}" not in MODULES] == []
    beside = set(re.findall(r"`purinet_jax\.(\w+)`", text))
    assert [name for name in beside if f"purinet_jax.{name}" not in MODULES] == []
    assert [room for room in ROOMS if f"`{room}`" not in text] == []


def test_every_folder_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name if file.stem == "__init__" else name.rpartition(".")[0] for name, file in MODULES.items()}
    assert sorted(settings["packages"]) == sorted(folders)


def test_help_comes_at_once() -> None:
    program = (
        "import sys\nfrom purinet_jax.commands.main import build_parser\nbuild_parser().format_help()\n"
        "assert not {'jax', 'numpy', 'flax', 'PIL'} & set(sys.modules)"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The processor's time, which other work on the machine does not change.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.2
