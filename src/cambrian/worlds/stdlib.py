"""The running interpreter's standard library as a corpus of Python source.

Modules are divided by their top package, by a hash of its name: 80 % train, 10 % validate, 10 % test, so that no file
of a package is in two parts. Tests, vendored packages and files that are no valid UTF-8 are left out. What is in it
differs between Python versions, so compare figures of one version only.
"""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from pathlib import Path

from cambrian.data import text_files
from cambrian.data.split import Data
from cambrian.errors import DataError

SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_vendor", "lib2to3",
                     "turtledemo", "pydoc_data", "ensurepip", "encodings"})  # fmt: skip


@functools.cache
def modules(part: str = "train") -> dict[str, Path]:
    """Files by dotted module name, in order of name; `part` is train, valid, test or all.

    Raises `DataError` where the interpreter comes without its sources.
    """
    if part not in (*text_files.SPLITS, "all"):
        raise DataError(f"the standard library has the parts {', '.join(text_files.SPLITS)} and all, not {part!r}")
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if SKIPPED & set(place.parts) or place.parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        if part in ("all", part_of(place.parts[0].removesuffix(".py"))):
            found[".".join(place.with_suffix("").parts)] = path
    if not found:
        raise DataError(f"no Python source below {root}; this interpreter comes without its standard library's text")
    return found


@functools.cache
def source(module: str) -> str:
    """Text of one module; empty where it cannot be read as UTF-8."""
    try:
        return modules("all")[module].read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""


def sources(part: str = "train") -> dict[str, str]:
    """Source text by dotted module name, in order of name."""
    return {name: text for name in modules(part) if (text := source(name))}


def part_of(package: str) -> str:
    """Which part a top package or module belongs to."""
    share = int.from_bytes(hashlib.sha256(package.encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.8 else "valid" if share < 0.9 else "test"


def text(part: str, characters: int) -> str:
    """The first `characters` of a part, modules in an order by hash, so that a short text is no single package."""
    out: list[str] = []
    size = 0
    for name in sorted(modules(part), key=lambda name: hashlib.sha256(name.encode()).digest()):
        if size < characters:
            out.append(source(name))
            size += len(out[-1]) + 1
    return "\n".join(out)[:characters]


def load(
    *, characters: int = 400_000, length: int = 64, level: str = "characters", vocabulary: int = 10_000, stride: int = 0
) -> Data:
    """`characters` of training source and an eighth of that for each of validation and test, as `Data` of kind `text`."""
    sizes = {"train": characters, "valid": characters // 8, "test": characters // 8}
    parts = {split: text_files.symbols_of(text(split, size), level) for split, size in sizes.items()}
    settings = {"length": length, "level": level, "vocabulary": vocabulary, "stride": stride}
    return text_files.from_parts("stdlib", parts, source="embedded stdlib", **settings)
