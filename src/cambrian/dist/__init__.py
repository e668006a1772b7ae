"""Several processes on one machine: launch with clean kill, shared memory, injected stragglers, cost models, pools."""

from __future__ import annotations
