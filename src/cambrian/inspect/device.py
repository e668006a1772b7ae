"""A machine in a few numbers, and the time that a counted graph takes on it (the cost model of Paleo, section 3).

An operation fetches its inputs, computes and writes its outputs; operations run one after the other:

    T(op) = overhead + read / B' + flops / P' + written / B'      P' = peak_flops * ppp,  B' = mem_bw * ppp

`ppp` is the platform percent of peak. With `classes` it is that of the nearest calibrated operation of the same kind
and direction, in log2 of the problem's shape; an operation of a kind that was not calibrated falls back to the two
scalars `ppp_comp` and `ppp_comm`, as does everything on a device without classes.

Units: FLOP/s, bytes/s (not bits), seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.dist.launch import run_group
from cambrian.errors import ConfigError
from cambrian.inspect.counters import PRODUCTS, Graph, Operation, Recorder

aten = torch.ops.aten
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rate:
    """One calibrated operation: `ppp` of peak compute (products) or of memory bandwidth (the rest) at this shape."""

    kind: str
    direction: str
    shape: tuple[float, ...]
    ppp: float


@dataclass(frozen=True)
class Device:
    """What the cost model knows of a machine. `latency` is seconds per message, `overhead` seconds per operation."""

    peak_flops: float
    mem_bw: float
    link_bw: float = 1e9
    latency: float = 5e-5
    ppp_comp: float = 1.0
    ppp_comm: float = 1.0
    overhead: float = 0.0
    classes: tuple[Rate, ...] = ()
    name: str = "device"

    def __post_init__(self) -> None:
        for field in ("peak_flops", "mem_bw", "link_bw", "ppp_comp", "ppp_comm"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"{field} of a device must be positive, not {getattr(self, field)}")

    def products_only(self) -> Device:
        """Without what was calibrated on pooling, normalisation and elementwise work: those move at copying speed."""
        return replace(self, ppp_comm=1.0, classes=tuple(r for r in self.classes if r.kind in PRODUCTS))

    def seconds(self, graph: Graph, batches: Sequence[int] | None = None) -> np.ndarray:
        """Predicted seconds of every operation: [operations], or [operations, batches] for several batch sizes at once.

        Units: seconds. Raises `CapabilityError` where batch sizes are asked of a graph that cannot be rescaled.
        """
        sizes = _sizes(graph, batches)
        out = np.empty(sizes.shape[1:])
        groups: dict[tuple[str, str], list[int]] = {}
        for i, op in enumerate(graph.operations):
            groups.setdefault((op.kind, op.direction), []).append(i)
        for (kind, direction), members in groups.items():
            out[members] = self._seconds(kind, direction, sizes[:, members])
        return out[:, 0] if batches is None else out

    def _seconds(self, kind: str, direction: str, sizes: np.ndarray) -> np.ndarray:
        flops, moved = sizes[0], sizes[1] + sizes[2]
        product = kind in PRODUCTS
        ppp = self._ppp(kind, direction, sizes[3:] if product else moved[None])
        if product:
            return self.overhead + moved / (self.mem_bw * self.ppp_comm) + flops / (self.peak_flops * ppp)
        return self.overhead + moved / (self.mem_bw * ppp)

    def _ppp(self, kind: str, direction: str, shape: np.ndarray) -> np.ndarray:
        """`shape`: [features, operations, batches] -> percent of peak [operations, batches]."""
        known = [r for r in self.classes if r.kind == kind]
        known = [r for r in known if r.direction == direction] or known
        if not known:
            return np.full(shape.shape[1:], self.ppp_comp if kind in PRODUCTS else self.ppp_comm)
        points = np.array([r.shape for r in known])
        here = np.log2(np.maximum(shape[: points.shape[1]], 1.0))
        distance = ((here[None] - points[:, :, None, None]) ** 2).sum(1)
        return np.array([r.ppp for r in known])[distance.argmin(0)]


def _sizes(graph: Graph, batches: Sequence[int] | None) -> np.ndarray:
    """[7, operations, batches]: flops, read, written and the four dimensions (0 where there are none)."""
    pad = [(*op.sizes, 0, 0, 0, 0)[:7] for op in graph.operations]
    base = np.array(pad, dtype=np.float64).reshape(-1, 7).T[:, :, None]
    if batches is None:
        return base
    graph.at(graph.batch)  # raises where the graph has no batch size
    slopes = np.array([(*op.slopes, 0, 0, 0, 0)[:7] for op in graph.operations], dtype=np.float64).reshape(-1, 7)
    return base + slopes.T[:, :, None] * (np.asarray(batches, dtype=np.float64) - graph.batch)


def clock_for(device: str | torch.device) -> Clock:
    """Wall clock; on an accelerator it waits for the queued work first."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


@dataclass(frozen=True)
class Probe:
    """A micro-benchmark: what to run `calls` times, and the operation it measures (none: the copy, the launch cost)."""

    run: Callable[[], object]
    calls: int = 1
    operation: Operation | None = None


class Calibration:
    """Micro-benchmarks that are run in rounds, so that they can be interleaved with the measurement that needs them.

    GEMMs, convolutions by class (first layer, 1x1, 3x3, larger, depthwise) and direction, pooling, normalisation and
    elementwise work by size, a copy, and a chain of one-element layers for the cost of launching an operation. The
    shapes are a grid; none is taken from a particular network. `quick` keeps a few of each.
    """

    def __init__(self, device: str = "cpu", *, clock: Clock | None = None, seed: int = 0, quick: bool = False) -> None:
        self.device = torch.device(device)
        self.clock = clock or clock_for(device)
        self._generator = torch.Generator().manual_seed(seed)
        source, target = self._tensor(2**20), self._tensor(2**20)
        self._copied = 8 * 2**20
        self._launches, launch = self._chain()
        one = self._tensor(1)
        self._probes = [Probe(lambda: target.copy_(source), 2), Probe(launch), Probe(lambda: torch.relu(one), 20)]
        for m, n, k in _GEMMS[: 2 if quick else None]:
            self._probes += self._gemm(m, n, k)
        for shape in _CONVOLUTIONS[:: 4 if quick else 1]:
            self._probes += self._convolution(*shape)
        for shape in _PICTURES[: 1 if quick else None]:
            self._probes += self._memory(self._tensor(*shape))
        self._times: list[list[float]] = [[] for _ in self._probes]

    def round(self) -> None:
        """Time every probe once, after one untimed call."""
        for probe, times in zip(self._probes, self._times):
            probe.run()
            start = self.clock()
            for _ in range(probe.calls):
                probe.run()
            times.append((self.clock() - start) / probe.calls)

    def medians(self) -> list[float]:
        """Median seconds of every probe. Raises `ConfigError` before the first round."""
        if not self._times[0]:
            raise ConfigError("calibrate at least one round before asking for the device")
        return [statistics.median(times) for times in self._times]

    def result(self) -> Device:
        """The device that the rounds so far describe; its scalars are medians over the classes."""
        copy, launch, call, *_ = seconds = self.medians()
        overhead, mem_bw = launch / self._launches, self._copied / copy
        timed = [(p.operation, t) for p, t in zip(self._probes, seconds) if p.operation is not None]
        peak = max(op.flops / t for op, t in timed)
        rates = [_rate(op, t, call, peak, mem_bw) for op, t in timed]
        comp = statistics.median(r.ppp for r in rates if r.kind in PRODUCTS)
        comm = statistics.median(r.ppp for r in rates if r.kind not in PRODUCTS)
        return Device(peak, mem_bw, 1e9, 5e-5, comp, comm, overhead, tuple(rates), str(self.device))

    def flops_only(self) -> Device:
        """The rival model: nothing but FLOPs and one percent of peak, the median over the same micro-benchmarks."""
        pairs = [(p.operation.flops, t) for p, t in zip(self._probes, self.medians()) if p.operation is not None]
        rates = [flops / t for flops, t in pairs if flops]
        peak = max(rates)
        return Device(peak, float("inf"), ppp_comp=statistics.median(rates) / peak, name=f"{self.device}, FLOPs only")

    def _tensor(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.device)

    def _probe(self, run: Callable[[], object], direction: str = "forward") -> Probe:
        with Recorder() as recorder:
            run()
        (op,) = recorder.operations
        work = max(op.flops / 1e11, (op.read + op.written) / 1e10)
        return Probe(run, max(1, int(2e-4 / work)), replace(op, direction=direction))

    def _chain(self) -> tuple[int, Callable[[], object]]:
        chain = nn.Sequential(*(nn.Linear(1, 1) for _ in range(8))).to(self.device)
        x = torch.ones(1, 1, device=self.device)

        def run() -> None:
            torch.autograd.grad(chain(x).sum(), list(chain.parameters()))

        with Recorder() as recorder:
            run()
        return len(recorder.operations), run

    def _gemm(self, m: int, n: int, k: int) -> list[Probe]:
        a, b, out = self._tensor(m, k), self._tensor(n, k), self._tensor(m, n)
        return [
            self._probe(lambda: torch.mm(a, b.t())),
            self._probe(lambda: torch.mm(out, b), "backward"),
            self._probe(lambda: torch.mm(out.t(), a), "backward"),
        ]

    def _convolution(self, n: int, c: int, o: int, taps: int, side: int, groups: int) -> list[Probe]:
        x, weight = self._tensor(n, c, side, side), self._tensor(o, c // groups, taps, taps)
        pad = taps // 2
        out = F.conv2d(x, weight, padding=pad, groups=groups)
        rest = ([0], [1, 1], [pad, pad], [1, 1], False, [0, 0], groups)

        def backward(*mask: bool) -> Callable[[], object]:
            return lambda: aten.convolution_backward(out, x, weight, *rest, [*mask, False])

        probes = [self._probe(lambda: F.conv2d(x, weight, padding=pad, groups=groups))]
        if c > 4:
            probes.append(self._probe(backward(True, False), "data"))
        return [*probes, self._probe(backward(False, True), "filter")]

    def _memory(self, x: Tensor) -> list[Probe]:
        channels = x.shape[1]
        scale, shift = self._tensor(channels), self._tensor(channels)
        small, places = aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
        _, mean, spread = aten.native_batch_norm(x, scale, shift, None, None, True, 0.1, 1e-5)
        norm = (x, x, scale, None, None, mean, spread, True, 1e-5, [True, True, True])
        pool = (small, x, [2, 2], [2, 2], [0, 0], [1, 1], False, places)
        return [
            self._probe(lambda: aten.relu(x)),
            self._probe(lambda: aten.threshold_backward(x, x, 0.0), "backward"),
            self._probe(lambda: aten.max_pool2d_with_indices(x, [2, 2], [2, 2])),
            self._probe(lambda: aten.max_pool2d_with_indices_backward(*pool), "backward"),
            self._probe(lambda: aten.native_batch_norm(x, scale, shift, None, None, True, 0.1, 1e-5)),
            self._probe(lambda: aten.native_batch_norm_backward(*norm), "backward"),
        ]


def _rate(op: Operation, seconds: float, call: float, peak: float, mem_bw: float) -> Rate:
    moved = op.read + op.written
    # calling and memory terms of a small problem may exceed its noisy time: keep a tenth of it for the work itself
    fixed = call + (moved / mem_bw if op.flops else 0.0)
    rate = (op.flops or moved) / max(seconds - fixed, 0.1 * seconds)
    return Rate(op.kind, op.direction, _log2(op.dims or (moved,)), rate / (peak if op.flops else mem_bw))


_GEMMS = ((32, 128, 128), (512, 512, 512), (4, 256, 1024), (64, 1024, 256), (8, 1024, 2048))
# batch, channels in, channels out, kernel side, picture side, groups
_CONVOLUTIONS = (
    (8, 64, 64, 3, 16, 1), (8, 16, 16, 3, 32, 1), (8, 128, 128, 3, 8, 1), (8, 256, 256, 3, 4, 1),
    (4, 256, 256, 3, 2, 1), (8, 3, 32, 3, 32, 1), (8, 3, 64, 7, 32, 1), (8, 1, 8, 5, 28, 1), (8, 64, 64, 1, 16, 1), (8, 256, 128, 1, 8, 1),
    (8, 16, 32, 5, 14, 1), (8, 64, 128, 5, 8, 1), (8, 64, 64, 3, 16, 64),
)  # fmt: skip
_PICTURES = ((8, 32, 16, 16), (8, 64, 8, 8), (8, 64, 32, 32))


def _log2(shape: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(np.log2(max(size, 1.0))) for size in shape)


def calibrate(device: str = "cpu", *, rounds: int = 7, clock: Clock | None = None, quick: bool = False) -> Device:
    """Measure this machine: a few seconds on one thread. See `Calibration` for what is run."""
    measured = Calibration(device, clock=clock, quick=quick)
    for _ in range(rounds):
        measured.round()
    return measured.result()


def calibrate_link(device: Device, *, size: int = 2**22, rounds: int = 12, timeout: float = 120.0) -> Device:
    """`device` with the latency and bandwidth between two local processes (gloo ping-pong of 4 and `size` bytes)."""
    small, large = run_group(_ping_pong, 2, size // 4, rounds, timeout=timeout)[0]
    # on a busy machine the difference of two noisy times may vanish: half of the large one is the least it can be
    return replace(device, latency=small / 2, link_bw=size / max((large - small) / 2, large / 4))


def _ping_pong(rank: int, world: int, elements: int, rounds: int) -> list[float]:
    """Seconds of the quickest round trip of one element and of `elements`: whatever is slower was waiting for a core."""
    import torch.distributed as group

    best: list[float] = []
    for count in (1, elements):
        message, times = torch.zeros(count), []
        for _ in range(rounds):
            start = time.perf_counter()
            for sender in (0, 1):
                if rank == sender:
                    group.send(message, 1 - sender)
                else:
                    group.recv(message, sender)
            times.append(time.perf_counter() - start)
        best.append(min(times))
    return best
