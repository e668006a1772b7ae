"""Cambrian from Python: the verbs as functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cambrian.engine import matrix as matrices
from cambrian.engine import own, registry, verbs
from cambrian.engine import run as run_store
from cambrian.engine import train as training
from cambrian.engine import verify as trying
from cambrian.engine.matrix import Matrix
from cambrian.engine.run import Run
from cambrian.engine.verify import Trial


def list_systems(role: str | None = None) -> list[str]:
    """The slugs of all systems, or of those that play `role` (`recipe`, `training-method`, `compressor` ...)."""
    return [slug for slug, card in registry.cards().items() if role is None or role in card.roles]


def train(
    slug: str,
    *,
    preset: str = "laptop",
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    with_: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    **settings: Any,
) -> Run:
    """Train a system and return its run: `train("sketch-rnn", data="sheep.npz", hidden=512)`.

    `settings` replace fields of the preset's configuration. Raises `ConfigError`, `DataError`, `NonFiniteError`.
    """
    spec, config = run_store.spec_for(
        slug, preset=preset, seed=seed, data=data, with_=with_, precision=precision, device=device, settings=settings
    )
    return training.start(spec, config, report=progress)


def load(run: str | os.PathLike[str]) -> Run:
    """A run by path, id, unique prefix of an id, or `last`."""
    return run_store.find(run)


def resume(run: str | os.PathLike[str] | Run) -> Run:
    """Carry a stopped run on to its end, bit-equal to one that never stopped."""
    return training.resume(run if isinstance(run, Run) else load(run))


def runs() -> list[Run]:
    """All runs, oldest first."""
    return [Run(path) for path in run_store.all_paths()]


def evaluate(run: str | os.PathLike[str] | Run, split: str = "test", **options: Any) -> dict[str, float]:
    """Figures of a run on a split."""
    return (run if isinstance(run, Run) else load(run)).evaluate(split, **options)


def verify(slug: str, **options: Any) -> list[Trial]:
    """Try a system's claim against its baseline; see `cambrian.engine.verify.verify`."""
    return trying.verify(slug, **options)


def compress(run: str | os.PathLike[str] | Run, with_: str | Sequence[str], *, seed: int = 0) -> Run:
    """Compress a trained run: `compress(run, "inq:bits=4")`; returns the child run with the encoded file."""
    return verbs.compress(_run(run), _texts(with_), seed=seed)


def explain(run: str | os.PathLike[str] | Run, with_: str | Sequence[str], *, seed: int = 0) -> Run:
    """Explain a trained run: `explain(run, "linear-probes")`; returns the child run with tables and pictures."""
    return verbs.explain(_run(run), _texts(with_), seed=seed)


def attack(
    run: str | os.PathLike[str] | Run, with_: str | Sequence[str], *, n: int = 256, split: str = "test", seed: int = 0
) -> Run:
    """Attack a trained run with `n` inputs of a split: `attack(run, "fgsm:eps=8/255")`; returns the child run."""
    return verbs.attack(_run(run), _texts(with_), n=n, split=split, seed=seed)


def matrix(
    run: str | os.PathLike[str] | Run,
    *,
    only: Sequence[str] | None = None,
    n: int = 64,
    seed: int = 0,
    report: Callable[[str, str], None] | None = None,
) -> Matrix:
    """Every compressor, explainer and attacker on one run, with quick options; see `cambrian.engine.matrix`."""
    return matrices.matrix(_run(run), only=only or tuple(matrices.ROLES), n=n, seed=seed, report=report)


def own_network(
    text: str, *, weights: str | os.PathLike[str] | None = None, data: str | os.PathLike[str] | None = None, **how: Any
) -> Run:
    """A network of your own as a run for the verbs: `own_network("net.py:build", weights=..., data="pictures/")`.

    `how`: size, channels, box (values of black and white). From Python, `cambrian.inspect.wrap` makes a target of any
    module without a run.
    """
    return own.run_of(text, weights=weights, data=data, **how)


def _run(run: str | os.PathLike[str] | Run) -> Run:
    return run if isinstance(run, Run) else load(Path(run) if isinstance(run, os.PathLike) else run)


def _texts(with_: str | Sequence[str]) -> list[str]:
    return [with_] if isinstance(with_, str) else list(with_)
