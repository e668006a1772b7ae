"""Metrics to other trackers; the run's own `metrics.jsonl` stays the truth."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from cambrian.engine.run import Run
from cambrian.errors import MissingExtraError


def require_tensorboard() -> None:
    """Raise `MissingExtraError` before a training starts that could not be exported."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "report")


def to_tensorboard(run: Run) -> None:
    """Write a run's records as TensorBoard event files under `RUN/tensorboard`."""
    require_tensorboard()
    from torch.utils import tensorboard

    writer: Any = tensorboard.SummaryWriter(str(run.path / "tensorboard"))  # type: ignore[reportPrivateImportUsage]
    for record in run.metrics():
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                writer.add_scalar(name, value, record["step"])
    writer.close()
