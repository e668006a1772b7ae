"""What a compressed network weighs: the columns that every compressor reports."""

from __future__ import annotations

import lzma
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.codec import container
from cambrian.errors import CheckpointError
from cambrian.inspect.layers import layer_table
from cambrian.inspect.results import Row
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target

XZ_LIMIT = 64 << 20


def weight_names(module: nn.Module) -> list[str]:
    """The parameters that compressors act on: weights of convolutions and linear layers, in order."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return [f"{name}.weight" if name else "weight" for name, part in module.named_modules() if isinstance(part, kinds)]


def store(path: Path, module: nn.Module, state: CompressionState, **meta: Any) -> int:
    """Write the module's `.cmb` file, read it back, and return its size in bytes.

    Raises `CheckpointError` unless what was read is bit-identical to the module's tensors.
    """
    size = container.encode(path, state.entries(module), meta)
    again = container.decode(path)
    for name, tensor in module.state_dict().items():
        if not torch.equal(again[name], tensor.cpu()):
            raise CheckpointError(f"{path}: tensor {name!r} does not decode to what was stored")
    return size


def compression_row(target: Target, module: nn.Module, path: Path, *, chain: str, **facts: Any) -> Row:
    """Sizes, work and time of a stored module; ratios are against the original's fp32 parameters and their `xz -9`.

    Everything counts with the file's size on disk: header, palettes, biases and batch-norm statistics included.
    `latency ms` is the median of 30 single-sample passes with torch's present number of threads.
    """
    raw = fp32_bytes(target.module)
    size = os.path.getsize(path)
    weights = [module.get_parameter(name) for name in weight_names(module)]
    entries = {entry["name"]: entry["bytes"] for entry in container.inspect(path)["tensors"]}
    payload = sum(entries[name] for name in weight_names(module))
    count = sum(w.numel() for w in weights)
    table = layer_table(module, target.example())
    return {
        "chain": chain,
        "params": sum(p.numel() for p in module.parameters()),
        "non-zero": sum(int(p.count_nonzero()) for p in module.parameters()),
        "bits/weight": 8 * payload / max(count, 1),
        "bytes": size,
        "ratio": len(raw) / size,
        "ratio to xz": len(lzma.compress(raw, preset=9)) / size if len(raw) <= XZ_LIMIT else None,
        "MACs": sum(layer.macs for layer in table),
        "latency ms": latency(module, target.example()),
        "threads": torch.get_num_threads(),
        **facts,
    }


@torch.no_grad()
def latency(module: nn.Module, x: Tensor, repeats: int = 30) -> float:
    """Median milliseconds of a forward pass in eval mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        module(x)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            module(x)
            times.append(time.perf_counter() - begin)
    finally:
        for part, mode in modes:
            part.training = mode
    return 1e3 * statistics.median(times)


def fp32_bytes(module: nn.Module) -> bytes:
    """All parameters in single precision, one after the other: what an uncompressed model weighs."""
    parts = (p.detach().to("cpu", torch.float32).contiguous().numpy().tobytes() for p in module.parameters())
    return b"".join(parts)
