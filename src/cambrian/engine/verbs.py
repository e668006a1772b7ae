"""Compress, explain and attack: a method applied to a trained run gives a child run with tables, pictures and files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch

from cambrian.codec import files, tensors
from cambrian.engine import methods, registry, subjects
from cambrian.engine.report import card_html, environment_html, write
from cambrian.engine.run import Run, RunSpec
from cambrian.engine.samples import Plot, Table
from cambrian.errors import ConfigError


def compress(parent: Run, with_: Sequence[str], *, seed: int = 0) -> Run:
    """Apply the compressors of `with_` in order, each to the network and the constraints that the one before left.

    Raises `ConfigError` for an order that cannot be: pruning or restructuring weights that are quantised already.
    """
    target = parent.target()
    chosen = _chosen(with_, "compressor", target)
    _check_order(chosen, target)
    with _child(parent, "compress", chosen, seed) as child:
        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        for i, method in enumerate(chosen):
            folder = child.artifacts / f"{i}-{method.slug}"
            folder.mkdir(parents=True, exist_ok=True)
            made = method.compress(target, folder, torch.Generator().manual_seed(seed))
            rows += [{"method": method.slug, **row} for row in made.rows]
            figures.update(made.figures)
            child.update(file=str(made.file.relative_to(child.path)))
            if i + 1 < len(chosen):
                target = target.replaced(made.module, made.state)
        return _publish(child, rows, figures)


def explain(parent: Run, with_: Sequence[str], *, seed: int = 0) -> Run:
    """Apply the explainers of `with_`, each to the same trained model."""
    target = parent.target()
    chosen = _chosen(with_, "explainer", target)
    with _child(parent, "explain", chosen, seed) as child:
        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        relevance: dict[str, torch.Tensor] = {}
        for method in chosen:
            found = method.explain(target, torch.Generator().manual_seed(seed))
            rows += [{"method": method.slug, **row} for row in found.rows]
            figures.update({f"{method.slug} {name}": figure for name, figure in found.figures.items()})
            relevance.update(found.relevance)
        if relevance:
            files.replace_bytes(child.artifacts / subjects.RELEVANCE, tensors.encode(relevance))
        return _publish(child, rows, figures)


def attack(parent: Run, with_: Sequence[str], *, n: int = 256, split: str = "test", seed: int = 0) -> Run:
    """Attack `n` samples of a split with each attacker of `with_`; the result keeps the inputs of the last one."""
    if n < 1:
        raise ConfigError(f"the number of inputs must be at least 1, not {n}")
    target = parent.target()
    chosen = _chosen(with_, "attacker", target)
    with _child(parent, "attack", chosen, seed) as child:
        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        x, y, meta = _inputs(target, split, n, seed)
        child.update(split=split)
        for method in chosen:
            result = method.attack(target, x, y, torch.Generator().manual_seed(seed))
            rows += [{"method": method.slug, **row} for row in result.rows]
            figures.update({f"{method.slug} {name}": figure for name, figure in result.figures.items()})
            files.replace_bytes(child.artifacts / subjects.INPUTS, subjects.inputs(x, result.x_adv, y, meta))
        return _publish(child, rows, figures)


def _inputs(target: Any, split: str, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """`n` samples of a split drawn by `seed` (all of them when it has fewer), and what the data knows of each."""
    parts = list(target.batches(split, n=min(n, target.size(split)), seed=seed))
    meta = {name: torch.cat([part[2][name] for part in parts]) for name in parts[0][2]}
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), meta


def _chosen(with_: Sequence[str], role: str, target: Any) -> list[Any]:
    """The methods, each checked against what the target offers before anything is written."""
    chosen = methods.parse_all(with_, role)
    if not chosen:
        raise ConfigError(f"name at least one {role} with --with")
    for method in chosen:
        method.require(target)
    return chosen


def _check_order(chosen: Sequence[Any], target: Any) -> None:
    state = target.state
    last = "the run's own compression" if state is not None and state.quantised else ""
    for method in chosen:
        undone = [stage for stage in method.stages() if stage != "quantise"]
        if last and undone:
            raise ConfigError(f"{method.slug} would {undone[0]} weights that {last} quantised; put it before")
        if "quantise" in method.stages():
            last = method.slug


@contextlib.contextmanager
def _child(parent: Run, verb: str, chosen: Sequence[Any], seed: int) -> Generator[Run]:
    """A new run for a verb's result; nothing is left of it when the verb fails."""
    spec = RunSpec(
        parent.spec.slug, parent.spec.config, parent.spec.preset, seed, parent.spec.data, parent.spec.methods
    )
    extra = {"verb": verb, "parent": parent.id, "with": methods.describe(chosen)}
    child = Run.create(spec, extra=extra, root=parent.path.parent.parent)
    try:
        yield child
    except BaseException:
        shutil.rmtree(child.path, ignore_errors=True)
        raise


def _publish(child: Run, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> Run:
    """Write the table and pictures, and a report; the run's `figures` hold the rows."""
    plain = [{k: _plain(v) for k, v in row.items()} for row in rows]
    files.replace_json(child.path / "table.json", plain)
    shown = "".join(f"<h3>{name}</h3>{Plot(figure).html()}" for name, figure in figures.items())
    for name, figure in figures.items():
        Plot(figure).save(child.artifacts, "".join(c if c.isalnum() else "-" for c in name.lower()))
    child.update(status="done", rows=plain)
    title = f"{child.info['verb']} {child.info['parent']}"
    about = card_html(child.spec.slug) if child.spec.slug in registry.cards() else ""
    body = about + f"<h2>{title}</h2>" + Table.of(plain).html() + shown + environment_html(child.info)
    write(child.path / "report.html", title, body)
    return child


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()  # type: ignore[reportUnknownMemberType]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None), list)) else str(value)  # type: ignore[reportUnknownVariableType]
