"""Values that change over training, as pure functions of the step."""

from __future__ import annotations


def linear(start: float, end: float, duration: float, step: float) -> float:
    """From `start` at step 0 to `end` at `duration`, constant after it."""
    if duration <= 0:
        return end
    share = min(max(step / duration, 0.0), 1.0)
    return start + (end - start) * share
