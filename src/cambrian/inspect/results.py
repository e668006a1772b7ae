"""What the three verbs on a trained model return: rows for the common table, pictures and files.

`rows` are plain dicts (column name -> str, int, float, bool or None) so that they go into JSON and into any table
unchanged; pictures are matplotlib figures by name. Nothing here knows of runs or of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cambrian.inspect.state import CompressionState

Row = dict[str, Any]


@dataclass
class Compression:
    """A smaller model: the module (dense tensors, ready to use), its encoded file, and one row per stage or method."""

    module: nn.Module
    rows: list[Row]
    file: Path
    state: CompressionState | None = None
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass
class Explanation:
    """Why a model answers as it does: one row per layer, unit or image, and pictures.

    `relevance` maps names of layers to the relevance `[C]` of each of their channels, for methods that find it: a
    compressor can remove the least relevant ones.
    """

    rows: list[Row]
    figures: dict[str, Figure] = field(default_factory=dict)
    relevance: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class AttackResult:
    """Adversarial inputs with what they cost.

    `x_adv [B,...]` in the target's space; `success [B]` bool, True only where the clean input was classified
    correctly and the goal was reached; `norms` maps "l2" and "linf" to `[B]` sizes of the perturbation in the
    space's own units; `queries` counts samples sent through the network ("forward", "backward"); `trace` holds one
    `[B]` loss tensor per step.
    """

    x_adv: Tensor
    success: Tensor
    norms: dict[str, Tensor]
    queries: dict[str, int]
    trace: list[Tensor]
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batch = len(self.x_adv)
        if self.success.shape != (batch,) or self.success.dtype != torch.bool:
            raise ShapeError(f"success must be bool [{batch}], got {self.success.dtype} {list(self.success.shape)}")
