"""Every system by slug: found by file name, described by `ast`, imported only when asked for."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cambrian.engine.config import nearest
from cambrian.errors import CapabilityError, ConfigError

SYSTEMS = Path(__file__).resolve().parent.parent / "systems"
GROUP = "cambrian.systems"
ROLES = {
    "recipe": "recipe",
    "training_method": "training-method",
    "compressor": "compressor",
    "explainer": "explainer",
    "attacker": "attacker",
    "study": "study",
}


@dataclass(frozen=True)
class Card:
    """What is known of a system without importing it."""

    slug: str
    family: str
    module: str
    title: str
    reference: str
    summary: str
    claim: str
    body: str
    roles: tuple[str, ...]
    data: str | None
    files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def shared(self) -> tuple[Path, ...]:
        """The modules of its family that the files import."""
        return _family_files(self.files)

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of its recipe's actions, inherited ones too."""
        return _actions_of(self.slug, (*self.files, *self.shared))

    def row(self) -> dict[str, Any]:
        """The card as JSON values."""
        keys = ("slug", "family", "title", "reference", "summary", "claim", "module", "data")
        return {**{k: getattr(self, k) for k in keys}, "roles": list(self.roles)}


_DOCSTRING = re.compile(r'\A\s*(?:#[^\n]*\n\s*)*[rR]?"""(.*?)"""', re.S)
_ROLE = re.compile(r"""^@(\w+)\(\s*["']([\w-]+)["'](?:\s*,\s*data\s*=\s*["']([^"']+)["'])?\s*,?\s*\)""", re.M)


def _read_card(slug: str, family: str, module: str, files: tuple[Path, ...]) -> Card:
    """A card by scanning the text: parsing every system to list them all would take seconds."""
    texts = [path.read_text(encoding="utf-8") for path in files]
    found = _DOCSTRING.match(texts[0])
    doc = inspect.cleandoc(found[1]) if found else ""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", doc)]
    claim = next((p.removeprefix("Claim:").strip() for p in paragraphs if p.startswith("Claim:")), "")
    title, reference, summary = ([*paragraphs, "", "", ""])[:3]
    marks = [m for text in texts for m in _ROLE.finditer(text) if m[1] in ROLES and m[2] == slug]
    roles = tuple(dict.fromkeys(ROLES[m[1]] for m in marks))
    data = next((m[3] for m in marks if m[3]), None)
    return Card(slug, family, module, title.rstrip("."), reference, summary, claim, doc, roles, data, files)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _family_files(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The family's shared modules (`systems/<family>/_name.py`) that these files import, and those import."""
    found: dict[Path, None] = {}
    waiting = [_parse(path) for path in files]
    while waiting:
        for node in (n for n in waiting.pop().body if isinstance(n, ast.ImportFrom)):
            package = (node.module or "").split(".")
            if package[:2] != ["cambrian", "systems"]:
                continue
            for parts in [package[2:], *([*package[2:], alias.name] for alias in node.names)]:
                path = SYSTEMS.joinpath(*parts).with_suffix(".py")
                if len(parts) == 2 and parts[1].startswith("_") and path not in found and path.is_file():
                    found[path] = None
                    waiting.append(_parse(path))
    return tuple(found)


@cache
def _actions_of(slug: str, files: tuple[Path, ...]) -> tuple[str, ...]:
    classes = {node.name: node for path in files for node in _parse(path).body if isinstance(node, ast.ClassDef)}
    owners = [node for node in classes.values() if any(_names(call, slug) for call in node.decorator_list)]
    return tuple(dict.fromkeys(name for owner in owners for name in _actions(owner, classes)))


def _names(decorator: ast.expr, slug: str) -> bool:
    """Whether a decorator declares a role of system `slug`."""
    if not (isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id in ROLES):
        return False
    return bool(decorator.args) and isinstance(decorator.args[0], ast.Constant) and decorator.args[0].value == slug


def _actions(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Names of the methods marked `@action`, of the class and of its bases."""
    bases = [b.value if isinstance(b, ast.Subscript) else b for b in node.bases]
    inherited = [classes[b.id] for b in bases if isinstance(b, ast.Name) and b.id in classes]
    own = [f.name for f in node.body if isinstance(f, ast.FunctionDef) and is_action(f)]
    return own + [name for base in inherited for name in _actions(base, classes)]


def is_action(function: ast.FunctionDef) -> bool:
    """Whether a method is marked `@action`."""
    return any(isinstance(d, ast.Name) and d.id == "action" for d in function.decorator_list)


def _embedded() -> dict[str, tuple[str, str, tuple[Path, ...]]]:
    found: dict[str, tuple[str, str, tuple[Path, ...]]] = {}
    for family in sorted(p for p in SYSTEMS.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))):
        for path in sorted(family.iterdir()):
            if path.name.startswith(("_", ".")):
                continue
            module = f"cambrian.systems.{family.name}.{path.stem}"
            if path.suffix == ".py":
                found[path.stem.replace("_", "-")] = (family.name, module, (path,))
            elif (path / "recipe.py").is_file():
                others = tuple(sorted(p for p in path.glob("*.py") if p.name != "__init__.py"))
                found[path.name.replace("_", "-")] = (family.name, module, (path / "__init__.py", *others))
    return found


def _plugins() -> dict[str, tuple[str, str, tuple[Path, ...]]]:
    found: dict[str, tuple[str, str, tuple[Path, ...]]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        spec = importlib.util.find_spec(entry.value)
        if spec is not None and spec.origin is not None:
            found[entry.name] = ("plugin", entry.value, (Path(spec.origin),))
    return found


@cache
def cards() -> dict[str, Card]:
    """Every system's card by slug: those of the package, then those of installed plugins."""
    places = {**_plugins(), **_embedded()}
    return {slug: _read_card(slug, *place) for slug, place in sorted(places.items())}


def card(slug: str) -> Card:
    """The card of `slug`; `ConfigError` with the nearest slug for an unknown one."""
    found = cards().get(slug.replace("_", "-"))
    if found is None:
        raise ConfigError(f"unknown system {slug!r}{nearest(slug, list(cards()))}; run 'cambrian list' to see all")
    return found


def code_hash(slug: str) -> str:
    """A hash of the system's files and its family's: what is cached for it is stale when they change."""
    found = card(slug)
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*found.files, *found.shared))).hexdigest()


@cache
def _classes(module: str, files: tuple[Path, ...]) -> dict[tuple[str, str], type]:
    names = [module]
    if len(files) > 1:
        names += [f"{module}.{path.stem}" for path in files if path.name != "__init__.py"]
    found: dict[tuple[str, str], type] = {}
    for name in names:
        for _, member in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if "slug" in vars(member) and "role" in vars(member):
                found.setdefault((member.role, member.slug), member)  # type: ignore[attr-defined]
    return found


def load(slug: str, role: str) -> Any:
    """The class that plays `role` for `slug`. Raises `ConfigError` or `CapabilityError`."""
    found = card(slug)
    if role not in found.roles:
        able = sorted(c.slug for c in cards().values() if role in c.roles)
        raise CapabilityError(
            f"{found.slug} is no {role}; it is: {', '.join(found.roles)}. A {role} is: {', '.join(able)}"
        )
    return _classes(found.module, found.files)[role, found.slug]


def claim_holder(slug: str) -> Any:
    """The class that carries the claims of `slug`: its recipe when that has claims, else its study."""
    found = card(slug)
    for role in ("recipe", "study"):
        if role in found.roles and load(slug, role).claims:
            return load(slug, role)
    raise CapabilityError(f"{found.slug} has no executable claim")
