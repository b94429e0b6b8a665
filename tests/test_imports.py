"""The structure of the package: imports run one way, `__all__` is true, and docs/architecture.md names what exists."""

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

# A subpackage may import those of earlier rows, not those of its own row. "" stands for top-level modules.
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
SUBPACKAGES = [name for row in ORDER[2:] for name in row]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}

LAZY_SUBPACKAGES = ("export", "network", "prediction", "serve", "training", "weights")

MODULES = {
    ".".join(("purinet_jax", *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): file
    for folder, files in ((PACKAGE, PACKAGE.rglob("*.py")),)
    for file in files
} | {f"purinet_jax.configs.{file.stem}".removesuffix(".__init__"): file for file in (ROOT / "configs").glob("*.py")}


def subpackage_of(module: str) -> str:
    """The subpackage of a module; "" for top-level modules and `purinet_jax` itself."""
    name = ".".join(module.split(".")[1:2])
    return name if name in RANK else ""


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and module of every import of the package's own modules in a file, including those inside functions."""
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
    """The imports of a file that run upwards, each as one line that names both files."""
    package = importer if file.stem == "__init__" else importer.rpartition(".")[0]
    wrong = []
    for line, imported in imports(ast.parse(source), package):
        ours, theirs = subpackage_of(importer), subpackage_of(imported)
        # `purinet_jax` itself is above all subpackages.
        if imported not in MODULES or imported == "purinet_jax" or (ours != theirs and RANK[theirs] >= RANK[ours]):
            target = MODULES.get(imported, PACKAGE / "__init__.py")
            wrong.append(f"{file.relative_to(ROOT)}:{line} imports {target.relative_to(ROOT)}")
    return wrong


def test_imports_run_one_way() -> None:
    files = [(name, file) for name, file in MODULES.items() if name != "purinet_jax"]
    files += [(f"purinet_jax.{name}", PACKAGE / name / "__init__.pyi") for name in LAZY_SUBPACKAGES]
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
def test_an_upward_import_is_reported_with_both_files(importer: str, source: str, target: str) -> None:
    file = MODULES[f"purinet_jax.{importer}"]
    line = source.count("\n") + 1
    expected = f"{file.relative_to(ROOT)}:{line} imports purinet_jax/{target}"
    assert wrong_imports(f"purinet_jax.{importer}", file, source) == [expected]


def test_there_are_no_circular_imports() -> None:
    graph = {}
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text())
        # Imports for type checking do not run.
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        package = name if file.stem == "__init__" else name.rpartition(".")[0]
        graph[name] = {imported for _, imported in imports(tree, package)}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)  # CycleError names the cycle


@pytest.mark.parametrize("subpackage", ["", *SUBPACKAGES])
def test_each_subpackage_has_a_docstring_and_the_names_of_its_all(subpackage: str) -> None:
    package = import_module(f"purinet_jax.{subpackage}".rstrip("."))
    assert package.__doc__
    for name in getattr(package, "__all__", ()):
        assert hasattr(package, name), name


def test_the_architecture_page_lists_all_public_names() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Names for programs")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert sorted(named) == sorted(purinet_jax.__all__)


def test_the_architecture_page_names_every_subpackage_and_only_modules_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert text.count("```mermaid") == 3
    named = set(re.findall(rf"\b(?:{'|'.join(SUBPACKAGES)})/\w+", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if f"purinet_jax.{name.replace('/', '.')}" not in MODULES] == []
    top_level = set(re.findall(r"`purinet_jax\.(\w+)`", text))
    assert [name for name in sorted(top_level) if f"purinet_jax.{name}" not in MODULES] == []
    assert [name for name in SUBPACKAGES if f"`{name}`" not in text] == []


def test_every_folder_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name if file.stem == "__init__" else name.rpartition(".")[0] for name, file in MODULES.items()}
    assert sorted(settings["packages"]) == sorted(folders)


def test_help_is_fast() -> None:
    program = (
        "import sys\nfrom purinet_jax.commands.main import build_parser\nbuild_parser().format_help()\n"
        "assert not {'jax', 'numpy', 'flax', 'PIL'} & set(sys.modules)"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time, which other processes do not change.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.2
