"""Classic cells that are given by their equations: LSTM's options and ablations, and MUT1-3 of Jozefowicz et al. (2015).

    z = sigmoid(.) lets the new in, r = sigmoid(.) resets;  h' = candidate z + h (1 - z)
    MUT1   z reads x only; candidate tanh(W (r h) + tanh(x) + b)
    MUT2   r reads x without a matrix
    MUT3   z reads tanh(h)

LSTM's parts that can be left out (Jozefowicz et al., section 3.2; Greff et al. 2017): a gate left out is 1; a coupled
forget gate is 1 - i; peepholes let gates see the memory through a vector each.
"""

from __future__ import annotations

from typing import Any

from cambrian.errors import ConfigError
from cambrian.nn.cells.expression import ExpressionCell

MUT = {
    1: """
        z = sigmoid(Wxz @ x + bz)
        r = sigmoid(Wxr @ x + Whr @ h + br)
        h' = tanh(Whh @ (r * h) + tanh(x) + bh) * z + h * (1 - z)
    """,
    2: """
        z = sigmoid(Wxz @ x + Whz @ h + bz)
        r = sigmoid(x + Whr @ h + br)
        h' = tanh(Whh @ (r * h) + Wxh @ x + bh) * z + h * (1 - z)
    """,
    3: """
        z = sigmoid(Wxz @ x + Whz @ tanh(h) + bz)
        r = sigmoid(Wxr @ x + Whr @ h + br)
        h' = tanh(Whh @ (r * h) + Wxh @ x + bh) * z + h * (1 - z)
    """,
}
GATES = ("i", "f", "o")


def mut(number: int, *, inputs: int, hidden: int, **options: Any) -> ExpressionCell:
    """MUT1, MUT2 or MUT3; `options` are those of `ExpressionCell`."""
    if number not in MUT:
        raise ConfigError(f"there are MUT1, MUT2 and MUT3, no MUT{number}")
    return ExpressionCell(equations=MUT[number], inputs=inputs, hidden=hidden, **options)


def lstm_equations(*, without: tuple[str, ...] = (), coupled: bool = False, peephole: bool = False) -> str:
    """The equations of an LSTM without some of its gates `i`, `f`, `o`, with f = 1 - i, or with peepholes."""
    if set(without) - set(GATES) or (coupled and {"i", "f"} & set(without)):
        raise ConfigError(f"without takes gates of i, f, o, and i and f stay where they are coupled, not {without!r}")
    lines = []
    for gate in GATES:
        if gate in without:
            lines.append(f"{gate} = 1")
        elif coupled and gate == "f":
            lines.append("f = 1 - i")
        else:
            memory = f" + bp{gate} * {{}}" if peephole else ""
            lines.append(f"{gate} = sigmoid(W{gate} @ x + U{gate} @ h + b{gate}{memory})")
    i, f, o = lines
    memory = ["g = tanh(Wg @ x + Ug @ h + bg)", "c' = f * c + i * g"]
    return "\n".join([i.format("c"), f.format("c"), *memory, o.format("c'"), "h' = o * tanh(c')"])


def lstm_variant(
    *,
    inputs: int,
    hidden: int,
    without: tuple[str, ...] = (),
    coupled: bool = False,
    peephole: bool = False,
    forget_bias: float = 1.0,
    **options: Any,
) -> ExpressionCell:
    """An LSTM with the options of `lstm_equations`; the bias of its forget gate, where it has one, starts at
    `forget_bias`.
    """
    text = lstm_equations(without=without, coupled=coupled, peephole=peephole)
    biases = {} if coupled or "f" in without else {"bf": forget_bias}
    return ExpressionCell(equations=text, inputs=inputs, hidden=hidden, biases=biases, **options)
