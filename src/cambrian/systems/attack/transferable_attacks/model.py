"""The loss of an ensemble, the attacks on it at a wanted distortion, and the tables of who is fooled by what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.attack import AdamSteps, Goal, direction, sizes
from cambrian.inspect.results import AttackResult, Row
from cambrian.inspect.target import Space, Target

KINDS = ("optimise", "sign", "gradient")
UPDATES = ("joint", "sum")

# -- the ensemble ------------------------------------------------------------------------------------------------------


class Ensemble:
    """Several targets of the same inputs and classes as one: the mean of their PROBABILITIES, with `weights`.

    A target that is named several times is computed once. With `stack`, networks of one architecture run as one
    batched network (`torch.func`). Raises `CapabilityError` when spaces or classes differ.
    """

    def __init__(
        self, targets: Sequence[Target], weights: Sequence[float] | None = None, *, stack: bool = False
    ) -> None:
        if not targets:
            raise ConfigError("an ensemble needs at least one target")
        shares = [1.0 / len(targets)] * len(targets) if weights is None else list(weights)
        if len(shares) != len(targets) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"weights must be {len(targets)} positive numbers that sum to 1, got {shares}")
        same_task(targets)
        self.space, self.classes = targets[0].space, targets[0].classes
        together: dict[int, float] = {}
        for target, share in zip(targets, shares, strict=True):
            together[id(target.module)] = together.get(id(target.module), 0.0) + share
        self.targets = list({id(t.module): t for t in targets}.values())
        self.modules = [t.module for t in self.targets]
        shares = [together[id(module)] for module in self.modules]
        groups = _alike(self.modules) if stack else [[i] for i in range(len(self.modules))]
        self.log_weights = torch.tensor([shares[i] for group in groups for i in group]).log()
        with self.quiet():  # networks in different modes cannot be stacked
            parts = [[self.modules[i] for i in group] for group in groups]
            self.parts = [_Stack(part) if len(part) > 1 else part[0] for part in parts]

    @contextmanager
    def quiet(self) -> Iterator[Ensemble]:
        """Every member in eval mode, without parameter gradients, for the time of a `with`."""
        with ExitStack() as stack:
            for target in self.targets:
                stack.enter_context(target.quiet())
            yield self

    def check(self, x: Tensor, y: Tensor, goal: Goal) -> None:
        """Raise unless inputs, labels and wanted classes fit."""
        self.targets[0].check(x, y)
        goal.check(len(x), len(self.classes))

    def log_probabilities(self, x: Tensor) -> Tensor:
        """`[M,B,K]` of every member."""
        found = [part(x) for part in self.parts]
        return torch.cat(
            [z if isinstance(p, _Stack) else z[None] for p, z in zip(self.parts, found, strict=True)]
        ).log_softmax(2)

    def losses(self, x: Tensor, y: Tensor, goal: Goal) -> Tensor:
        """`[B]`, to be lowered: eq. 6, or its untargeted form -log(1 - sum_i alpha_i J_i(x)_y)."""
        each = member_losses(self.log_probabilities(x), y, goal)
        weights = self.log_weights.to(x)[:, None]
        return -torch.logsumexp(weights - each, dim=0)

    def gradient(self, x: Tensor, y: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Gradient of the summed losses in `x`, and the losses `[B]`; use in `quiet`."""
        with torch.enable_grad():
            moved = x.detach().requires_grad_(True)
            losses = self.losses(moved, y, goal)
            (grad,) = torch.autograd.grad(losses.sum(), moved)
        return grad, losses.detach()

    @torch.no_grad()
    def reached(self, x: Tensor, y: Tensor, goal: Goal) -> Tensor:
        """`[B]` bool: the goal holds for every member."""
        return torch.stack([goal.reached(z, y) for z in self.log_probabilities(x)]).all(0)


def member_losses(logp: Tensor, y: Tensor, goal: Goal) -> Tensor:
    """`[M,B]` from log-probabilities `[M,B,K]`: -log J_t targeted, -log(1 - J_y) untargeted.

    1 - J_y is the sum of the other classes, in logarithms: it does not vanish when J_y rounds to 1.
    """
    label = (goal.wanted(y) if goal.targeted else y).view(1, -1, 1).expand(len(logp), -1, 1)
    if goal.targeted:
        return -logp.gather(2, label).squeeze(2)
    return -logp.scatter(2, label, float("-inf")).logsumexp(2)


class _Stack(nn.Module):
    """Networks of one architecture, their weights stacked: `x` -> `[M,B,K]`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.base = modules[0]
        parameters, buffers = torch.func.stack_module_state(list(modules))
        self.state = {name: t.detach() for name, t in {**parameters, **buffers}.items()}

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda state: torch.func.functional_call(self.base, state, (x,)))(self.state)


def _alike(modules: Sequence[nn.Module]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for i, module in enumerate(modules):
        shapes = [(name, tuple(t.shape)) for name, t in module.state_dict().items()]
        groups.setdefault(f"{module}{shapes}", []).append(i)
    return list(groups.values())


def same_task(targets: Sequence[Target]) -> None:
    """Raise `CapabilityError` unless all take the same inputs and know the same classes in the same order."""
    first = targets[0]
    for other in targets[1:]:
        if list(other.classes) != list(first.classes):
            raise CapabilityError("examples can be moved between targets with the same classes in the same order only")
        if (other.space.shape, other.space.lo, other.space.hi) != (first.space.shape, first.space.lo, first.space.hi):
            raise CapabilityError(
                f"targets take different inputs: {first.space.shape} and {other.space.shape}, or other ranges"
            )
    if first.space.kind == "tokens":
        raise CapabilityError("these attacks need real-valued inputs; the targets take tokens")


# -- attacks -----------------------------------------------------------------------------------------------------------


def rmsd(x: Tensor, x_adv: Tensor, space: Space) -> Tensor:
    """`[B]`, root of the mean squared change on a scale of 0..255 for the range."""
    return (x_adv - x).flatten(1).square().mean(1).sqrt() * (255 / space.width)


def ensemble_attack(
    targets: Sequence[Target] | Ensemble,
    x: Tensor,
    y: Tensor,
    goal: Goal | None = None,
    *,
    lr: float = 4 / 255,
    steps: int = 100,
    lam: float = 0.0,
    update: str = "joint",
) -> AttackResult:
    """Adam from `x` on the ensemble's loss plus `lam` times the distance (RMSD as a fraction of the range), no ball.

    `lr` is a fraction of the range and decides how far the result is from `x`. `update="sum"` adds up one Adam update
    for each member, each on its own loss, as the paper's experiments did. A success reaches the goal for every member that
    had the clean input right.
    """
    group = targets if isinstance(targets, Ensemble) else Ensemble(targets)
    goal = goal or Goal()
    group.check(x, y, goal)
    if not lr > 0 or steps < 1 or lam < 0 or update not in UPDATES:
        raise ConfigError(
            f"lr and steps must be positive, lam >= 0, update one of {UPDATES}, got {lr}, {steps}, {lam}, {update!r}"
        )
    space, x = group.space, x.detach()
    singles = [group] if update == "joint" else [Ensemble([t]) for t in group.targets]
    movers = [AdamSteps(x, lr * space.width) for _ in singles]
    moved, trace = x.clone(), []
    with group.quiet():
        for _ in range(steps):
            step, total = torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for one, mover in zip(singles, movers, strict=True):
                grad, losses = one.gradient(moved, y, goal)
                total += losses / len(singles)
                step += mover(grad + lam * _pull(x, moved, space) if lam else grad)
            trace.append(total)
            moved = (moved - step).clamp(space.lo, space.hi)
        success = _right(group, x, y) & group.reached(moved, y, goal)
    count = (steps + 2) * len(x) * len(group.modules)
    queries = {"forward": count, "backward": steps * len(x) * len(group.modules)}
    return AttackResult(moved, success, sizes(x, moved, space), queries, trace)


def _right(group: Ensemble, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return (group.log_probabilities(x).argmax(2) == y).all(0)


def _pull(x: Tensor, moved: Tensor, space: Space) -> Tensor:
    """Gradient of the root mean square of `(moved - x) / width`; zero at `x` itself."""
    gap = (moved - x) / space.width
    size = gap.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return gap / (size.view(-1, *[1] * (x.dim() - 1)) * math.sqrt(x[0].numel()) * space.width)


def fast_gradient(
    targets: Sequence[Target] | Ensemble,
    x: Tensor,
    y: Tensor,
    goal: Goal | None = None,
    *,
    size: float,
    norm: str = "inf",
) -> Tensor:
    """One step of `size` (fraction of the range): along the sign (norm "inf"), or along the gradient (norm "2") with the
    length that gives an RMSD of `size`. Returns `[B,...]` in the box.
    """
    group, goal = targets if isinstance(targets, Ensemble) else Ensemble(targets), goal or Goal()
    group.check(x, y, goal)
    with group.quiet():
        return _along(x, -group.gradient(x, y, goal)[0], size, norm, group.space)


def _along(x: Tensor, slope: Tensor, size: float | Tensor, norm: str, space: Space) -> Tensor:
    if norm not in ("inf", "2"):
        raise ConfigError(f"norm must be inf or 2, not {norm!r}")
    length = space.width * (1.0 if norm == "inf" else math.sqrt(x[0].numel()))
    return (x + size * length * direction(slope, norm)).clamp(space.lo, space.hi)


def smallest_step(
    targets: Sequence[Target] | Ensemble,
    x: Tensor,
    y: Tensor,
    goal: Goal | None = None,
    *,
    norm: str = "inf",
    spacing: float = 0.1 / 255,
    largest: float = 64 / 255,
) -> Tensor:
    """`[B]`: the first multiple of `spacing` for which `fast_gradient` reaches the goal on every member, up to `largest`
    (infinite where none does): the paper's search for the least distortion.
    """
    group, goal = targets if isinstance(targets, Ensemble) else Ensemble(targets), goal or Goal()
    group.check(x, y, goal)
    if not 0 < spacing <= largest:
        raise ConfigError(f"spacing must be positive and at most largest, got {spacing} and {largest}")
    found = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
    left = torch.arange(len(x), device=x.device)
    with group.quiet():
        slope = -group.gradient(x, y, goal)[0]
        for i in range(1, int(largest / spacing + 1e-6) + 1):
            moved = _along(x[left], slope[left], i * spacing, norm, group.space)
            done = group.reached(moved, y[left], goal.part(left))
            found[left[done]] = i * spacing
            left = left[~done]
            if not len(left):
                break
    return found


def at_rmsd(
    make: Callable[[float], float], wanted: float, start: float, tolerance: float = 0.03, tries: int = 8
) -> float:
    """The setting (learning rate or size) for which `make(setting)`, the RMSD that it leads to, is `wanted` within
    `tolerance`; by regula falsi on logarithms, `make` rising. Raises `ConfigError` when it is not found.
    """
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    setting, seen = start, 0.0
    for _ in range(tries):
        seen = make(setting)
        if abs(seen / wanted - 1) <= tolerance:
            return setting
        point = (math.log(setting), math.log(max(seen, 1e-9)))
        low, high = (point, high) if seen < wanted else (low, point)
        if low is None or high is None:
            setting *= min(max(wanted / max(seen, 1e-9), 0.2), 5.0)
        else:
            share = (math.log(wanted) - low[1]) / (high[1] - low[1])
            setting = math.exp(low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0]))
    raise ConfigError(
        f"no setting was found that gives an RMSD of {wanted:g}; the last, {setting:.3g}, gave {seen:.3g}"
    )


def gaussian_noise(x: Tensor, wanted: float, space: Space, generator: torch.Generator) -> Tensor:
    """`x` plus Gaussian noise, clipped, with a mean RMSD of `wanted` after clipping: the control."""
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) * (space.width / 255)

    def size(scale: float) -> float:
        return float(rmsd(x, (x + scale * noise).clamp(space.lo, space.hi), space).mean())

    scale = at_rmsd(size, wanted, wanted, tolerance=1e-3, tries=40)
    return (x + scale * noise).clamp(space.lo, space.hi)


@dataclass(frozen=True)
class Moves:
    """An attack of one kind at one distortion: `(targets, x, y, goal) -> x_adv`.

    `size` is the learning rate ("optimise") or the step ("sign", "gradient"), a fraction of the range. With `wanted`, the RMSD
    on 0..255, it is only where the search starts: it is fitted on the first `probe` inputs.
    """

    kind: str = "optimise"
    size: float = 4 / 255
    steps: int = 100
    update: str = "joint"
    wanted: float | None = None
    probe: int = 25

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"the kind of attack must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def __call__(self, targets: Sequence[Target], x: Tensor, y: Tensor, goal: Goal) -> Tensor:
        group = Ensemble(targets)
        size = self.size
        if self.wanted is not None:
            few = slice(0, self.probe)

            def grown(trial: float) -> float:
                return float(rmsd(x[few], self._one(group, x[few], y[few], goal.part(few), trial), group.space).mean())

            size = at_rmsd(grown, self.wanted, size)
        return self._one(group, x, y, goal, size)

    def _one(self, group: Ensemble, x: Tensor, y: Tensor, goal: Goal, size: float) -> Tensor:
        if self.kind == "optimise":
            return ensemble_attack(group, x, y, goal, lr=size, steps=self.steps, update=self.update).x_adv
        return fast_gradient(group, x, y, goal, size=size, norm="inf" if self.kind == "sign" else "2")


# -- who is fooled -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def right_for_all(targets: Sequence[Target], x: Tensor, y: Tensor) -> Tensor:
    """`[B]` bool: every target has the clean input right; others are no evidence of an attack."""
    return torch.stack([t.logits(x).argmax(1) == y for t in targets]).all(0)


@torch.no_grad()
def hit_rate(target: Target, x_adv: Tensor, y: Tensor, goal: Goal) -> float:
    """The paper's measure: matching rate (share taken for the wanted class) when targeted, else accuracy."""
    logits = target.logits(x_adv)
    hits = goal.reached(logits, y) if goal.targeted else logits.argmax(1) == y
    return float(hits.float().mean())


Attack = Callable[[Sequence[Target], Tensor, Tensor, Goal], Tensor]


def transfer_matrix(
    targets: Mapping[str, Target], x: Tensor, y: Tensor, attack: Attack, goal: Goal | None = None
) -> list[Row]:
    """One row per source: RMSD, and the rate (`hit_rate`) at every target, of examples made for that source alone."""
    goal = goal or Goal()
    return [rates(targets, name, [source], x, y, attack, goal) for name, source in targets.items()]


def leave_one_out(
    targets: Mapping[str, Target], x: Tensor, y: Tensor, attack: Attack, goal: Goal | None = None
) -> list[Row]:
    """One row per target left out: RMSD, and the rate at every target, of examples made for all others."""
    if len(targets) < 2:
        raise ConfigError("leaving one out needs two targets or more")
    goal = goal or Goal()
    rows = []
    for name in targets:
        rows.append(rates(targets, f"-{name}", [t for n, t in targets.items() if n != name], x, y, attack, goal))
    return rows


def rates(
    targets: Mapping[str, Target],
    name: str,
    sources: Sequence[Target],
    x: Tensor,
    y: Tensor,
    attack: Attack,
    goal: Goal,
) -> Row:
    """One row: RMSD, and the rate at every target, of what `attack` makes for `sources`."""
    moved = attack(sources, x, y, goal)
    if moved.shape != x.shape:
        raise ShapeError(f"the attack must give inputs {list(x.shape)}, got {list(moved.shape)}")
    row: dict[str, Any] = {"source": name, "RMSD": float(rmsd(x, moved, sources[0].space).mean())}
    return {**row, **{judge: hit_rate(target, moved, y, goal) for judge, target in targets.items()}}
