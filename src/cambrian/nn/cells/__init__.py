"""Recurrent cells for `cambrian.nn.scan`.

    build("gru", inputs=64, hidden=128)                                      by name
    make_cell("h' = tanh(W @ x + U @ h + b)", inputs=64, hidden=128)         from equations
    RNN(cell="lstm", inputs=64, hidden=128, layers=2, bidirectional=True)    layers of them
    compiled(cell, chunk=16), Zoneout(cell), VariationalDropout(cell)        around any of them

Names: `tanh`, `lstm` with its options (`lstm-peephole`, `lstm-coupled`) and ablations (`lstm-i`, `lstm-f`, `lstm-o`),
`gru` (reset before the product, as published), `gru-after` (as in torch), `mut1`, `mut2`, `mut3`.
"""

from __future__ import annotations

from cambrian.nn.cells.compiled import CompiledCell, compiled
from cambrian.nn.cells.expression import ExpressionCell, make_cell
from cambrian.nn.cells.gru import GRUCell
from cambrian.nn.cells.hooks import VariationalDropout, Zoneout
from cambrian.nn.cells.lstm import LSTMCell
from cambrian.nn.cells.registry import CELLS, build
from cambrian.nn.cells.simple import TanhCell
from cambrian.nn.cells.stack import RNN, detached
from cambrian.nn.cells.variants import lstm_equations, lstm_variant, mut

__all__ = [
    "CELLS",
    "RNN",
    "CompiledCell",
    "ExpressionCell",
    "GRUCell",
    "LSTMCell",
    "TanhCell",
    "VariationalDropout",
    "Zoneout",
    "build",
    "compiled",
    "detached",
    "lstm_equations",
    "lstm_variant",
    "make_cell",
    "mut",
]
