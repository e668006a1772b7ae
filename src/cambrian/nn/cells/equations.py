"""The grammar of `cambrian.nn.cells.expression`: lines of text to terms that can be evaluated, sorted by what they need.

A term is constant (numbers and weights), fixed (needs the input, so it can be formed for all steps at once) or moving
(needs a state). A sum is split: its fixed part is formed ahead, only the rest stays in the loop.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "exp": torch.exp, "abs": torch.abs,
    "sin": torch.sin, "softplus": F.softplus, "square": torch.square,
}  # fmt: skip
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {ast.Mult: operator.mul, ast.Div: operator.truediv}
CONSTANT, FIXED, MOVING = range(3)
NEXT = "__next"  # how c' is written for Python's parser
Env = dict[str, Any]
Line = tuple[str, ast.expr]


@dataclass(frozen=True)
class Term:
    """Part of an equation: how to evaluate it among named values, and what it needs (`CONSTANT`, `FIXED`, `MOVING`)."""

    run: Callable[[Env], Any]
    needs: int
    held: str | None = None  # the name under which a fixed term is already formed ahead


class Program:
    """Equations taken apart.

    `states` in order, h first; `fixed` and `moving` (name, term) in order of evaluation; `input_matrices`,
    `state_matrices` (by state), `inner_matrices` and `biases` are names; `bare` says whether x stands outside a product.
    """

    def __init__(self, text: str) -> None:
        lines = read_lines(text)
        primed = [target.removesuffix(NEXT) for target, _ in lines if target.endswith(NEXT)]
        if "h" not in primed:
            raise ConfigError("a cell needs an equation for h', its next state and output")
        if "x" in primed:
            raise ConfigError("x is the input and cannot be a state")
        self.states = ["h", *(s for s in primed if s != "h")]
        self.fixed: list[tuple[str, Term]] = []
        self.moving: list[tuple[str, Term]] = []
        self.operands: dict[str, set[str]] = {}
        self.biases: set[str] = set()
        self.bare = False
        self._known: dict[str, Term] = {s: Term(_lookup(s), MOVING) for s in self.states}
        for self._line, (target, node) in enumerate(lines, 1):
            if target in self._known:
                raise ConfigError(f"line {self._line}: {_shown(target)} is defined twice")
            self._define(target, self._term(node))
        self._sort_matrices()

    def _define(self, target: str, term: Term) -> None:
        primed = target.endswith(NEXT)
        if term.needs == FIXED and not primed:
            self.fixed.append((target, term))
        elif term.needs == MOVING or primed:
            self.moving.append((target, self._ahead(term)))
        else:  # a constant is evaluated where it is used
            self._known[target] = term
            return
        needs = MOVING if primed else term.needs
        self._known[target] = Term(_lookup(target), needs, target if needs == FIXED else None)

    def _sort_matrices(self) -> None:
        self.input_matrices = sorted(m for m, used in self.operands.items() if used == {"x"})
        mixed = [m for m, used in self.operands.items() if "x" in used and used != {"x"}]
        if mixed:
            raise ConfigError(f"{mixed[0]} multiplies x and something else; use two matrices")
        self.state_matrices: dict[str, list[str]] = {}
        self.inner_matrices: list[str] = []
        for name, used in sorted(self.operands.items()):
            if len(used) == 1 and (state := next(iter(used))) in self.states:
                self.state_matrices.setdefault(state, []).append(name)
            elif "x" not in used:
                self.inner_matrices.append(name)
        self._known.clear()

    # -- terms ----------------------------------------------------------------------------------------------------

    def _term(self, node: ast.expr) -> Term:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return Term(lambda env: value, CONSTANT)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub()) | ast.BinOp(op=ast.Add() | ast.Sub()):
                return self._sum(node)
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                return self._product(left, right)
            case ast.BinOp(left=left, op=ast.Mult() | ast.Div() as op, right=right):
                return self._joined(OPERATORS[type(op)], self._term(left), self._term(right))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
                inner, function = self._term(argument), FUNCTIONS[name]
                return Term(lambda env: function(inner.run(env)), inner.needs)
        raise ConfigError(f"line {self._line}: cannot read {ast.unparse(node)!r}; functions: {', '.join(FUNCTIONS)}")

    def _name(self, name: str) -> Term:
        if name in self._known:
            return self._known[name]
        if name == "x":
            self.bare = True
            return Term(_lookup("x"), FIXED)
        if name.startswith("b"):
            self.biases.add(name)
            return Term(_lookup(name), CONSTANT)
        raise ConfigError(f"line {self._line}: {_shown(name)} is used before any equation gives it")

    def _sum(self, node: ast.expr) -> Term:
        signed = [(sign, self._term(part)) for sign, part in _summands(node, 1)]
        needs = max(term.needs for _, term in signed)
        ahead = [(s, t) for s, t in signed if t.needs < MOVING]
        if needs == MOVING and any(t.needs == FIXED for _, t in ahead) and len(ahead) > 1:
            held = self._ahead(Term(_total(ahead), FIXED))
            signed = [(1, held), *((s, t) for s, t in signed if t.needs == MOVING)]
        elif needs == MOVING:
            signed = [(s, self._ahead(t)) for s, t in signed]
        return Term(_total(signed), needs)

    def _joined(self, operation: Callable[..., Any], left: Term, right: Term) -> Term:
        needs = max(left.needs, right.needs)
        if needs == MOVING:
            left, right = self._ahead(left), self._ahead(right)
        return Term(lambda env: operation(left.run(env), right.run(env)), needs)

    def _product(self, left: ast.expr, right: ast.expr) -> Term:
        if not isinstance(left, ast.Name) or not left.id[0].isupper():
            raise ConfigError(f"line {self._line}: the left side of @ must be a matrix, not {ast.unparse(left)!r}")
        name = left.id
        if isinstance(right, ast.Name) and right.id in ("x", *self.states):
            self.operands.setdefault(name, set()).add(right.id)
            needs = FIXED if right.id == "x" else MOVING
            return Term(_lookup(f"{name} @ {right.id}"), needs)
        inner = self._term(right)
        if inner.needs == CONSTANT:
            raise ConfigError(f"line {self._line}: {ast.unparse(right)!r} after @ depends on neither x nor a state")
        self.operands.setdefault(name, set()).add("")
        return Term(lambda env: F.linear(inner.run(env), env[name]), inner.needs)

    def _ahead(self, term: Term) -> Term:
        """The term, or where it is fixed a reference to a value formed before the loop."""
        if term.needs != FIXED:
            return term
        if term.held is not None:
            return Term(_lookup(term.held), MOVING)
        name = f"#{len(self.fixed)}"
        self.fixed.append((name, term))
        return Term(_lookup(name), MOVING)


def _lookup(name: str) -> Callable[[Env], Any]:
    return lambda env: env[name]


def _total(signed: list[tuple[int, Term]]) -> Callable[[Env], Any]:
    def run(env: Env) -> Any:
        total: Any = None
        for sign, term in signed:
            value = term.run(env)
            if total is None:
                total = value if sign > 0 else -value
            else:
                total = total + value if sign > 0 else total - value
        return total

    return run


def _summands(node: ast.expr, sign: int) -> list[tuple[int, ast.expr]]:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _summands(inner, -sign)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            return _summands(left, sign) + _summands(right, sign if isinstance(op, ast.Add) else -sign)
    return [(sign, node)]


def read_lines(text: str) -> list[Line]:
    """Target and expression of each equation, as Python's syntax trees; a prime is written `NEXT`.

    Raises `ConfigError` naming the line that is no equation.
    """
    lines = [line.split("#")[0].strip() for line in re.split(r"[\n;]", text)]
    found: list[Line] = []
    for number, line in enumerate((line for line in lines if line), 1):
        if "__" in line:
            raise ConfigError(f"line {number}: names may not hold two underscores in a row: {line!r}")
        try:
            body = ast.parse(re.sub(r"\b([A-Za-z]\w*)'", rf"\1{NEXT}", line)).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"line {number} cannot be read: {line!r} ({type(error).__name__})") from None
        match body:
            case [ast.Assign(targets=[ast.Name(id=target)], value=value)] if target[0].islower() and target[0] != "b":
                found.append((target, value))
            case _:
                raise ConfigError(
                    f"line {number}: write an equation as name = expression, with a small first letter that is not b, "
                    f"not {line!r}"
                )
    if not found:
        raise ConfigError("a cell needs at least the equation of h'")
    return found


def write_lines(lines: list[Line]) -> str:
    """The text of equations that `read_lines` took apart."""
    return "\n".join(f"{_shown(target)} = {_shown(ast.unparse(node))}" for target, node in lines)


def _shown(name: str) -> str:
    return name.replace(NEXT, "'")
