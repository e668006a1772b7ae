"""The linear view in closed form, the objective of adversarial training, diagnostics, and the paper's small models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.attack import Goal, ascend, direction, finish, input_gradient, random_start
from cambrian.inspect.hooks import find
from cambrian.inspect.results import AttackResult
from cambrian.inspect.target import Space, Target
from cambrian.nn.hub import Pretrained

DIRECTIONS = ("gradient", "noise", "permuted", "rotate", "universal")


# -- the attack and its controls ---------------------------------------------------------------------------------------


def fgsm(target: Target, x: Tensor, y: Tensor, eps: float, norm: str = "inf", goal: int | None = None) -> AttackResult:
    """One gradient step of size `eps` (a fraction of the input range) away from `y`, or towards class `goal`."""
    return ascend(target, x, y, eps=eps, norm=norm, goal=Goal(goal))


def control(
    target: Target, x: Tensor, y: Tensor, eps: float, kind: str, generator: torch.Generator, norm: str = "inf"
) -> AttackResult:
    """What FGSM is compared with, at the same size:

    "noise" random signs; "permuted" the gradient's signs shuffled over the positions of each input; "rotate" the
    input turned by the angle `eps` towards the gradient, its length kept; "universal" one step for all inputs, the
    sign of their mean gradient.
    """
    target.check(x, y)
    goal, size = Goal(), eps * target.space.width
    queries = {"forward": 0, "backward": 0}
    if kind == "noise":
        step, clean = random_start(x, size, norm, "sign" if norm == "inf" else "uniform", generator), None
    else:
        with target.quiet() as module:
            grad, _, clean = input_gradient(module, x, y, goal)
        queries = {"forward": len(x), "backward": len(x)}
        if kind == "permuted":
            order = torch.rand(len(x), x[0].numel(), generator=generator).argsort(1).to(x.device)
            step = size * direction(grad, norm).flatten(1).gather(1, order).view_as(x)
        elif kind == "rotate":
            step = _turn(x, grad, eps) - x
        elif kind == "universal":
            step = (size * direction(grad.mean(0, keepdim=True), norm)).expand_as(x)
        else:
            raise ConfigError(f"direction must be one of {', '.join(DIRECTIONS)}, not {kind!r}")
    moved = (x + step).clamp(target.space.lo, target.space.hi)
    bound = None if kind == "rotate" else eps
    return finish(target, x, y, moved, eps=bound, norm=norm, goal=goal, queries=queries, clean=clean)


def _turn(x: Tensor, grad: Tensor, angle: float) -> Tensor:
    flat, slope = x.flatten(1), grad.flatten(1)
    length = flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit = flat / length
    side = direction(slope - (slope * unit).sum(1, keepdim=True) * unit, "2")
    turned = torch.tensor(angle, dtype=x.dtype)
    return (length * (turned.cos() * unit + turned.sin() * side)).view_as(x)


# -- adversarial training ----------------------------------------------------------------------------------------------


class _Known(torch.autograd.Function):
    """A loss whose gradients in the parameters have been computed already: backward hands them out instead of
    recomputing.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: tuple[Tensor | None, ...], *params: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        return (None, None, *(None if g is None else g * outer[0] for g in ctx.grads))


def adversarial_objective(
    model: nn.Module,
    objective: Callable[[], tuple[Tensor, Mapping[str, Any]]],
    *,
    eps: float,
    space: Space,
    a: float = 0.5,
    norm: str = "inf",
    layer: str = "",
) -> tuple[Tensor, dict[str, Any]]:
    """`a J(x) + (1 - a) J(x')`, x' from the current parameters, no gradient through the sign (section 6).

    `objective()` must call `model` once on inputs in `space` and return the loss. One backward pass of the clean
    loss gives both the input gradient and the parameter gradients, so that a step costs two forward and two
    backward passes. With `layer` the input of that submodule is moved instead, by `eps` times its standard
    deviation, without a box.
    """
    part = find(model, layer) if layer else model
    seen: list[Tensor] = []

    def record(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)
        seen.append(x)
        return (x, *inputs[1:])

    clean, scalars = _hooked(part, record, objective)
    if len(seen) != 1:
        raise CapabilityError(f"adversarial training needs one forward pass of the model per loss, saw {len(seen)}")
    params = [p for p in model.parameters() if p.requires_grad]
    slope, *grads = torch.autograd.grad(clean, [seen[0], *params], allow_unused=True)
    size = eps * (float(seen[0].detach().std()) if layer else space.width)

    def move(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        moved = (inputs[0] if layer else seen[0].detach()) + size * direction(slope, norm)
        return (moved if layer else moved.clamp(space.lo, space.hi), *inputs[1:])

    adversarial, _ = _hooked(part, move, objective)
    total = a * _Known.apply(clean.detach(), tuple(grads), *params) + (1 - a) * adversarial
    return total, {**scalars, "adversarial loss": adversarial.detach()}


def _hooked(
    part: nn.Module, hook: Callable[..., Any], objective: Callable[[], tuple[Tensor, Mapping[str, Any]]]
) -> tuple[Tensor, Mapping[str, Any]]:
    handle = part.register_forward_pre_hook(hook)
    try:
        return objective()
    finally:
        handle.remove()


# -- the linear view ---------------------------------------------------------------------------------------------------


def logistic_adversarial_loss(w: Tensor, b: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Mean loss of logistic regression on its own FGSM examples, without making them: `w [D]`, `x [B,D]`, `y [B]`
    in {-1, 1}.
    """
    if not bool(((y == 1) | (y == -1)).all()):
        raise ShapeError("labels of logistic regression must be -1 or 1 here")
    return F.softplus(eps * w.abs().sum() - y * (x @ w + b)).mean()


@torch.no_grad()
def logit_paths(target: Target, x: Tensor, y: Tensor, eps: float, points: int = 17) -> tuple[Tensor, Tensor]:
    """Logits along `x + t sign(grad)`: `t [T]` from -eps to eps (fractions of the range, not clipped) and logits
    `[T,B,K]`.
    """
    target.check(x, y)
    steps = torch.linspace(-eps, eps, points, device=x.device, dtype=x.dtype)
    with target.quiet() as module:
        grad, _, _ = input_gradient(module, x, y, Goal())
        return steps, torch.stack([module(x + t * target.space.width * grad.sign()) for t in steps])


def line_fit(steps: Tensor, values: Tensor) -> Tensor:
    """R^2 of straight lines through `values [T,B]` over `steps [T]`; 1 for a constant."""
    t = steps - steps.mean()
    centred = values - values.mean(0)
    slope = (t[:, None] * centred).sum(0) / t.square().sum()
    rest = (centred - slope * t[:, None]).square().sum(0)
    total = centred.square().sum(0)
    return torch.where(total > 0, 1 - rest / total.clamp_min(1e-30), 1.0)


@torch.no_grad()
def rubbish_error(target: Target, n: int, generator: torch.Generator, threshold: float = 0.5) -> tuple[float, float]:
    """Gaussian noise clipped to the box: the share taken for some class with confidence above `threshold`, and that
    mean confidence.
    """
    space = target.space
    noise = torch.randn(n, *space.shape, generator=generator) * (space.width / 4) + (space.lo + space.hi) / 2
    sure = target.logits(noise.clamp(space.lo, space.hi)).softmax(1).amax(1)
    fooled = sure > threshold
    return float(fooled.float().mean()), float(sure[fooled].mean()) if bool(fooled.any()) else 0.0


@torch.no_grad()
def transfer_matrix(targets: Mapping[str, Target], x: Tensor, y: Tensor, eps: float) -> list[dict[str, Any]]:
    """Error of every target on the FGSM examples of every other: one row per source."""
    rows = []
    for source, made_for in targets.items():
        moved = fgsm(made_for, x, y, eps).x_adv
        errors = {name: float((judge.logits(moved).argmax(1) != y).float().mean()) for name, judge in targets.items()}
        rows.append({"source": source, **errors})
    return rows


def weight_similarity(a: nn.Module, b: nn.Module) -> dict[str, float]:
    """Cosine between the equally named weight tensors of two networks of one architecture."""
    other = dict(b.named_parameters())
    pairs = {name: (p.flatten(), other[name].flatten()) for name, p in a.named_parameters() if p.dim() > 1}
    return {name: float(F.cosine_similarity(one.detach(), two.detach(), dim=0)) for name, (one, two) in pairs.items()}


# -- the paper's small models ------------------------------------------------------------------------------------------


class MaxoutNet(Pretrained, nn.Module):
    """Fully connected maxout network (Goodfellow et al. 2013): each unit is the largest of `pieces` linear
    functions.
    """

    def __init__(
        self, *, inputs: int, classes: int, units: Sequence[int] = (240, 240), pieces: int = 5, dropout: float = 0.0
    ) -> None:
        super().__init__()
        sizes = [inputs, *units]
        self.pieces = pieces
        self.hidden = nn.ModuleList(nn.Linear(i, o * pieces) for i, o in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """`x [B,...]` -> logits `[B,K]`."""
        h = x.flatten(1)
        for layer in self.hidden:
            h = self.dropout(layer(h).unflatten(1, (-1, self.pieces)).amax(2))
        return self.head(h)


class RBFNet(Pretrained, nn.Module):
    """Shallow RBF classifier: logit of class k is `-(x - mu_k)^2 . beta_k + c_k`, confident only near its centre
    (section 7).
    """

    def __init__(self, *, inputs: int, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(classes, inputs))
        self.log_widths = nn.Parameter(torch.full((classes, inputs), -2.0))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.nothing = nn.Parameter(torch.tensor(-5.0))  # the level of "no class": keeps far inputs unsure

    def forward(self, x: Tensor) -> Tensor:
        """`x [B,...]` -> logits `[B,K]`; far from every centre they are all equal."""
        gap = x.flatten(1)[:, None] - self.centres
        logits = self.bias - (gap.square() * self.log_widths.exp()).sum(2)
        return torch.logaddexp(logits, self.nothing)
