"""The shape of the code: layers, lengths, duplicates, and what must never appear."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "cambrian"
LAYERS = ["cli", "web", "systems", "engine", "inspect", "rl", "dist", "search", "studies", "worlds", "data", "nn", "metrics",
          "codec", "audio", "errors"]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = {"torch", "numpy", "einops", "safetensors", "rich", "matplotlib", "sklearn", "skimage", "PIL", "cambrian"}


def layer(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return LAYERS.index(part) if part in LAYERS else None


def imports(tree):
    """Imported modules with whether they run at import time (module level, outside TYPE_CHECKING)."""
    lazy = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    typing = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            yield name, id(node) not in lazy | typing


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 500, "split the file"
    here = layer(path)
    for name, eager in imports(tree):
        top = name.split(".")[0]
        if eager and top not in CORE:
            assert top in sys.stdlib_module_names or top == "__future__", f"optional {name} must be imported lazily"
        if top == "cambrian" and here is not None and name.count(".") >= 1:
            there = name.split(".")[1]
            if there in LAYERS:
                assert LAYERS.index(there) >= here, f"imports run downwards only: {path.name} imports {name}"
        assert top not in ("pickle", "cloudpickle", "dill", "marshal", "shelve", "yaml", "joblib"), (
            f"{name} is forbidden"
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in ("eval", "exec", "torch.load", "torch.save", "__import__", "compile"), (
                f"{call} in {path.name}"
            )
            if call.endswith("load") and call.split(".")[0] in ("np", "numpy"):
                assert (
                    any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
                    or len(node.keywords) == 0
                )
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "every module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is too long"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


def test_functions_stay_short():
    lengths = [
        n.end_lineno - n.lineno + 1
        for p in FILES
        for n in ast.walk(ast.parse(p.read_text()))
        if isinstance(n, ast.FunctionDef)
    ]
    assert sum(n > 40 for n in lengths) <= 0.01 * len(lengths)


def duplicate_share(paths):
    """Share of code lines inside a window of six identical lines that also stands in another file."""
    bodies = {}
    windows = {}
    for path in paths:
        lines = [x.strip() for x in path.read_text().splitlines()]
        body = [x for x in lines if len(x) > 3 and not x.startswith(("#", "import ", "from "))]
        bodies[path] = body
        for i in range(len(body) - 5):
            windows.setdefault(tuple(body[i : i + 6]), []).append((path, i))
    repeated = {path: set() for path in paths}
    for places in windows.values():
        if len({p for p, _ in places}) > 1:
            for path, i in places:
                repeated[path].update(range(i, i + 6))
    return sum(map(len, repeated.values())) / sum(map(len, bodies.values()))


def test_duplicates_stay_under_three_percent():
    assert duplicate_share([p for p in FILES if p.name != "__init__.py"]) <= 0.03


def test_no_utils_and_no_machine_paths():
    names = {p.stem for p in FILES} | {p.parent.name for p in FILES}
    assert not names & {"utils", "helpers", "misc", "common"}
    for path in [*FILES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.py")]:
        assert not re.search(r"(?<![\w.])/(work|home|root)/", path.read_text()), path


def test_torch_floor_and_core_dependencies():
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    assert "==" not in block and "<" not in block, "pyproject sets lower bounds only"
    pinned = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==", pinned, re.M)
