"""Somebody's own network as a run, so that compress, explain and attack act on it as on any other.

`path/to/net.py:build` names a function without arguments (or a class, or a module instance) that gives an `nn.Module`;
its weights come from a safetensors file, its pictures from any labelled picture data. The network takes pictures
`[B, C, H, W]` in `[lo, hi]` (normalisation inside) and gives logits `[B, K]`. The file is the user's own code and is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from cambrian.codec import tensors
from cambrian.data import digits, images
from cambrian.data.source import resolve
from cambrian.data.split import Data
from cambrian.engine.run import Run, RunSpec, all_paths
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, DataError
from cambrian.inspect.target import ModuleTarget, Space, wrap
from cambrian.nn.hub import load_weights
from cambrian.worlds import glyphs, photos

SLUG = "own-network"


@dataclass(frozen=True)
class Own:
    """What makes a target of a file: `file.py`, the name in it, weights, data, and how its pictures are read."""

    file: str
    name: str
    weights: str | None = None
    data: str | None = None
    size: int | None = None
    channels: int | None = None
    lo: float = 0.0
    hi: float = 1.0


def is_own(text: str) -> bool:
    """Whether a text names a network in a Python file, `net.py:build`."""
    file, _, name = text.rpartition(":")
    return file.endswith(".py") and name.isidentifier()


def run_of(
    text: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    size: int | None = None,
    channels: int | None = None,
    box: tuple[float, float] = (0.0, 1.0),
) -> Run:
    """The run that stands for a network of one's own; the same one when nothing has changed since it was made.

    Raises `ConfigError`, `CheckpointError`, `DataError` or `CapabilityError`, each before anything is written.
    """
    if not is_own(text):
        raise ConfigError(f"name a network as path/to/file.py:function, not {text!r}")
    file, _, name = text.rpartition(":")
    own = Own(
        str(Path(file).resolve()),
        name,
        _absolute(weights),
        _absolute(data),
        size,
        channels,
        float(box[0]),
        float(box[1]),
    )
    target(own)
    marks = {"files": _hash(own)}
    for path in reversed(all_paths()):
        known = Run(path) if path.parent.name == SLUG else None
        if (
            known
            and not known.info.get("verb")
            and known.spec.config == asdict(own)
            and known.info.get("files") == marks["files"]
        ):
            return known
    run = Run.create(RunSpec(SLUG, asdict(own), "own", 0, own.data), extra=marks)
    run.update(status="done")
    return run


def target_of(run: Run) -> ModuleTarget:
    """The target of a run that `run_of` made. Raises `CheckpointError` when its files have changed since."""
    own = Own(**run.spec.config)
    if not run.info.get("verb") and run.info.get("files") != _hash(own):
        raise CheckpointError(
            f"{own.file} or its weights have changed since run {run.id} was made; name the file again"
        )
    return target(own)


def target(own: Own) -> ModuleTarget:
    """Build the network, load its weights, read its data, and check that one fits the other."""
    module = _build(own)
    if own.weights is not None:
        load_weights(module, tensors.load(Path(own.weights)), own.weights)
    data = _data(own)
    shape, classes = data.info["shape"], data.info["classes"]
    if not classes:
        raise DataError(f"{data.name} has no labels; sort its pictures into a folder for each class")
    made = wrap(module.eval(), space=Space.image(shape, own.lo, own.hi), classes=classes, data=data)
    try:
        made.logits(made.example())
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CapabilityError(
            f"{own.name} does not give logits for pictures {list(shape)} of {data.name}: {reason}"
        ) from None
    return made


def _build(own: Own) -> nn.Module:
    path = Path(own.file)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    namespace = importlib.util.module_from_spec(spec)
    with torch.random.fork_rng(devices=[]):  # type: ignore[reportUnknownMemberType]
        torch.manual_seed(0)  # type: ignore[reportUnknownMemberType]
        try:
            spec.loader.exec_module(namespace)
        except Exception as error:  # the file is the user's own code: whatever it raises is theirs to read
            raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
        made: Any = getattr(namespace, own.name, None)
        if made is None:
            raise ConfigError(
                f"{path} defines no {own.name!r}; it defines: {', '.join(_public(namespace)) or 'nothing'}"
            )
        try:
            module = made if isinstance(made, nn.Module) else made()
        except Exception as error:
            raise ConfigError(f"{own.name}() of {path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise CapabilityError(f"{own.name} of {path} gives {type(module).__name__}, not an nn.Module")
    return module


def _public(namespace: ModuleType) -> list[str]:
    values: dict[str, Any] = vars(namespace)
    return [name for name, value in values.items() if not name.startswith("_") and callable(value)]


def _data(own: Own) -> Data:
    if own.data is None:
        raise ConfigError(
            "a network of your own needs --data: a folder or table of labelled pictures, or glyphs, photos"
        )
    source = resolve(own.data, "glyphs")
    if source.kind != "world":
        return images.load(source, size=own.size, channels=own.channels)
    if source.value == "glyphs":
        return glyphs.load(size=own.size or 32, colour=own.channels == 3)
    if source.value == "photos":
        return photos.load(size=own.size or 32, channels=own.channels or 1)
    if source.value == "digits":
        return digits.load(valid=200)
    raise DataError(f"{source.value!r} holds no labelled pictures; use glyphs, photos, digits, a folder or a table")


def _absolute(path: str | os.PathLike[str] | None) -> str | None:
    if path is None:
        return None
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def _hash(own: Own) -> str:
    whole = hashlib.sha256()
    for name in (own.file, own.weights):
        if name is not None:
            try:
                whole.update(Path(name).read_bytes())
            except OSError as error:
                raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from None
    return whole.hexdigest()[:32]
