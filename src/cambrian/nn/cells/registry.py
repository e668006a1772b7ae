"""Recurrent cells by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cambrian.errors import ConfigError
from cambrian.nn.cells.expression import make_cell
from cambrian.nn.cells.gru import GRUCell
from cambrian.nn.cells.lstm import LSTMCell
from cambrian.nn.cells.simple import TanhCell
from cambrian.nn.cells.variants import lstm_variant, mut

CELLS: dict[str, Callable[..., Any]] = {
    "tanh": TanhCell,
    "lstm": LSTMCell,
    "lstm-peephole": partial(lstm_variant, peephole=True),
    "lstm-coupled": partial(lstm_variant, coupled=True),
    "lstm-i": partial(lstm_variant, without=("i",)),
    "lstm-f": partial(lstm_variant, without=("f",)),
    "lstm-o": partial(lstm_variant, without=("o",)),
    "gru": GRUCell,
    "gru-after": partial(GRUCell, reset="after"),
    "mut1": partial(mut, 1),
    "mut2": partial(mut, 2),
    "mut3": partial(mut, 3),
}


def build(name: str, *, inputs: int, hidden: int, **options: Any) -> Any:
    """The cell called `name`, or that of equations (a text with an =).

    Raises `ConfigError` for a name, an equation or an option that cannot be used.
    """
    if "=" in name:
        return make_cell(name, inputs=inputs, hidden=hidden, **options)
    if name not in CELLS:
        raise ConfigError(f"no cell {name!r}; cells: {', '.join(CELLS)}, or equations such as h' = tanh(W @ x + U @ h)")
    try:
        return CELLS[name](inputs=inputs, hidden=hidden, **options)
    except TypeError as error:
        raise ConfigError(f"cell {name!r} does not take all of {', '.join(options)} ({error})") from None
