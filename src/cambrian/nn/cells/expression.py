"""Cells from equations: text to a module whose loop runs only what depends on the state.

    make_cell('''
        z  = sigmoid(Wz @ x + Uz @ h + bz)
        r  = sigmoid(Wr @ x + Ur @ h + br)
        n  = tanh(W @ x + U @ (r * h) + b)
        h' = (1 - z) * h + z * n
    ''', inputs=88, hidden=64)

One equation a line (or after a semicolon). `x` is the input; what is written with a prime is the next value of a
state, which starts at zero; the output is h'. Names with a capital first letter are matrices, used on the left of `@`,
names with a b are biases, others are values of equations above. Operators + - * / and unary minus act by elements, and
so do the functions in `equations.FUNCTIONS`. A bare `x`, outside a product, must have the state's size: where it has
not, a trained matrix without bias (`lift`) brings it there. The text is parsed, never run as code.

Whatever depends on the input alone is formed for all steps before the loop, all products with x as one; in the loop,
all products with the same state are one.

Shapes: T time, B batch, I input, C context, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError
from cambrian.nn.cells.equations import Env, Program
from cambrian.nn.scan import Projected, State


class ExpressionCell(nn.Module):
    """A cell whose step is a list of equations; see the module's docstring for the grammar.

    `biases` gives starting values of biases by name (default 0). Matrices of states start orthogonal, those of the
    input as `nn.Linear` makes them; with `init="uniform"` all are in +-1/sqrt(H). `context` features are inputs that
    stay the same. Raises `ConfigError` naming the line that cannot be read.
    """

    def __init__(
        self,
        *,
        equations: str,
        inputs: int,
        hidden: int,
        context: int = 0,
        biases: Mapping[str, float] | None = None,
        init: str = "orthogonal",
    ) -> None:
        super().__init__()
        self.equations, self.hidden = equations, hidden
        self.program = program = Program(equations)
        start = dict(biases or {})
        if set(start) - program.biases:
            raise ConfigError(f"biases {sorted(set(start) - program.biases)} stand in no equation")
        wide = inputs + context
        self.lift = nn.Linear(wide, hidden, bias=False) if program.bare and wide != hidden else None
        if program.input_matrices:
            self.input = nn.Parameter(torch.empty(len(program.input_matrices) * hidden, wide))
        self.recurrent = nn.ParameterDict(
            {s: nn.Parameter(torch.empty(len(names) * hidden, hidden)) for s, names in program.state_matrices.items()}
        )
        self.inner = nn.ParameterDict({m: nn.Parameter(torch.empty(hidden, hidden)) for m in program.inner_matrices})
        self.biases = nn.ParameterDict(
            {b: nn.Parameter(torch.full((hidden,), float(start.get(b, 0.0)))) for b in sorted(program.biases)}
        )
        self._fill(init, wide)

    @torch.no_grad()
    def _fill(self, init: str, wide: int) -> None:
        if self.program.input_matrices:
            bound = (wide if init == "orthogonal" else self.hidden) ** -0.5
            nn.init.uniform_(self.input, -bound, bound)
        for stack in (*self.recurrent.values(), *self.inner.values()):
            for weight in stack.split(self.hidden):
                if init == "orthogonal":
                    nn.init.orthogonal_(weight)
                else:
                    nn.init.uniform_(weight, -(self.hidden**-0.5), self.hidden**-0.5)

    def matrix(self, name: str) -> Tensor:
        """The matrix [H, I or H] called `name` in the equations: a view, which may be written in place."""
        found = {name: self.inner[name] for name in self.inner}
        stacks = [*((names, self.recurrent[s]) for s, names in self.program.state_matrices.items())]
        if self.program.input_matrices:
            stacks.append((self.program.input_matrices, self.input))
        for names, stack in stacks:
            found |= dict(zip(names, stack.split(self.hidden), strict=True))
        if name not in found:
            raise ConfigError(f"no matrix {name!r} in these equations; matrices: {', '.join(sorted(found))}")
        return found[name]

    def initial(self, batch: int, like: Tensor) -> State:
        """Zero states [B, H]: h first, the others in order of appearance."""
        return tuple(like.new_zeros(batch, self.hidden) for _ in self.program.states)

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """All that depends on x [T, B, I] alone, [T, B, H] each."""
        if context is not None:
            x = torch.cat((x, context.expand(*x.shape[:-1], -1)), -1)
        env = self._constants()
        if self.program.input_matrices:
            products = F.linear(x, self.input).split(self.hidden, -1)
            env |= {f"{name} @ x": part for name, part in zip(self.program.input_matrices, products, strict=True)}
        if self.program.bare:
            env["x"] = x if self.lift is None else self.lift(x)
        for name, term in self.program.fixed:
            env[name] = term.run(env)
        return tuple(env[name] for name, _ in self.program.fixed) or (x[..., :0],)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        """One step from the states [B, H]."""
        env = self.values(projected, state)
        new = tuple(env[name + "__next"] for name in self.program.states)
        return new[0], new

    def values(self, projected: Projected, state: State) -> Env:
        """Every named value of one step, such as gates [B, H]: to look into a cell."""
        env = self._constants()
        env |= {name: value for (name, _), value in zip(self.program.fixed, projected)}
        env |= dict(zip(self.program.states, state, strict=True))
        for name, matrices in self.program.state_matrices.items():
            products = F.linear(env[name], self.recurrent[name]).split(self.hidden, -1)
            env |= {f"{matrix} @ {name}": part for matrix, part in zip(matrices, products, strict=True)}
        for name, term in self.program.moving:
            env[name] = term.run(env)
        return env

    def _constants(self) -> Env:
        return {**self.inner, **self.biases}


def make_cell(equations: str, *, inputs: int, hidden: int, **options: Any) -> ExpressionCell:
    """The cell of these equations; `options` are those of `ExpressionCell`."""
    return ExpressionCell(equations=equations, inputs=inputs, hidden=hidden, **options)
