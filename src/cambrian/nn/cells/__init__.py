"""Recurrent cells for `cambrian.nn.scan`.

    CELLS["gru"](inputs=64, hidden=128)        by name
    make_cell("h' = tanh(W @ x + U @ h + b)")  from equations

Names: `tanh`, `lstm`, `gru` (reset before the product, as published), `gru-after` (as in torch), and others below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cambrian.errors import ConfigError
from cambrian.nn.cells.gru import GRUCell
from cambrian.nn.cells.lstm import LSTMCell
from cambrian.nn.cells.simple import TanhCell

__all__ = ["CELLS", "GRUCell", "LSTMCell", "TanhCell", "build"]

CELLS: dict[str, Callable[..., Any]] = {
    "tanh": TanhCell,
    "lstm": LSTMCell,
    "gru": GRUCell,
    "gru-after": partial(GRUCell, reset="after"),
}


def build(name: str, *, inputs: int, hidden: int, **options: Any) -> Any:
    """The cell called `name`. Raises `ConfigError` for a name or an option that is not known."""
    if name not in CELLS:
        raise ConfigError(f"no cell {name!r}; cells: {', '.join(CELLS)}")
    try:
        return CELLS[name](inputs=inputs, hidden=hidden, **options)
    except TypeError as error:
        raise ConfigError(f"cell {name!r} does not take {', '.join(options)} ({error})") from None
