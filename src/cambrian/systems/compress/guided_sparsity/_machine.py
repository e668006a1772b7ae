"""A machine in four numbers, and what sparse convolution can gain on it (section 2.2)."""

from __future__ import annotations

import functools
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.codec import files
from cambrian.errors import CheckpointError, ConfigError
from cambrian.inspect.layers import Layer
from cambrian.inspect.sparse_conv import Csr, Geometry, resolve, sparse_conv2d

BETA = 2.0  # a 4-byte index for every 4-byte value
CONV3 = Geometry(256, 13, 13, (3, 3), padding=(1, 1))  # AlexNet's third convolution, 384 outputs
OUTPUTS = 384


@dataclass(frozen=True)
class Machine:
    """`flops` per second of a matrix product (F) and `conv_flops` of dense convolution, memory `bandwidth` in bytes per
    second (B), `alpha`: how much more time the sparse kernel takes for one operation than the matrix product, and `fixed`
    seconds that each of its outputs costs whatever the weights.
    """

    flops: float
    bandwidth: float
    alpha: float
    conv_flops: float
    fixed: float = 0.0
    threads: int = 1

    def __post_init__(self) -> None:
        numbers = (self.flops, self.bandwidth, self.alpha, self.conv_flops)
        if not all(math.isfinite(v) and v > 0 for v in numbers) or not 0 <= self.fixed < math.inf:
            raise ConfigError(f"the numbers of a machine must be positive, not {self}")


@dataclass(frozen=True)
class Prediction:
    """`speedup` at the asked share of non-zeros, and the useful range of that share: below `high` = 1/alpha the kernel
    gains (less what the fixed cost takes), below `low` the memory is the limit and more zeros gain nothing. `low >= high`: never useful.
    """

    speedup: float
    low: float
    high: float
    seconds_dense: float
    seconds_sparse: float

    @property
    def useful(self) -> bool:
        """Whether any sparsity gains."""
        return self.low < self.high


@dataclass(frozen=True)
class Work:
    """A layer's operations `flops`, bytes of `activations` in and out, bytes of dense `weights`, number of `outputs`."""

    flops: float
    activations: float
    weights: float
    outputs: float = 0.0

    @classmethod
    def of(cls, layer: Layer, batch: int = 1) -> Work:
        """From a row of the layer table, whose shapes are of one sample."""
        moved = math.prod(layer.shape_in) + math.prod(layer.shape_out)
        return cls(
            2.0 * layer.macs * batch,
            4.0 * moved * batch,
            4.0 * math.prod(layer.weight or ()),
            float(batch * math.prod(layer.shape_out)),
        )

    @classmethod
    def of_conv(cls, geometry: Geometry, outputs: int, batch: int) -> Work:
        g, (tall, wide) = geometry, geometry.out
        depth = g.channels // g.groups * math.prod(g.kernel)
        moved = g.channels * g.height * g.width + outputs * tall * wide
        return cls(
            2.0 * batch * outputs * depth * tall * wide,
            4.0 * batch * moved,
            4.0 * outputs * depth,
            float(batch * outputs * tall * wide),
        )


def predict(work: Work, x: float, machine: Machine, *, over: str = "sgemm") -> Prediction:
    """Speed-up of the sparse kernel at share `x` of non-zeros over a matrix product ("sgemm") or dense "conv2d"."""
    if not 0.0 <= x <= 1.0 or over not in ("sgemm", "conv2d"):
        raise ConfigError(f"x is a share in [0, 1] and over sgemm or conv2d, not {x}, {over!r}")
    rate = machine.flops if over == "sgemm" else machine.conv_flops
    dense = work.flops / rate
    compute = machine.alpha * work.flops / machine.flops  # seconds at x = 1
    fixed = machine.fixed * work.outputs
    memory, slope = work.activations / machine.bandwidth, BETA * work.weights / machine.bandwidth
    sparse = max(fixed + x * compute, memory + x * slope)
    high = min(1.0, (dense - fixed) / compute)
    low = max(0.0, (memory - fixed) / (compute - slope)) if compute > slope else math.inf
    return Prediction(dense / sparse if sparse > 0 else math.inf, low, high, dense, sparse)


@functools.cache
def _measured(threads: int, backend: str, repeats: int) -> Machine:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1024, 1024, generator=generator)
    big = torch.randn(3, 1 << 23, generator=generator)
    x, weight, half = layer_case(0.5, 4, generator)
    few = layer_case(0.05, 4, generator)[2]
    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: F.conv2d(x, weight, padding=1),
        "product": lambda: torch.mm(a, a),
        "triad": lambda: torch.add(big[0], big[1], alpha=0.5, out=big[2]),
        "half": lambda: sparse_conv2d(x, half, backend=backend),
        "few": lambda: sparse_conv2d(x, few, backend=backend),
    }
    times = interleaved(runs, repeats)
    work = Work.of_conv(CONV3, OUTPUTS, len(x))
    flops = 2.0 * 1024**3 / times["product"]
    slope = max(times["half"] - times["few"], 0.1 * times["half"]) / (half.density - few.density)  # seconds for x = 1
    fixed = max(times["few"] - slope * few.density, 0.0) / work.outputs
    bandwidth = 3 * 4.0 * (1 << 23) / times["triad"]
    return Machine(flops, bandwidth, slope * flops / work.flops, work.flops / times["dense"], fixed, threads)


def calibrate(cache: Path | None = None, *, backend: str = "auto", repeats: int = 15) -> Machine:
    """Measure this machine with torch's present number of threads (3 s): matrix product, memory triad, dense convolution
    of AlexNet's third layer, and sparse at x = 0.5 and 0.05, whose line is alpha and the fixed cost. `cache` is a file that remembers it for this processor.

    Raises `CapabilityError` where numba is asked for and missing.
    """
    chosen, threads = resolve(backend), torch.get_num_threads()
    who = [platform.machine(), platform.processor(), platform.node(), threads, chosen, str(torch.__version__)]
    if cache is not None and cache.is_file():
        known = files.load_json(cache)
        try:
            if known["who"] == who:
                return Machine(**known["machine"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{cache} is not a calibration; delete it: {error}") from None
    made = _measured(threads, chosen, repeats)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        files.replace_json(cache, {"who": who, "machine": asdict(made)})
    return made


def layer_case(density: float, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Csr]:
    """Inputs `[batch, 256, 13, 13]`, a weight `[384, 256, 3, 3]` with a random mask, and its CSR."""
    x = torch.randn(batch, CONV3.channels, CONV3.height, CONV3.width, generator=generator)
    weight = torch.randn(OUTPUTS, CONV3.channels, *CONV3.kernel, generator=generator) * 0.02
    weight *= torch.rand(weight.shape, generator=generator) < density
    return x, weight, Csr.of(weight, CONV3)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, window: float = 0.02) -> dict[str, float]:
    """Seconds per call of each. In every round each is called once untimed, so that its own data is in the caches, then
    so often that all are timed for about `window` seconds: what else runs on the machine hits all alike.

    The first one's least time is the unit; the others are the median, over rounds, of their ratio to it. On one thread
    the clock is that of the thread, which stands still while others have the processor.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    counts: dict[str, int] = {}
    for name, run in runs.items():
        run()
        begin = time.perf_counter()
        run()
        counts[name] = max(1, round(window / max(time.perf_counter() - begin, 1e-6)))
    rounds: list[dict[str, float]] = []
    for _ in range(repeats):
        rounds.append({})
        for name, run in runs.items():
            run()
            begin = clock()
            for _ in range(counts[name]):
                run()
            rounds[-1][name] = (clock() - begin) / counts[name]
    first = next(iter(runs))
    unit = min(found[first] for found in rounds)
    return {name: unit * statistics.median(found[name] / found[first] for found in rounds) for name in runs}
