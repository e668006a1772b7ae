"""Cambrian: the deep-learning systems of 2014-2017, running again.

>>> import cambrian
>>> "unrolled-gan" in cambrian.list_systems()
True

`train`, `load`, `verify` and the rest are loaded on first use, so that importing the package stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cambrian.engine.api import (
        attack,
        compress,
        evaluate,
        explain,
        list_systems,
        load,
        matrix,
        own_network,
        resume,
        runs,
        train,
        verify,
    )
    from cambrian.engine.run import Run

__all__ = [
    "Run",
    "attack",
    "compress",
    "evaluate",
    "explain",
    "list_systems",
    "load",
    "matrix",
    "own_network",
    "resume",
    "runs",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "Run":
        from cambrian.engine.run import Run

        return Run
    if name in __all__:
        from cambrian.engine import api

        return getattr(api, name)
    raise AttributeError(f"module 'cambrian' has no attribute {name!r}")
