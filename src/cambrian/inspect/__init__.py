"""What compress, explain, attack and profile stand on: targets, hooks, counters, constraints, the attack loop,
timing.
"""

from __future__ import annotations

from cambrian.inspect.generative import GenTarget, wrap_generative
from cambrian.inspect.target import Space, Target, wrap

__all__ = ["GenTarget", "Space", "Target", "wrap", "wrap_generative"]
