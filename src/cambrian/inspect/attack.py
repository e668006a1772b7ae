"""The attack loop: projected gradient steps inside a norm ball and a box, and the table that every attack reports.

    x_0 = x (or a random point of the ball),   x_{t+1} = P( x_t + step * d(grad_x J) )
    d(g) = sign(g) (norm inf),  g / ||g||_2 (norm 2)

`P` projects onto the ball around `x` and then onto the box `[lo, hi]`. `J` is the cross-entropy of the true label
(untargeted), or minus that of the wanted class (one for all samples, or one for each). Sizes (`eps`, `step`) are fractions of `hi - lo`. One step from `x`
with `step = eps` is the fast gradient method; several are the basic iterative method; several from a random start
are PGD (Madry et al. 2018), the reference row.

The network is in eval mode and its parameters get no gradients while an attack runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.inspect.results import AttackResult, Row
from cambrian.inspect.target import Space, Target

NORMS = ("inf", "2")
STARTS = ("none", "uniform", "sign")
SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class Goal:
    """What an attack wants: any wrong label (`label` None), that class (an int), or for each sample the class of an
    int64 tensor `[B]`.
    """

    label: int | Tensor | None = None

    @property
    def targeted(self) -> bool:
        return self.label is not None

    @classmethod
    def least_likely(cls, logits: Tensor) -> Goal:
        """For each sample the class that `logits [B,K]` of the clean input find least likely (Kurakin et al. 2017)."""
        return cls(logits.argmin(1))

    @classmethod
    def drawn(cls, y: Tensor, classes: int, generator: torch.Generator) -> Goal:
        """For each sample a class other than its label `y [B]`, all equally likely."""
        shift = torch.randint(1, classes, y.shape, generator=generator).to(y.device)
        return cls((y + shift) % classes)

    def wanted(self, y: Tensor) -> Tensor:
        """`[B]` int64, the class that each sample shall be taken for. Only for targeted goals."""
        if self.label is None:
            raise ConfigError("an untargeted goal wants no class")
        return self.label if isinstance(self.label, Tensor) else torch.full_like(y, self.label)

    def part(self, index: slice | Tensor) -> Goal:
        """The goal of some of the samples."""
        return Goal(self.label[index]) if isinstance(self.label, Tensor) else self

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """`[B]`, to be raised."""
        if self.label is None:
            return F.cross_entropy(logits, y, reduction="none")
        return -F.cross_entropy(logits, self.wanted(y), reduction="none")

    def reached(self, logits: Tensor, y: Tensor) -> Tensor:
        """`[B]` bool; a sample of the wanted class itself can never count."""
        guess = logits.argmax(1)
        if self.label is None:
            return guess != y
        wanted = self.wanted(y)
        return (guess == wanted) & (y != wanted)

    def check(self, count: int, classes: int) -> None:
        """Raise `ConfigError` unless the wanted classes exist, and for a tensor there is one for each of `count` samples."""
        label = self.label
        if isinstance(label, Tensor):
            if label.dtype != torch.int64 or label.shape != (count,):
                raise ConfigError(f"wanted classes must be int64 [{count}], got {label.dtype} {list(label.shape)}")
            low, high = int(label.min()), int(label.max())
        else:
            low = high = 0 if label is None else label
        if low < 0 or high >= classes:
            raise ConfigError(f"the wanted class must be 0..{classes - 1}, got {low if low < 0 else high}")


def direction(grad: Tensor, norm: str) -> Tensor:
    """The steepest step of unit size for that norm; zero where the gradient is zero."""
    if norm == "inf":
        return grad.sign()
    size = grad.flatten(1).norm(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
    return grad / size.view(-1, *[1] * (grad.dim() - 1))


def project(moved: Tensor, x: Tensor, eps: float, norm: str, space: Space) -> Tensor:
    """The nearest point of the ball of size `eps` (in the space's units) around `x`, then of the box."""
    if norm == "inf":
        return torch.clamp(moved, x - eps, x + eps).clamp(space.lo, space.hi)
    step = (moved - x).flatten(1)
    size = step.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return (x + (step * (eps / size).clamp_max(1.0)).view_as(x)).clamp(space.lo, space.hi)


def random_start(x: Tensor, eps: float, norm: str, kind: str, generator: torch.Generator) -> Tensor:
    """A move of size at most `eps`: "none", "uniform" in the ball, or "sign" (random corners of the cube)."""
    if kind == "none":
        return torch.zeros_like(x)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) * 2 - 1
    if kind == "sign":
        return eps * torch.where(noise >= 0, 1.0, -1.0).to(x.dtype)
    if norm == "inf":
        return eps * noise
    radius = torch.rand(len(x), generator=generator, dtype=x.dtype).to(x.device) ** (1 / x[0].numel())
    gauss = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return eps * radius.view(-1, *[1] * (x.dim() - 1)) * direction(gauss, "2")


def input_gradient(module: nn.Module, x: Tensor, y: Tensor, goal: Goal) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the summed goal losses in `x`, those losses `[B]` and the logits; no parameter gradients (use in
    `quiet`).
    """
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        logits = module(moved)
        losses = goal.losses(logits, y)
        (grad,) = torch.autograd.grad(losses.sum(), moved)
    return grad, losses.detach(), logits.detach()


class AdamSteps:
    """Adam (Kingma and Ba 2015) on an input: each gradient `[B,...]` gives the step to be taken away from it."""

    def __init__(self, like: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), floor: float = 1e-8) -> None:
        self.mean, self.square, self.count = torch.zeros_like(like), torch.zeros_like(like), 0
        self.lr, self.betas, self.floor = lr, betas, floor

    def __call__(self, grad: Tensor) -> Tensor:
        self.count += 1
        first, second = self.betas
        self.mean.lerp_(grad, 1 - first)
        self.square.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (self.square / (1 - second**self.count)).sqrt_().add_(self.floor)
        return (self.mean / root).mul_(self.lr / (1 - first**self.count))


def ascend(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step: float | None = None,
    steps: int = 1,
    norm: str = "inf",
    goal: Goal | None = None,
    start: str = "none",
    stop: bool = False,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """`steps` projected steps of size `step` (default `eps`); with `stop` a sample stands still once it reached its
    goal.

    `x [B,...]` in the target's space, `y [B]` labels. Raises `ShapeError` for bad inputs, `ConfigError` for bad
    settings.
    """
    goal = goal or Goal()
    target.check(x, y)
    _check(target, eps, steps, norm, start)
    goal.check(len(x), len(target.classes))
    size = eps * target.space.width
    pace = size if step is None else step * target.space.width
    generator = generator or torch.Generator().manual_seed(0)
    trace, queries, clean = [], {"forward": 0, "backward": 0}, None
    x = x.detach()
    moved = project(x + random_start(x, size, norm, start, generator), x, size, norm, target.space)
    with target.quiet() as module:
        for _ in range(steps):
            grad, losses, logits = input_gradient(module, moved, y, goal)
            queries = {name: count + len(x) for name, count in queries.items()}
            trace.append(losses)
            clean = logits if clean is None and start == "none" else clean
            further = project(moved + pace * direction(grad, norm), x, size, norm, target.space)
            still = goal.reached(logits, y) & stop
            moved = torch.where(still.view(-1, *[1] * (x.dim() - 1)), moved, further)
    return finish(target, x, y, moved, eps=eps, norm=norm, goal=goal, queries=queries, trace=trace, clean=clean)


def pgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    restarts: int = 1,
    norm: str = "inf",
    generator: torch.Generator,
) -> AttackResult:
    """Projected gradient with uniform random starts, step 2.5 eps / steps; a sample keeps its first successful
    restart.
    """
    best: AttackResult | None = None
    for _ in range(restarts):
        one = ascend(
            target, x, y, eps=eps, step=2.5 * eps / steps, steps=steps, norm=norm, start="uniform", generator=generator
        )
        best = one if best is None else _better(best, one)
    if best is None:
        raise ConfigError(f"restarts must be at least 1, got {restarts}")
    return best


def _better(old: AttackResult, new: AttackResult) -> AttackResult:
    keep = old.success
    shape = keep.view(-1, *[1] * (old.x_adv.dim() - 1))
    norms = {name: torch.where(keep, old.norms[name], new.norms[name]) for name in old.norms}
    queries = {name: old.queries[name] + new.queries[name] for name in old.queries}
    moved = torch.where(shape, old.x_adv, new.x_adv)
    return AttackResult(moved, keep | new.success, norms, queries, old.trace + new.trace)


@torch.no_grad()
def finish(
    target: Target,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    *,
    eps: float | None,
    norm: str = "inf",
    goal: Goal | None = None,
    queries: dict[str, int] | None = None,
    trace: list[Tensor] | None = None,
    clean: Tensor | None = None,
) -> AttackResult:
    """Judge moved inputs: success on clean-correct samples only, sizes, and the post-condition (ball and box).

    `clean` are logits of `x` when they are known already. Raises `ArithmeticError` when an input left the ball or
    the box.
    """
    goal = goal or Goal()
    queries = dict(queries or {"forward": 0, "backward": 0})
    with target.quiet() as module:
        if clean is None:
            clean = module(x)
            queries["forward"] += len(x)
        success = (clean.argmax(1) == y) & goal.reached(module(x_adv), y)
        queries["forward"] += len(x)
    return AttackResult(x_adv, success, sizes(x, x_adv, target.space, eps, norm), queries, trace or [])


def sizes(x: Tensor, x_adv: Tensor, space: Space, eps: float | None = None, norm: str = "inf") -> dict[str, Tensor]:
    """How far each input moved, "l2" and "linf" `[B]` in the space's units.

    Raises `ArithmeticError` when one left the ball of `eps` (a fraction of the range; None: any size) or the box.
    """
    step = (x_adv - x).flatten(1)
    norms = {"l2": step.norm(dim=1), "linf": step.abs().amax(1)}
    if eps is not None and bool((norms["linf" if norm == "inf" else "l2"] > (eps + SLACK) * space.width).any()):
        raise ArithmeticError(f"an adversarial input left the ball of size {eps} (norm {norm})")
    if float(x_adv.min()) < space.lo - SLACK * space.width or float(x_adv.max()) > space.hi + SLACK * space.width:
        raise ArithmeticError(f"an adversarial input left the box [{space.lo}, {space.hi}]")
    return norms


@torch.no_grad()
def attack_row(
    target: Target,
    x: Tensor,
    y: Tensor,
    result: AttackResult,
    *,
    method: str,
    goal: Goal | None = None,
    **facts: object,
) -> Row:
    """The common table's row of one attack on `x, y`; rates are over clean-correct samples, sizes are medians over
    them.
    """
    goal = goal or Goal()
    clean, moved = target.logits(x), target.logits(result.x_adv)
    right = clean.argmax(1) == y
    count = max(int(right.sum()), 1)
    wrong = moved.argmax(1) != y
    space = target.space
    rounded = result.x_adv if space.quantum is None else _round(result.x_adv, space)
    after = goal.reached(target.logits(rounded), y) & right
    sure = moved.softmax(1).amax(1)[wrong]
    rmsd = result.norms["l2"][right] / result.x_adv[0].numel() ** 0.5 * 255 / space.width
    return {
        "method": method,
        **facts,
        "targeted": goal.targeted,
        "samples": len(x),
        "clean accuracy": float(right.float().mean()),
        "success": float(result.success.sum()) / count,
        "robust accuracy": float((~wrong).float().mean()),
        "median L2": _median(result.norms["l2"][right]),
        "median Linf": _median(result.norms["linf"][right]),
        "median RMSD/255": _median(rmsd),
        "confidence when wrong": float(sure.mean()) if len(sure) else None,
        "success after rounding": float(after.sum()) / count,
        "forward": result.queries["forward"],
        "backward": result.queries["backward"],
    }


def _round(x: Tensor, space: Space) -> Tensor:
    steps = torch.round((x - space.lo) / (space.quantum or 1.0))
    return (steps * (space.quantum or 1.0) + space.lo).clamp(space.lo, space.hi)


def _median(values: Tensor) -> float | None:
    return float(values.median()) if len(values) else None


def in_batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of at most `size` samples."""
    yield from zip(x.split(size), y.split(size), strict=True)


def join(results: list[AttackResult]) -> AttackResult:
    """One result from those of consecutive batches."""
    first = results[0]
    return AttackResult(
        torch.cat([r.x_adv for r in results]),
        torch.cat([r.success for r in results]),
        {name: torch.cat([r.norms[name] for r in results]) for name in first.norms},
        {name: sum(r.queries[name] for r in results) for name in first.queries},
        [torch.cat(losses) for losses in zip(*(r.trace for r in results), strict=True)],
    )


def _check(target: Target, eps: float, steps: int, norm: str, start: str) -> None:
    if norm not in NORMS or start not in STARTS:
        raise ConfigError(f"norm must be one of {NORMS} and start one of {STARTS}, got {norm!r} and {start!r}")
    if not 0 <= eps < float("inf") or steps < 1:
        raise ConfigError(f"eps must be a fraction >= 0 of the input range and steps >= 1, got {eps} and {steps}")
    if target.space.kind == "tokens":
        raise ConfigError("gradient attacks need real-valued inputs; this target takes tokens")
