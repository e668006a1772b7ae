"""Devices, precision and processes: a thin layer over Hugging Face Accelerate, which the plain CPU path never imports.

Launched by `torchrun` or `accelerate launch`, every process runs the same recipe on its share of each batch, and gradients are
averaged in one flat all-reduce inside `Recipe.apply_gradients`. Data order and resume stay the engine's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from cambrian.engine.recipe import SingleProcess
from cambrian.errors import ConfigError, MissingExtraError

PRECISIONS = ("fp32", "bf16")


class Processes(SingleProcess):
    """Several processes that train one recipe together."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank, self.size = int(accelerator.process_index), int(accelerator.num_processes)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Average all gradients with one all-reduce of a flat buffer."""
        import torch.distributed as dist

        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)  # type: ignore[reportUnknownMemberType]
        flat /= self.size
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()

    def share(self, size: int) -> slice:
        """The contiguous part of a batch that this rank computes. Raises `ConfigError` unless it divides evenly."""
        if size % self.size:
            raise ConfigError(
                f"batch {size} cannot be split evenly over {self.size} processes; choose a multiple of {self.size}"
            )
        each = size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()


def join(device: str = "auto") -> tuple[SingleProcess, torch.device]:
    """The processes this one belongs to, and its device (`auto` = CUDA when there is one)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        try:
            from accelerate import Accelerator  # type: ignore[reportMissingTypeStubs]
        except ImportError:
            raise MissingExtraError("accelerate", "dist") from None
        accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
        return Processes(accelerator), torch.device(accelerator.device)
    return SingleProcess(), pick(device)


def pick(device: str) -> torch.device:
    """A device by name. Raises `ConfigError` when this machine lacks it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no CUDA device; use --device cpu")
    return chosen


@contextlib.contextmanager
def precision(kind: str, device: torch.device) -> Generator[None]:
    """Autocast for `bf16`; nothing for `fp32`."""
    if kind not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, not {kind!r}")
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind == "bf16"):
        yield


def describe(device: torch.device) -> str:
    """The device in words, for reports and the ledger."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    return f"{os.cpu_count()} CPU cores" + (f" ({model})" if model else "")
