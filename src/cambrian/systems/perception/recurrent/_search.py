"""Trying cells: a table of named ones at equal parameters, and a small search by mutation of equations.

The search follows Jozefowicz et al. (2015, section 3) in small: change the equations of a good cell at random, drop
what cannot memorise a handful of symbols, train the rest, and go on from the best found so far. Their search ran
over 10,000 candidates and 230,000 hyper-parameter settings; this one shows how it works.

Shapes: T time, B batch.
"""

from __future__ import annotations

import ast
import dataclasses
from typing import TYPE_CHECKING

import torch

from cambrian.data.source import Source
from cambrian.engine.loop import Loop, evaluate, fit
from cambrian.engine.samples import Table
from cambrian.errors import ConfigError, NonFiniteError
from cambrian.nn.cells import CELLS, lstm_equations, make_cell
from cambrian.nn.cells.equations import NEXT, read_lines, write_lines

if TYPE_CHECKING:
    from cambrian.systems.perception.recurrent.recipe import RecurrentRecipe

GRU = """
    z = sigmoid(Wz @ x + Uz @ h + bz)
    r = sigmoid(Wr @ x + Ur @ h + br)
    n = tanh(Wn @ x + Un @ (r * h) + bn)
    h' = (1 - z) * h + z * n
"""
ACTIVATIONS = ("sigmoid", "tanh", "relu")
OPERATORS = (ast.Add, ast.Sub, ast.Mult)
BEST = 3  # candidates that may have children
MEMORISED, MEMORY_UPDATES = 0.9, 80


def mutate(equations: str, generator: torch.Generator) -> str:
    """One random change: another function, operator or operand, a part wrapped in a function, dropped or added to.

    Returns equations that can be read; whether they make a cell is for `make_cell` to say.
    """
    lines = read_lines(equations)
    row = _below(len(lines), generator)
    target, root = lines[row]
    states = {t.removesuffix(NEXT) for t, _ in lines if t.endswith(NEXT)}
    values = sorted(states | {t for t, _ in lines[:row]})
    inside = {
        id(node.left) for node in ast.walk(root) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
    }
    places = [n for n in ast.walk(root) if isinstance(n, (ast.Call, ast.BinOp, ast.Name)) and id(n) not in inside]
    named = {n.func.id for n in places if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    places = [n for n in places if not (isinstance(n, ast.Name) and n.id in named)]
    chosen = places[_below(len(places), generator)]
    new = _changed(chosen, values, generator)
    lines[row] = (target, new if chosen is root else _Replace(chosen, new).visit(root))
    return write_lines(lines)


def _changed(node: ast.expr, values: list[str], generator: torch.Generator) -> ast.expr:
    """What takes the place of `node`."""
    function = ast.Name(ACTIVATIONS[_below(len(ACTIVATIONS), generator)])
    other = ast.Name(values[_below(len(values), generator)])
    match node, _below(3, generator):
        case ast.Name(), 0:
            return other
        case ast.Call(args=[inner]), 0:
            return inner
        case ast.Call(args=[inner]), 1:
            return ast.Call(function, [inner], [])
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult(), right=right), 0:
            return (left, right)[_below(2, generator)]
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult(), right=right), 1:
            return ast.BinOp(left, OPERATORS[_below(len(OPERATORS), generator)](), right)
    if _below(2, generator):
        return ast.Call(function, [node], [])
    return ast.BinOp(node, OPERATORS[_below(len(OPERATORS), generator)](), other)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.expr) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else super().generic_visit(node)


def search(run: RecurrentRecipe, candidates: int, updates: int, seed: int) -> Table:
    """Equations found, best first, with their score on the run's validation split beside GRU's and LSTM's."""
    if candidates < 1 or updates < 1:
        raise ConfigError(f"search needs at least 1 candidate and 1 update, not {candidates} and {updates}")
    generator = torch.Generator().manual_seed(seed)
    pool: list[tuple[float, str, str]] = []
    biased = lstm_equations().replace("+ bf)", "+ bf + 1)")  # a start that remembers
    for name, text in (("gru", GRU), ("lstm", biased)):
        pool.append((score(run, text, updates, seed), name, write_lines(read_lines(text))))
    dropped = {"no cell": 0, "no memory": 0, "diverged": 0}
    for i in range(candidates):
        parents = sorted(pool)[-BEST:]
        parent = parents[_below(len(parents), generator)]
        child = mutate(parent[2], generator)
        outcome = _tried(run, child, updates, seed)
        if isinstance(outcome, str):
            dropped[outcome] += 1
        elif child not in {text for _, _, text in pool}:
            pool.append((outcome, f"{i + 1}, from {parent[1].split(',')[0]}", child))
    rows = [[found, name, text.replace("\n", "; ")] for found, name, text in sorted(pool, reverse=True)]
    left_out = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
    return Table([score_name(run), "candidate", "equations"], [*rows, ["", "left out", left_out]])


def _tried(run: RecurrentRecipe, equations: str, updates: int, seed: int) -> float | str:
    """The score of a candidate, or why it has none."""
    try:
        make_cell(equations, inputs=2, hidden=2)
        if remembers(run, equations, seed) < MEMORISED:
            return "no memory"
        return score(run, equations, updates, seed)
    except ConfigError:
        return "no cell"
    except NonFiniteError:
        return "diverged"


def remembers(run: RecurrentRecipe, equations: str, seed: int) -> float:
    """Accuracy on a latch of 5 steps after a few updates: who fails here is not worth training (their first filter)."""
    return trained(run, equations, MEMORY_UPDATES, seed, task="latch", length=5)["accuracy"]


def score(run: RecurrentRecipe, cell: str, updates: int, seed: int) -> float:
    """Validation accuracy after `updates`, or minus the loss where nothing is classified; higher is better."""
    found = trained(run, cell, updates, seed)
    return found["accuracy"] if score_name(run) == "accuracy" else -found["loss"]


def score_name(run: RecurrentRecipe) -> str:
    """What `score` measures."""
    return "accuracy" if run.task == "classes" and run.data.kind == "sequence" else "minus loss"


def table(run: RecurrentRecipe, cells: list[str], tasks: list[str], updates: int, seed: int) -> Table:
    """A row a cell, a column a task: validation loss after `updates`, and accuracy where there is one."""
    unknown = [cell for cell in cells if cell not in CELLS]
    if unknown or updates < 1:
        raise ConfigError(f"no cell {unknown}; cells: {', '.join(CELLS)}; updates must be at least 1, not {updates}")
    rows = []
    for cell in cells:
        row: dict[str, object] = {"cell": cell}
        for task in tasks or [""]:
            found = trained(run, cell, updates, seed, task=task)
            row |= {f"{task} {name}".strip(): found[name] for name in ("loss", "accuracy") if name in found}
        rows.append(row)
    return Table.of(rows)


def trained(
    run: RecurrentRecipe, cell: str, updates: int, seed: int, *, task: str = "", length: int | None = None
) -> dict[str, float]:
    """Validation figures of a new model with `cell` and as many parameters as the run's, trained for `updates`."""
    parameters = sum(p.numel() for p in run.model.parameters())
    changes = {"cell": cell, "hidden": None, "parameters": parameters, "forget_bias": None, "update_bias": None}
    changes |= {"steps": updates, "until": 0.0, "bidirectional": False, "chunk": 0}
    if task:
        changes["length"] = length
    config = dataclasses.replace(run.config, **changes)
    data = type(run).load_data(config, Source("world", task)) if task else run.data
    loop = Loop(type(run)(config, data=data, seed=seed, device=run.device))
    with torch.enable_grad():  # actions run without
        fit(loop, updates)
    return evaluate(loop.recipe, "valid")


def _below(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (1,), generator=generator))
