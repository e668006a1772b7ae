"""Every compressor, explainer and attacker on one run, with quick options: three tables, and why a method does not apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cambrian.engine import methods, registry, verbs
from cambrian.engine.run import Run
from cambrian.errors import CambrianError

ROLES = {"compress": "compressor", "explain": "explainer", "attack": "attacker"}
Report = Callable[[str, str], None]


@dataclass
class Matrix:
    """What the verbs say of one run: rows by verb (`system` names the method's page), the reasons of methods that do not apply, and the child runs."""

    run: str
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, "list[dict[str, Any]]"])
    reasons: dict[str, dict[str, str]] = field(default_factory=dict[str, "dict[str, str]"])
    children: dict[str, str] = field(default_factory=dict[str, str])


def matrix(
    run: Run, *, only: Sequence[str] = tuple(ROLES), n: int = 64, seed: int = 0, report: Report | None = None
) -> Matrix:
    """Apply every method of the verbs `only`, each to the run itself; a method that cannot leaves its reason.

    `report(verb, slug)` is called before each method. Methods take the options of their `quick`, so figures are those
    of a first look and not of the method at its best.
    """
    found = Matrix(run.id)
    target = run.target()
    for verb in only:
        found.tables[verb], found.reasons[verb] = [], {}
        for slug, card in registry.cards().items():
            if ROLES[verb] not in card.roles:
                continue
            method = registry.load(slug, ROLES[verb])
            lacking = method.lacks(target)
            if lacking:
                found.reasons[verb][slug] = "; ".join(lacking)
                continue
            if report is not None:
                report(verb, slug)
            try:
                child = _apply(verb, run, methods.text_of(slug, method.quick), n, seed)
            except CambrianError as error:
                found.reasons[verb][slug] = str(error)
                continue
            found.tables[verb] += [{"system": slug, **row} for row in child.info["rows"]]
            found.children[f"{verb} {slug}"] = child.id
    return found


def _apply(verb: str, run: Run, text: str, n: int, seed: int) -> Run:
    if verb == "attack":
        return verbs.attack(run, [text], n=n, seed=seed)
    return verbs.compress(run, [text], seed=seed) if verb == "compress" else verbs.explain(run, [text], seed=seed)
