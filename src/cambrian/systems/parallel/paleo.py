"""Paleo: A Performance Model for Deep Neural Networks.

Hang Qi, Evan R. Sparks, Ameet Talwalkar. ICLR 2017. OpenReview SyVVJ85lg.

Predicts the time of a training step, and how it scales over workers, from the architecture and a few figures of the
hardware: the FLOPs and bytes of every layer, the machine's peaks, and the share of them that software reaches. New was
that this needs no training run and no fitting to the network in question.

Claim: calibrated on micro-benchmarks only, the model's median log error over six networks and three batch sizes is at
most 0.75 of that of a model that knows FLOPs alone.

    T(op)   = R + C + W = bytes in / B + FLOPs / (peak * PPP) + bytes out / B                     (section 3.1)
    T(step) = T_forward + T_backward + T_communication + T_update                                 (section 4)
    one-to-all 2 |w| (K-1) / B,  tree 2 ceil(log2 K) |w| / B,  butterfly ceil(log2 K) |w| / B,  butterfly mixing |w| / B
    weak scaling: batch per worker fixed, speed-up K T(1) / T(K);  strong: batch S / K, speed-up T(1) / T(K)

Differs from the paper:
- PPP is calibrated by class of kernel and shape on micro-benchmarks, where the paper fits one scalar; its cuDNN
heuristic of choosing between GEMM and FFT convolution is left out, since the micro-benchmark measures what the library chose
- a time per launched operation is added: eager execution of small layers costs little else
- ring and pipelined all-reduce are added to the schemes
- networks of 28 to 64 pixels on the machine at hand; the paper's GPUs, AlexNet at 224 pixels and FireCaffe's cluster are not

Shapes: L operations, K workers, S batch size.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.dist import collectives
from cambrian.dist.launch import run_group
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.roles import Measurement, Progress, Study, study
from cambrian.engine.samples import Curves, Gallery, Sample, Table
from cambrian.errors import ConfigError
from cambrian.inspect.counters import PRODUCTS, Graph, run_pass, trace
from cambrian.inspect.device import Calibration, Device, calibrate_link
from cambrian.nn import zoo

NETS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (partial(zoo.build, "lenet-5"), (1, 28, 28)),
    "alexnet": (partial(zoo.build, "alexnet-64", classes=10, width=1.0, hidden=1024), (3, 64, 64)),
    "vgg": (partial(zoo.build, "vgg-a", size=32, classes=10, hidden=512), (3, 32, 32)),
    "nin": (partial(zoo.build, "nin"), (3, 32, 32)),
    "resnet": (partial(zoo.build, "resnet-18"), (3, 32, 32)),
    "mlp": (partial(zoo.build, "mlp", hidden=(512, 512)), (1, 28, 28)),
}


@config
class Config:
    model: str = option("paleo", "the cost model, or FLOPs alone", choices=("paleo", "flops"))
    permuted: bool = option(False, "shuffle the calibrated rates among the classes of kernels")
    memory_classes: bool = option(False, "also calibrate pooling, normalisation and elementwise work")
    quick: bool = option(False, "calibrate on a quarter of the micro-benchmarks")
    nets: tuple[str, ...] = option(tuple(NETS), "networks to predict, of those in NETS")
    batches: tuple[int, ...] = option((2, 8, 16), "batch sizes", low=2)
    repeats: int = option(5, "rounds of calibration and measurement, interleaved", low=1)
    workers: int = option(2, "processes of the measured data-parallel step; 1 leaves it out", low=1, high=64)

    def check(self) -> None:
        unknown = [name for name in self.nets if name not in NETS]
        if unknown or not self.nets or not self.batches:
            raise ConfigError(f"nets takes names of {', '.join(NETS)} and batches a size, not {unknown or 'none'}")


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of one training step; `total` counts what overlaps once."""

    forward: float
    backward: float
    communication: float
    update: float
    total: float


def predict(graph: Graph, device: Device, batch: int | None = None, direction: str | None = None) -> float:
    """Seconds of a pass (`forward`, `backward`) or of both, one operation after the other, at a batch size."""
    graph = graph if batch is None else graph.at(batch)
    return float(device.seconds(graph.select(direction)).sum())


def critical_path(graph: Graph, device: Device) -> float:
    """Seconds of the longest chain of dependent operations: model parallelism with a device for every branch."""
    ends: list[float] = []
    for op, seconds in zip(graph.operations, device.seconds(graph)):
        ends.append(float(seconds) + max((ends[i] for i in op.parents), default=0.0))
    return max(ends, default=0.0)


def step_time(
    graph: Graph,
    device: Device,
    workers: int = 1,
    *,
    batch: int,
    scheme: str = "ring",
    overlap: bool = False,
    layout: str = "data",
) -> StepTime:
    """One data-parallel step of `workers`, each with `batch` samples.

    `overlap` sends a layer's gradients while the layers below are still in the backward pass. `layout="hybrid"`
    replicates convolutions and splits the fully connected layers (Krizhevsky 2014): their weights stay where they are,
    their inputs are gathered and the gradients of these returned. Raises `ConfigError` for an unknown layout or scheme.
    """
    if layout not in ("data", "hybrid"):
        raise ConfigError(f"layout must be data or hybrid, not {layout!r}")
    now = graph.at(batch)
    seconds = device.seconds(now)
    forward = sum(t for op, t in zip(now.operations, seconds) if op.direction == "forward")
    backward = float(seconds.sum()) - forward
    split = _split_layers(now) if layout == "hybrid" else set()
    cost = partial(collectives.seconds, scheme, workers=workers, bandwidth=device.link_bw, latency=device.latency)
    width = graph.param_bytes / max(1, graph.parameters())
    sizes = {layer: width * n for layer, n in graph.params.items()}
    gathered = _gathered(now, split, workers, device)
    update = (
        3 * sum(n / (workers if layer in split else 1) for layer, n in sizes.items()) / device.mem_bw / device.ppp_comm
    )
    if not overlap:
        sent = float(cost(size=sum(n for layer, n in sizes.items() if layer not in split))) + gathered
        return StepTime(forward, backward, sent, update, forward + backward + sent + update)
    sent = {layer: float(cost(size=n)) for layer, n in sizes.items() if layer not in split}
    finish = _overlapped(now, seconds, sent)
    return StepTime(forward, backward, sum(sent.values()) + gathered, update, forward + finish + gathered + update)


def _overlapped(graph: Graph, seconds: np.ndarray, sent: Mapping[str, float]) -> float:
    """When backward pass and communication are both done, each layer being sent as soon as its gradient is complete."""
    clock, done = 0.0, dict.fromkeys(sent, 0.0)
    for op, t in zip(graph.operations, seconds):
        clock += float(t) if op.direction != "forward" else 0.0
        if op.direction != "forward" and op.layer in done:
            done[op.layer] = clock
    link = 0.0
    for layer, ready in sorted(done.items(), key=lambda item: item[1]):
        link = max(link, ready) + sent[layer]
    return max(clock, link)


def _split_layers(graph: Graph) -> set[str]:
    return {op.layer for op in graph.operations if op.kind == "gemm" and op.layer in graph.params}


def _gathered(graph: Graph, split: set[str], workers: int, device: Device) -> float:
    """All-gather of the split layers' inputs forward, and the same amount of their gradients backward."""
    inputs = sum(
        4 * op.dims[1] * op.dims[3] for op in graph.operations if op.layer in split and op.direction == "forward"
    )
    return 2 * (workers - 1) * inputs / device.link_bw if split else 0.0


@dataclass(frozen=True)
class Scaling:
    """Predicted scaling: seconds of a step and the speed-up over one worker, by number of workers."""

    workers: tuple[int, ...]
    seconds: tuple[float, ...]
    speedup: tuple[float, ...]

    def price(self, steps: int, per_hour: float) -> list[float]:
        """What `steps` steps cost on each number of workers, at `per_hour` a worker."""
        return [steps * t / 3600 * k * per_hour for k, t in zip(self.workers, self.seconds)]


def scaling(
    graph: Graph,
    device: Device,
    workers: Sequence[int],
    *,
    batch: int,
    scheme: str = "ring",
    mode: str = "weak",
    overlap: bool = False,
    layout: str = "data",
) -> Scaling:
    """Step times over numbers of workers. `weak`: every worker has `batch` samples; `strong`: they share them.

    Raises `ConfigError` where a strong batch cannot be shared evenly.
    """
    if mode not in ("weak", "strong"):
        raise ConfigError(f"mode must be weak or strong, not {mode!r}")
    if mode == "strong" and any(batch % k for k in workers):
        raise ConfigError(f"a batch of {batch} cannot be shared evenly by each of {tuple(workers)} workers")
    step = partial(step_time, graph, device, scheme=scheme, overlap=overlap, layout=layout)
    share = [batch // k if mode == "strong" else batch for k in workers]
    seconds = [step(k, batch=n).total for k, n in zip(workers, share)]
    alone = step(1, batch=batch).total
    gain = [alone / t * (k if mode == "weak" else 1) for k, t in zip(workers, seconds)]
    return Scaling(tuple(workers), tuple(seconds), tuple(gain))


def permuted(device: Device, seed: int) -> Device:
    """The device with its calibrated rates shuffled among the classes of products."""
    rates = [r for r in device.classes if r.kind in PRODUCTS]
    values = [r.ppp for r in rates]
    random.Random(seed).shuffle(values)
    others = tuple(r for r in device.classes if r.kind not in PRODUCTS)
    return replace(device, classes=others + tuple(replace(r, ppp=v) for r, v in zip(rates, values)))


Points = dict[tuple[str, int], float]


def measure_nets(
    nets: Mapping[str, nn.Module], batches: Sequence[int], calibration: Calibration, rounds: int, progress: Progress
) -> Points:
    """Median seconds of forward and backward by (net, batch), a round of calibration before each round of measurement."""
    times: dict[tuple[str, int], list[float]] = {}
    inputs = {(name, n): _pictures(name, n) for name in nets for n in batches}
    for (name, _), x in inputs.items():
        run_pass(nets[name], [x], True)
    for done in range(rounds):
        calibration.round()
        for (name, n), x in inputs.items():
            buffers = dict(nets[name].named_buffers())
            start = calibration.clock()
            run_pass(nets[name], [x], True, buffers)
            times.setdefault((name, n), []).append(calibration.clock() - start)
        progress(done + 1, rounds)
    return {point: statistics.median(t) for point, t in times.items()}


def _pictures(name: str, batch: int) -> Tensor:
    return torch.rand(batch, *NETS[name][1], generator=torch.Generator().manual_seed(batch))


def measure_data_parallel(name: str, batch: int, workers: int, steps: int = 6) -> float:
    """Median seconds of a real data-parallel step on local processes: gradients in one flat all-reduce over gloo, SGD."""
    return max(run_group(_data_parallel, workers, name, batch, steps, timeout=120.0))


def _data_parallel(rank: int, world: int, name: str, batch: int, steps: int) -> float:
    import torch.distributed as group

    model, x = NETS[name][0](), _pictures(name, batch)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    times: list[float] = []
    for _ in range(steps + 1):
        group.barrier()
        start = time.perf_counter()
        optimiser.zero_grad()
        F.cross_entropy(model(x), torch.zeros(batch, dtype=torch.long)).backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        group.all_reduce(flat)
        for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()])):
            p.grad = part.view_as(p) / world
        optimiser.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def errors(measured: Points, predicted: Points) -> dict[str, float]:
    """Median |log(predicted / measured)|, median relative error and Spearman's rank correlation over the points."""
    logs = [abs(math.log(predicted[p] / t)) for p, t in measured.items()]
    relative = [abs(predicted[p] / t - 1) for p, t in measured.items()]
    ranks = [np.argsort(np.argsort([times[p] for p in measured])) for times in (measured, predicted)]
    spearman = float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(measured) > 1 else 1.0
    return {
        "median_log_error": statistics.median(logs),
        "median_relative_error": statistics.median(relative),
        "spearman": spearman,
    }


CLAIM = Claim(
    name="error",
    statement="Calibrated on GEMM, convolution and copy micro-benchmarks, the model's median |log(predicted / measured)| "
    "over 6 nets and 3 batch sizes is at most 0.75 of that of FLOPs with one percent of peak.",
    metric="median_log_error",
    direction="lower",
    margin=0.75,
    compare="ratio",
    paper="Figures 2 and 3: per-layer estimates of AlexNet and VGG-16 close to the measured times (no table)",
    arms={"paleo": Arm(), "flops": Arm({"model": "flops"})},
    system="paleo",
    baselines=("flops",),
    sabotage=Arm({"permuted": True}),
)


@study("paleo")
class PaleoStudy(Study[Config]):
    presets = {
        "smoke": Config(nets=("lenet", "mlp"), batches=(2, 8), repeats=2, workers=1, quick=True),
        "laptop": Config(),
        "paper": Config(batches=(16, 64, 128), repeats=11, workers=2),
    }
    claims = (CLAIM,)
    exclusive = True

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Calibrate and measure in turn, then predict. Times are processor times: other programs may share the machine."""
        c = self.config
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets = {name: NETS[name][0]() for name in c.nets}
        graphs = {name: trace(net, NETS[name][1]) for name, net in nets.items()}
        calibration = Calibration(clock=time.process_time, seed=seed, quick=c.quick)
        measured = measure_nets(nets, c.batches, calibration, c.repeats, progress)
        full = calibration.result()
        device = self._device(calibration, full, seed)
        predicted = {(name, n): predict(graphs[name], device, n) for name, n in measured}
        metrics = errors(measured, predicted)
        refined = {(name, n): predict(graphs[name], full, n) for name, n in measured}
        metrics["median_log_error_memory_classes"] = errors(measured, refined)["median_log_error"]
        if c.workers > 1:
            full = calibrate_link(full)
            name = c.nets[0]
            batch = max(c.batches)
            want = step_time(graphs[name], full, c.workers, batch=batch).total
            took = measure_data_parallel(name, batch, c.workers)
            metrics |= {"data_parallel_ms": 1e3 * took, "data_parallel_error": abs(want / took - 1)}
        return Measurement(metrics, report(graphs, full, measured, predicted))

    def _device(self, calibration: Calibration, full: Device, seed: int) -> Device:
        if self.config.model == "flops":
            return calibration.flops_only()
        device = full if self.config.memory_classes else full.products_only()
        return permuted(device, seed) if self.config.permuted else device


def report(graphs: Mapping[str, Graph], device: Device, measured: Points, predicted: Points) -> Sample:
    """Predicted beside measured times, scaling curves, and what a faster machine or network would change."""
    rows = [[name, n, 1e3 * predicted[name, n], 1e3 * t, predicted[name, n] / t] for (name, n), t in measured.items()]
    name = next(iter(graphs))
    graph, workers = graphs[name], (1, 2, 4, 8, 16, 32)
    curves = {
        scheme: (workers, scaling(graph, device, workers, batch=32, scheme=scheme).speedup)
        for scheme in collectives.SCHEMES
    }
    machines = {
        "as measured": device,
        "compute x 2": replace(device, peak_flops=2 * device.peak_flops),
        "memory x 2": replace(device, mem_bw=2 * device.mem_bw),
        "link x 10": replace(device, link_bw=10 * device.link_bw, latency=device.latency / 10),
        "no launch cost": replace(device, overhead=0.0),
    }
    what_if = [
        [title, *(1e3 * step_time(graph, other, k, batch=32).total for k in (1, 8))]
        for title, other in machines.items()
    ]
    return Gallery(
        {
            "step times": Table(["network", "batch", "predicted ms", "measured ms", "ratio"], rows),
            f"weak scaling of {name}": Curves(curves, x="workers", y="speed-up"),
            f"what if ({name})": Table(["machine", "ms with 1 worker", "ms with 8 workers"], what_if),
        }
    )
