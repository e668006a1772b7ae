"""Features of every layer in one pass, the closed-form and the converged probe, and the table over depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import ConfigError, DataError
from cambrian.inspect.hooks import find
from cambrian.inspect.results import Row
from cambrian.inspect.target import Target

INPUT = "input"
METHODS = ("discriminant", "ridge", "logistic")  # two closed forms, and L-BFGS to convergence
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
KINDS = ("Conv", "ReLU", "ELU", "SELU", "GELU", "SiLU", "Tanh", "Sigmoid", "Pool", "Linear", "Maxout")


# -- where and what to read ------------------------------------------------------------------------------------------


def probe_points(target: Target, points: str = "auto") -> list[str]:
    """ "auto": the input and every convolution, activation, pool and linear layer, in running order; or names joined
    by "+".
    """
    if points != "auto":
        names = points.split("+")
        for name in names:
            if name != INPUT:
                find(target.module, name.removesuffix(":in"))
        return names
    return [INPUT, *(layer.name for layer in target.layers() if any(kind in layer.kind for kind in KINDS))]


@dataclass
class Reduce:
    """The same reduction for every layer: "pool[:g]" (mean over a grid of at most g x g), "subset:n", "proj:n"
    (both fixed at random).

    `limit` bounds the features of a pooled layer; the grid shrinks until it fits. The result says how many features
    are left.
    """

    kind: str
    number: int
    limit: int
    generator: torch.Generator
    plans: dict[str, Tensor]

    @classmethod
    def parse(cls, text: str, generator: torch.Generator, limit: int = 512) -> Reduce:
        kind, _, number = text.partition(":")
        if kind not in ("pool", "subset", "proj") or not (number.isdigit() or (kind == "pool" and not number)):
            raise ConfigError(f"reduce must be pool, pool:g, subset:n or proj:n, not {text!r}")
        size = int(number or 4)
        if size < 1:
            raise ConfigError(f"reduce needs a number of at least 1, got {text!r}")
        return cls(kind, size, limit, generator, {})

    def __call__(self, name: str, h: Tensor) -> Tensor:
        """`h [B,...]` of layer `name` -> `[B,D]` float64."""
        if self.kind == "pool":
            return self._pool(h).flatten(1).double()
        flat = h.flatten(1)
        if self.number >= flat.shape[1]:
            return flat.double()
        if name not in self.plans:
            self.plans[name] = self._plan(flat.shape[1])
        plan = self.plans[name].to(flat.device)
        return flat[:, plan].double() if self.kind == "subset" else flat.double() @ plan

    def _pool(self, h: Tensor) -> Tensor:
        if h.dim() < 3:
            return h
        grid = self.number
        while grid > 1 and h.shape[1] * grid ** (h.dim() - 2) > self.limit:
            grid -= 1
        sizes = [min(grid, size) for size in h.shape[2:]]
        pools = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        return pools[h.dim() - 3](h, sizes)

    def _plan(self, size: int) -> Tensor:
        if self.kind == "subset":
            return torch.randperm(size, generator=self.generator)[: self.number]
        return torch.randn(size, self.number, generator=self.generator, dtype=torch.float64) / math.sqrt(self.number)


def stream(
    target: Target, split: str, points: list[str], reduce: Reduce, labels: str, n: int | None
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """One forward pass per batch gives all layers: `({point: [B,D]}, y [B])`. Raises `DataError` for an unknown
    factor.
    """
    inner = [name for name in points if name != INPUT]
    size = None if n is None else min(n, target.size(split))
    for x, y, meta in target.batches(split, size):
        if labels != "class":
            y = _factor(meta, labels).to(x.device)
        found = target.features(x, inner) if inner else {}
        found[INPUT] = x
        yield {name: reduce(name, found[name]) for name in points}, y


def _factor(meta: Mapping[str, Tensor], name: str) -> Tensor:
    whole = [key for key, value in meta.items() if value.dim() == 1 and not value.is_floating_point()]
    if name not in whole:
        raise DataError(f"the data has no whole-number factor {name!r}; it has {whole}")
    return meta[name].long()


# -- probes ----------------------------------------------------------------------------------------------------------


class Moments:
    """Sums of one layer's features and labels in float64: all that the closed form needs, in one pass over the data."""

    def __init__(self, features: int, classes: int, device: torch.device) -> None:
        new = {"dtype": torch.float64, "device": device}
        self.count, self.total, self.gram = 0, torch.zeros(features, **new), torch.zeros(features, features, **new)
        self.labels, self.cross = torch.zeros(classes, **new), torch.zeros(features, classes, **new)

    def add(self, z: Tensor, onehot: Tensor) -> None:
        """`z [B,D]`, `onehot [B,K]`."""
        self.count += len(z)
        self.total += z.sum(0)
        self.labels += onehot.sum(0)
        self.gram.addmm_(z.T, z)
        self.cross.addmm_(z.T, onehot)

    def ridge(self, strengths: tuple[float, ...] = STRENGTHS) -> tuple[Tensor, Tensor]:
        """Least squares on one-hot labels: weights `[L,D,K]` and biases `[L,K]`, one eigendecomposition for all strengths.

        Features are standardised with their own statistics; constant ones get weight zero. With few features and many
        classes, least squares hides classes behind one another: there the discriminant is the better probe.
        """
        mean, prior = self.total / self.count, self.labels / self.count
        cov, scale = self._standard(mean)
        slope = (self.cross / self.count - torch.outer(mean, prior)) * scale[:, None]
        weights = _solve(cov, slope, strengths) * scale[:, None]
        return weights, prior - torch.einsum("d,ldk->lk", mean, weights)

    def discriminant(self, strengths: tuple[float, ...] = STRENGTHS) -> tuple[Tensor, Tensor]:
        """The softmax probe in closed form when classes are Gaussians of one shape (linear discriminant analysis):

        W = (S + lambda I)^-1 M, b_k = log prior_k - M_k . W_k / 2, M the class means and S the covariance within classes.
        """
        mean, prior = self.total / self.count, (self.labels / self.count).clamp_min(1e-12)
        cov, scale = self._standard(mean)
        means = (self.cross / self.labels.clamp_min(1) - mean[:, None] * (self.labels > 0)) * scale[:, None]  # [D,K]
        weights = _solve(cov - (means * prior) @ means.T, means, strengths)
        biases = prior.log() - torch.einsum("dk,ldk->lk", means, weights) / 2
        weights = weights * scale[:, None]
        return weights, biases - torch.einsum("d,ldk->lk", mean, weights)

    def _standard(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        cov = self.gram / self.count - torch.outer(mean, mean)
        spread = cov.diagonal().clamp_min(0).sqrt()
        alive = spread > 1e-9 * (1 + mean.abs())
        scale = torch.where(alive, 1 / spread.clamp_min(1e-300), 0.0)
        return cov * torch.outer(scale, scale), scale


def _solve(matrix: Tensor, right: Tensor, strengths: tuple[float, ...]) -> Tensor:
    """`(matrix + s I)^-1 right` for every strength, `[L,D,K]`."""
    values, vectors = torch.linalg.eigh(matrix)
    rotated = vectors.T @ right
    return torch.stack([vectors @ (rotated / (values.clamp_min(0) + s)[:, None]) for s in strengths])


def logistic(z: Tensor, y: Tensor, classes: int, strength: float) -> tuple[Tensor, Tensor, float]:
    """Multinomial logistic regression by L-BFGS to convergence: `W [D,K]`, `b [K]` and the objective's value

    mean cross-entropy + strength / 2 * ||W||^2          (scikit-learn's C = 1 / (n * strength))
    """
    z = z.double()
    weight = torch.zeros(z.shape[1], classes, dtype=z.dtype, device=z.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=z.dtype, device=z.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        return F.cross_entropy(z @ weight + bias, y) + strength / 2 * weight.square().sum()

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach(), float(objective().detach())


@dataclass(frozen=True)
class Probes:
    """Fits one probe per layer of any target with features and labelled data; see `fit`."""

    points: str = "auto"
    reduce: str = "pool"
    labels: str = "class"
    method: str = "discriminant"
    samples: int | None = None
    limit: int = 512

    @torch.no_grad()
    def fit(self, target: Target, generator: torch.Generator) -> list[Row]:
        """One row per layer: the features read, train, valid and test error, and the ridge strength chosen on
        `valid`.

        All probes are fitted at once, from one pass over the training split. The network is in eval mode and stays
        bit-identical.
        """
        names = probe_points(target, self.points)
        reduce = Reduce.parse(self.reduce, generator, self.limit)
        solve = self._logistic if self.method == "logistic" else self._closed
        probes = solve(target, names, reduce)
        errors = {split: self._errors(target, split, names, reduce, probes) for split in ("train", "valid", "test")}
        rows: list[Row] = []
        for depth, name in enumerate(names):
            best = int(errors["valid"][name].argmin())
            row: Row = {"layer": name, "depth": depth, "features": probes[name][0].shape[1], "reduce": self.reduce}
            row |= {f"{split} error": float(found[name][best]) for split, found in errors.items()}
            rows.append({**row, "strength": STRENGTHS[best], "method": self.method, "labels": self.labels})
        return rows

    def _closed(self, target: Target, names: list[str], reduce: Reduce) -> dict[str, tuple[Tensor, Tensor]]:
        classes, sums = self._classes(target), {}
        for features, y in stream(target, "train", names, reduce, self.labels, self.samples):
            onehot = F.one_hot(y, classes).double()
            for name, z in features.items():
                if name not in sums:
                    sums[name] = Moments(z.shape[1], classes, z.device)
                sums[name].add(z, onehot)
        return {name: getattr(moments, self.method)() for name, moments in sums.items()}

    def _logistic(self, target: Target, names: list[str], reduce: Reduce) -> dict[str, tuple[Tensor, Tensor]]:
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        labels: list[Tensor] = []
        for features, y in stream(target, "train", names, reduce, self.labels, self.samples):
            labels.append(y)
            for name, z in features.items():
                found[name].append(z)
        y, classes, probes = torch.cat(labels), self._classes(target), {}
        for name, parts in found.items():
            z = torch.cat(parts)
            mean, spread = z.mean(0), z.std(0, correction=0)
            scale = torch.where(spread > 1e-9 * (1 + mean.abs()), 1 / spread.clamp_min(1e-300), 0.0)
            solved = [logistic((z - mean) * scale, y, classes, strength)[:2] for strength in STRENGTHS]
            weights = torch.stack([w * scale[:, None] for w, _ in solved])
            probes[name] = weights, torch.stack([b for _, b in solved]) - torch.einsum("d,ldk->lk", mean, weights)
        return probes

    def _errors(
        self, target: Target, split: str, names: list[str], reduce: Reduce, probes: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        wrong = {name: torch.zeros(len(STRENGTHS), dtype=torch.float64) for name in names}
        count = 0
        for features, y in stream(target, split, names, reduce, self.labels, self.samples):
            count += len(y)
            for name, z in features.items():
                weights, biases = probes[name]
                scores = torch.einsum("bd,ldk->lbk", z, weights) + biases[:, None]
                wrong[name] += (scores.argmax(2) != y).sum(1).double().cpu()
        return {name: errors / count for name, errors in wrong.items()}

    def _classes(self, target: Target) -> int:
        if self.labels == "class":
            return len(target.classes)
        column = [_factor(meta, self.labels) for _, _, meta in target.batches("train")]
        return int(torch.cat(column).max()) + 1


def depth_figure(curves: Mapping[str, list[Row]]):
    """Probe test error over depth, one line per network or training time."""
    from matplotlib.figure import Figure

    names = [row["layer"] for row in next(iter(curves.values()))]
    figure = Figure(figsize=(max(4.5, 0.3 * len(names)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for label, rows in curves.items():
        axes.plot([row["depth"] for row in rows], [row["test error"] for row in rows], "o-", ms=3, label=label)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set(ylabel="probe test error", ylim=(0, None))
    axes.legend()
    return figure
