"""The tests can fail (pitfall 30), and the code keeps to its own rules."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "affetto"
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MODULES = sorted(SOURCE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 320, 80
GENERATED = {
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "dist",
}
COMPARISONS = ("allclose", "isclose", "equal", "array_equal", "exists", "is_file", "all", "any")
"""Calls whose result means nothing where nobody looks at it."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def called(node: ast.AST) -> str:
    """Last name of what a call calls, or ''."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def asserts(function: Function, helpers: frozenset[str]) -> bool:
    """Whether `function` can fail by itself, or calls one of the helpers that can."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        name = called(node)
        if name in helpers or name in ("raises", "fail", "warns") or name.startswith("assert_"):
            return True
    return False


def asserting(tree: ast.Module) -> frozenset[str]:
    """Names of the module's functions that assert, directly or through one another."""
    helpers: frozenset[str] = frozenset()
    while True:
        found = frozenset(item.name for item in functions(tree) if asserts(item, helpers))
        if found == helpers:
            return helpers
        helpers = found


def unlooked_at(tree: ast.AST) -> list[int]:
    """Lines on which a comparison stands alone."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and (called(node.value) in COMPARISONS or isinstance(node.value, ast.Compare)):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_pitfall_30_every_test_can_fail(path: Path) -> None:
    tree = parse(path)
    helpers = asserting(tree)
    tests = [item for item in functions(tree) if item.name.startswith("test_")]
    names = [item.name for item in tests]
    assert not [item.name for item in tests if not asserts(item, helpers)], "they assert nothing"
    assert len(set(names)) == len(names), "of two tests with one name only the second runs"
    assert not unlooked_at(tree)
    assert names or not path.name.startswith("test_"), "a file of tests without a test"


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_pitfall_30_nothing_is_expected_to_fail_or_skipped_silently(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            assert node.attr != "xfail", f"line {node.lineno}"
        name = called(node)
        if name in ("skip", "skipif", "importorskip") and isinstance(node, ast.Call):
            reason = [keyword for keyword in node.keywords if keyword.arg == "reason"]
            assert reason or (name == "skip" and node.args), f"line {node.lineno}: skipped without a reason"
        if isinstance(node, ast.ExceptHandler):
            is_empty = all(isinstance(item, ast.Pass) for item in node.body)
            assert not (node.type is None and is_empty), f"line {node.lineno}: swallows every failure"


@pytest.mark.parametrize(
    "text",
    [
        "def test_a():\n    x = 1", "def test_a():\n    torch.allclose(a, b)", "def test_a():\n    run()",
        "def help():\n    return 1\ndef test_a():\n    help()", "def test_a():\n    x == 1",
    ],
)  # fmt: skip
def test_pitfall_30_the_scan_itself_can_fail(text: str) -> None:
    tree = ast.parse(text)
    blind = [item for item in functions(tree) if item.name == "test_a" and not asserts(item, asserting(tree))]
    assert blind or unlooked_at(tree)


@pytest.mark.parametrize(
    "text",
    [
        "def test_a():\n    assert x", "def test_a():\n    with pytest.raises(E):\n        f()",
        "def check(x):\n    assert x\ndef test_a():\n    check(1)", "def test_a():\n    np.testing.assert_equal(a, b)",
    ],
)  # fmt: skip
def test_pitfall_30_the_scan_lets_good_tests_pass(text: str) -> None:
    tree = ast.parse(text)
    assert all(asserts(item, asserting(tree)) for item in functions(tree) if item.name == "test_a")
    assert not unlooked_at(tree)


def test_the_scans_find_files() -> None:
    assert len(TESTS) > 20
    assert len(MODULES) > 40


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them as top-level modules."""
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_folder_has_its_tests() -> None:
    stages = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert len(stages) >= 9
    for stage in sorted(stages):
        assert list((ROOT / "tests" / stage).glob("test_*.py")), f"tests/{stage} has no tests"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_everything_public_is_documented(path: Path) -> None:
    tree = parse(path)
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "the module has no docstring"
    bare = [f"line {node.lineno}: {node.name}" for node in public(tree) if not ast.get_docstring(node)]
    assert not bare


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions, classes, and methods of classes that their parents don't document."""
    for node in tree.body:
        if isinstance(node, Function) and any(getattr(item, "id", "") == "overload" for item in node.decorator_list):
            continue
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                named = [item for item in node.body if isinstance(item, Function) and not item.name.startswith("_")]
                yield from (item for item in named if not node.bases or item.name not in ("forward", "step"))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    long = {
        item.name: item.end_lineno - item.lineno + 1
        for item in functions(parse(path))
        if item.end_lineno is not None and item.end_lineno - item.lineno >= MOST_FUNCTION_LINES
    }
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_library_does_not_print(path: Path) -> None:
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and called(node) == "print"]
    printed = [node.lineno for node in calls if isinstance(node.func, ast.Name)]
    assert not printed


def imported_at_load(tree: ast.Module) -> Iterator[str]:
    """Modules that a module imports when it is loaded; imports inside functions or for types alone don't count."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The names on some cycle of `graph`, or on a way into one; empty where there is none."""
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_folders_import_each_other_one_way() -> None:
    """Data flows one way (README): no folder imports another one that, through whatever others, imports it."""
    folders: dict[str, set[str]] = {path.name: set() for path in SOURCE.iterdir() if path.is_dir()}
    for path in MODULES:
        module = ".".join(("affetto", *path.relative_to(SOURCE).with_suffix("").parts))
        for name in imported_at_load(parse(path)):
            here, there = module.split(".")[1], name.split(".")[1] if name.startswith("affetto.") else ""
            if here in folders and there in folders and here != there:
                folders[here].add(there)
    assert sum(map(len, folders.values())) > 40, "the scan finds imports"
    assert cycle(folders) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


KEPT = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "benchmarks", "configs", "docs", "pyproject.toml",
    "requirements-expressivity-finetuning.txt", "requirements-test.txt", "scripts", "src", "tests",
}  # fmt: skip


def shipped() -> list[Path]:
    """What the repository keeps; what users and runs leave beside it is theirs."""
    return [
        path
        for name in sorted(KEPT)
        for path in [ROOT / name, *sorted((ROOT / name).rglob("*"))]
        if path.is_file() and not any(part in GENERATED or part.endswith(".egg-info") for part in path.parts)
    ]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    files = shipped()
    assert len(files) > 100
    places = re.compile(
        rb"(?<![\w.~}])/(?:home|Users|root)/[\w.]+" + b"|" + re.escape(str(ROOT).encode()) + rb"(?![\w-])"
    )
    found = {relative(path): match.group() for path in files if (match := places.search(path.read_bytes()))}
    assert not found


def test_nothing_strays_into_the_repository() -> None:
    """Corpora have licences of their own, and a sound in the history stays there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this isn't a checkout of a repository")
    names = listed.stdout.split("\0")[:-1]
    assert {name.partition("/")[0] for name in names} == KEPT
    assert not [name for name in names if name.endswith((".wav", ".flac", ".mp3", ".ogg"))]


def test_what_the_package_needs_is_in_its_wheel() -> None:
    """Weights, templates, and the mark that its types may be checked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["affetto"]
    packed = {path for pattern in patterns for path in SOURCE.glob(pattern) if path.is_file()}
    needed = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert SOURCE / "py.typed" in needed
    assert not sorted(map(relative, needed - packed))


def test_results_name_commands_that_anyone_can_run() -> None:
    """No absolute paths: a folder of one's own has another name anywhere else."""
    results = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
    commands = [
        (path.name, command)
        for path in results
        for command in re.findall(r'"command": "((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8"))
    ]
    assert len(commands) > len(results)
    assert not [(name, command) for name, command in commands if re.search(r"(?:^|[\s='])/", command)]
