"""The gradient of a score, its variants, and how far a map is from adding up to the score.

Everything runs with the network in eval mode and without gradients in its parameters; the inputs are never edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.folding import prepared
from cambrian.inspect.hooks import find
from cambrian.inspect.maps import FILLS, filled, pass_size, uncounted
from cambrian.inspect.target import Target

METHODS = ("gradient", "gradient-x-input", "guided", "deconvnet", "integrated", "smoothgrad", "grad-cam")
ADDITIVE = ("gradient-x-input", "integrated")  # whose sum can be held against the change of the score
QUANTITIES = ("logit", "prob", "log-odds")
RULES = ("guided", "deconvnet")
QUADRATURES = ("gauss-legendre", "left", "right", "middle", "trapezoid")
BASELINES = ("zero", "noise", *FILLS)


# -- the score and its gradient ----------------------------------------------------------------------------------------


def score(logits: Tensor, y: Tensor, of: str = "logit") -> Tensor:
    """`[B]` of logits `[B,K]`: the class's logit, its probability, or its log-odds log p / (1 - p)."""
    own = logits.gather(1, y[:, None])[:, 0]
    if of == "logit":
        return own
    if of == "prob":
        return logits.softmax(1).gather(1, y[:, None])[:, 0]
    if of == "log-odds":
        return own - logits.scatter(1, y[:, None], float("-inf")).logsumexp(1)
    raise ConfigError(f"of must be one of {', '.join(QUANTITIES)}, not {of!r}")


def _slope(module: nn.Module, x: Tensor, y: Tensor, of: str, check: Callable[[Tensor], None] | None = None) -> Tensor:
    """Gradient of the summed scores in `x`, in one pass; use inside `target.quiet()`."""
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        total = score(module(moved.clone()), y, of).sum()  # the clone is there for networks that edit their input
        if check is not None:
            check(total)
        return torch.autograd.grad(total, moved)[0]


def gradient(target: Target, x: Tensor, y: Tensor, *, of: str = "logit", cap_mb: float | None = None) -> Tensor:
    """`d score(y) / dx`, signed, shape of `x`; `cap_mb` bounds the activations of one pass (see `pass_size`).

    Raises `ShapeError` for bad inputs, `CapabilityError` for targets that take tokens.
    """
    _check(target, x, y)
    size = len(x) if cap_mb is None else pass_size(target, cap_mb)
    with target.quiet() as module:
        return torch.cat([_slope(module, a, b, of) for a, b in zip(x.split(size), y.split(size), strict=True)])


# -- guided backpropagation and the deconvnet --------------------------------------------------------------------------


class _Rectify(torch.autograd.Function):
    """ReLU with another backward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, guided: bool) -> Tensor:
        out, ctx.guided = h.clamp_min(0), guided
        if guided:
            ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        if not ctx.guided:
            return outer[0].clamp_min(0), None
        return torch.ops.aten.threshold_backward(outer[0], ctx.saved_tensors[0], 0).clamp_min_(0), None  # g (h > 0)


class _Replace(TorchFunctionMode):
    """Inside, every call of relu (module, function or method, in place or not) follows the rule."""

    OUT = (F.relu, torch.relu, Tensor.relu)
    IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided, self.seen = guided, 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.OUT and func not in self.IN_PLACE:
            return func(*args, **kwargs)
        self.seen += 1
        h = args[0] if args else kwargs["input"]
        inplace = func in self.IN_PLACE or kwargs.get("inplace", len(args) > 1 and args[1])
        out = _Rectify.apply(h, self.guided)
        return h.copy_(out) if inplace else out


HIDDEN = ("ReluBackward", "ClampMinBackward", "ThresholdBackward", "HardtanhBackward")


@contextmanager
def relu_rule(rule: str) -> Iterator[Callable[[Tensor], None]]:
    """Forward passes made inside the `with` have the backward rule "guided" or "deconvnet" at every ReLU.

    Gives a function to call on what the pass computed: it raises `CapabilityError` when the pass had no ReLU that could be
    replaced, or has rectifiers (clamp, threshold, scripted code) that were not.
    """
    if rule not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
    mode = _Replace(rule == "guided")

    def check(total: Tensor) -> None:
        left = {node.name() for node in _operations(total) if _rectifies(node)}
        if left:
            raise CapabilityError(
                f"{rule} backpropagation cannot reach all rectifiers of the network: {sorted(left)[0]}"
            )
        if not mode.seen:
            raise CapabilityError(f"{rule} backpropagation changes ReLUs, and the network calls none that is visible")

    with mode:
        yield check


def _rectifies(node: Any) -> bool:
    """Whether a backward operation is that of a ReLU in disguise; a clamp with two ends (of pixels) is none."""
    one_sided = node.name().startswith("ClampBackward") and getattr(node, "_saved_max", None) is None
    return one_sided or node.name().startswith(HIDDEN)


def _operations(out: Tensor) -> set[Any]:
    """The operations in the graph of `out`."""
    seen: set[Any] = set()
    stack = [out.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return seen


def _ruled(target: Target, x: Tensor, y: Tensor, rule: str, of: str) -> Tensor:
    with target.quiet() as module, relu_rule(rule) as check:
        return _slope(module, x, y, of, check)


# -- integrated gradients ----------------------------------------------------------------------------------------------


def quadrature(n: int, rule: str = "gauss-legendre") -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights `[n]` of an integral over [0, 1]; the weights sum to 1."""
    if n < 1 or (rule == "trapezoid" and n < 2):
        raise ConfigError(f"{rule} needs at least {2 if rule == 'trapezoid' else 1} steps, not {n}")
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return (nodes + 1) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n), weights
    starts = {"left": 0.0, "middle": 0.5, "right": 1.0}
    if rule not in starts:
        raise ConfigError(f"quadrature must be one of {', '.join(QUADRATURES)}, not {rule!r}")
    return (np.arange(n) + starts[rule]) / n, np.full(n, 1 / n)


def baseline_of(target: Target, x: Tensor, kind: str | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The input without evidence, shape of `x`: "zero" (as far as the box allows), "noise" (uniform in the box), or what
    `inspect.maps.filled` offers: "grey", "mean", "blur", "lo", "hi", a tensor.
    """
    space = target.space
    if isinstance(kind, str) and kind == "zero":
        return torch.full_like(x, min(max(0.0, space.lo), space.hi))
    if isinstance(kind, str) and kind == "noise":
        generator = generator or torch.Generator().manual_seed(0)
        return torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) * space.width + space.lo
    if isinstance(kind, str) and kind in ("mean", "blur") and space.kind != "image":
        raise CapabilityError(f"the baseline {kind!r} is for pictures; this target takes {space.kind}")
    return filled(target, x, kind)


def integrated_gradients(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    baseline: str | Tensor | Sequence[str | Tensor] = "zero",
    n: int = 50,
    quad: str = "gauss-legendre",
    of: str = "logit",
    cap_mb: float | None = None,
    fold: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`(x - x0)` times the mean gradient on the straight line from `x0` to `x` (eq. 1), shape of `x`; several baselines are
    averaged.

    All (picture, node) pairs are one stream of samples, cut into passes whose activations stay under `cap_mb`.
    `fold` folds batch norms into convolutions meanwhile (see `inspect.folding`): faster, and equal to rounding except where
    a unit lies within rounding of its kink, which moves a pixel by up to one gradient's share 1 / n.
    """
    _check(target, x, y)
    kinds = [baseline] if isinstance(baseline, (str, Tensor)) else list(baseline)
    if not kinds:
        raise ConfigError("integrated gradients need at least one baseline")
    nodes, weights = (torch.from_numpy(v).to(x) for v in quadrature(n, quad))
    size, total = pass_size(target, cap_mb), torch.zeros_like(x)
    with target.quiet() as quiet, prepared(quiet, x[:2]) if fold else nullcontext(quiet) as module:
        for kind in kinds:
            start = baseline_of(target, x, kind, generator)
            total += (x - start) * _path_mean(module, x, start, y, nodes, weights, of, size)
    return total / len(kinds)


def _path_mean(
    module: nn.Module, x: Tensor, start: Tensor, y: Tensor, nodes: Tensor, weights: Tensor, of: str, size: int
) -> Tensor:
    """Weighted sum over the nodes of the gradient at `start + node (x - start)`."""
    step, total, n = x - start, torch.zeros_like(x), len(nodes)
    for pairs in torch.arange(len(x) * n, device=x.device).split(size):
        who, at = pairs // n, pairs % n
        wide = (-1, *[1] * (x.dim() - 1))
        points = torch.addcmul(start[who], step[who], nodes[at].view(wide))
        total.index_add_(0, who, _slope(module, points, y[who], of) * weights[at].view(wide))
    return total


def completeness_gap(
    target: Target,
    x: Tensor,
    y: Tensor,
    maps: Tensor,
    *,
    baseline: str | Tensor | Sequence[str | Tensor] = "zero",
    of: str = "logit",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`[B]`: |sum of the map - (F(x) - F(x0))| / |F(x) - F(x0)|. Give a fresh generator of the map's seed for "noise"."""
    _check(target, x, y)
    if maps.shape != x.shape:
        raise ShapeError(f"a map that adds up has the input's shape {list(x.shape)}, got {list(maps.shape)}")
    kinds = [baseline] if isinstance(baseline, (str, Tensor)) else list(baseline)
    with torch.no_grad(), target.quiet() as module:
        low = [score(module(baseline_of(target, x, kind, generator)), y, of) for kind in kinds]
        rise = score(module(x), y, of) - torch.stack(low).mean(0)
    return (maps.flatten(1).sum(1) - rise).abs() / rise.abs().clamp_min(1e-12)


# -- SmoothGrad and Grad-CAM -------------------------------------------------------------------------------------------


def smooth(explain: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Mean of `explain(x + noise_i, y)` over `noise [n,B,...]`; noisy pictures are not clipped."""
    if noise.dim() != x.dim() + 1 or noise.shape[1:] != x.shape or not len(noise):
        raise ShapeError(f"noise must be [n, {', '.join(map(str, x.shape))}] with n >= 1, got {list(noise.shape)}")
    return torch.stack([explain(x + one, y) for one in noise]).mean(0)


def _smoothgrad(
    target: Target, x: Tensor, y: Tensor, of: str, samples: int, sigma: float, generator: torch.Generator | None
) -> Tensor:
    if samples < 1 or not 0 <= sigma <= 1:
        raise ConfigError(f"SmoothGrad needs samples >= 1 and sigma in 0..1 of the range, got {samples} and {sigma}")
    generator = generator or torch.Generator().manual_seed(0)
    noise = torch.randn((samples, *x.shape), generator=generator, dtype=x.dtype).to(x.device)
    with target.quiet() as module:
        return smooth(lambda a, b: _slope(module, a, b, of), x, y, noise * (sigma * target.space.width))


def last_spatial(target: Target) -> str:
    """Where Grad-CAM reads by default: the input of the first layer that ends the spatial part (global pooling, flatten),
    else the output of the last spatial layer. Raises `CapabilityError` when there is none.
    """
    with uncounted():
        layers = target.layers()
    spatial = [i for i, layer in enumerate(layers) if len(layer.shape_out) == 4 and max(layer.shape_out[2:]) > 1]
    if not spatial:
        raise CapabilityError("Grad-CAM needs a layer with feature maps, and the network has none")
    after = layers[spatial[-1] + 1 :]
    ends = after and len(after[0].shape_in) == 4 and after[0].shape_in[2:] == layers[spatial[-1]].shape_out[2:]
    return f"{after[0].name}:in" if ends else layers[spatial[-1]].name


def grad_cam(
    target: Target, x: Tensor, y: Tensor, *, layer: str | None = None, of: str = "logit", upsample: str = "bilinear",
    rectify: bool = True,
) -> Tensor:  # fmt: skip
    """Grad-CAM `[B,1,H,W]` of a layer's output (`"name:in"`: its input), scaled up to the picture ("bilinear", "nearest"),
    or `[B,1,h,w]` as it is with "none".
    """
    _check(target, x, y)
    if target.space.kind != "image":
        raise CapabilityError(f"Grad-CAM is for pictures; this target takes {target.space.kind}")
    name = layer or last_spatial(target)
    with target.quiet() as module, torch.enable_grad(), layer_outputs(module, name) as held:
        total = score(module(x.detach().clone()), y, of).sum()
        if len(held) != 1 or held[0].dim() != 4:
            what = f"ran {len(held)} times" if len(held) != 1 else f"gives {list(held[0].shape)}, not maps [B,K,h,w]"
            raise CapabilityError(f"Grad-CAM reads one layer with feature maps; {name!r} {what}")
        slopes = torch.autograd.grad(total, held[0], allow_unused=True)[0] if total.requires_grad else None
    if slopes is None:
        raise CapabilityError(f"the score does not depend on layer {name!r}")
    cam = (slopes.mean((2, 3), keepdim=True) * held[0].detach()).sum(1, keepdim=True)
    cam = cam.clamp_min(0) if rectify else cam
    if upsample == "none":
        return cam
    if upsample not in ("bilinear", "nearest"):
        raise ConfigError(f"upsample must be bilinear, nearest or none, not {upsample!r}")
    corners = {"align_corners": False} if upsample == "bilinear" else {}
    return F.interpolate(cam, size=x.shape[2:], mode=upsample, **corners)


@contextmanager
def layer_outputs(module: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Collects the tensors at the output of `name` (`"name:in"`: its input) at every call; the graph starts there."""
    held: list[Tensor] = []
    part = find(module, name.removesuffix(":in"))

    def keep(value: Tensor) -> Tensor:
        held.append(value.detach().requires_grad_(True))
        return held[-1].clone()  # so that a later in-place ReLU leaves the held one as it was

    if name.endswith(":in"):
        handle = part.register_forward_pre_hook(lambda _m, inputs: (keep(inputs[0]), *inputs[1:]))
    else:
        handle = part.register_forward_hook(lambda _m, _i, out: keep(out))
    try:
        yield held
    finally:
        handle.remove()


# -- all of them under one name ----------------------------------------------------------------------------------------


def saliency(
    target: Target,
    x: Tensor,
    c: Tensor,
    method: str = "gradient",
    of: str = "logit",
    *,
    baseline: str | Tensor | Sequence[str | Tensor] = "zero",
    n: int = 50,
    quad: str = "gauss-legendre",
    samples: int = 25,
    sigma: float = 0.15,
    layer: str | None = None,
    cap_mb: float | None = None,
    fold: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The map of one of `METHODS` for classes `c [B]`: signed, shape of `x` (Grad-CAM: one channel).

    `baseline`, `n`, `quad`, `fold`: integrated (gradient-x-input multiplies by `x - baseline` too); `samples`, `sigma`: SmoothGrad;
    `layer`: Grad-CAM. Raises `ConfigError` for an unknown method, `CapabilityError` where it cannot apply to the network.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    _check(target, x, c)
    if method == "gradient":
        return gradient(target, x, c, of=of, cap_mb=cap_mb)
    if method == "gradient-x-input":
        start = baseline_of(target, x, baseline if isinstance(baseline, (str, Tensor)) else baseline[0], generator)
        return (x - start) * gradient(target, x, c, of=of, cap_mb=cap_mb)
    if method in RULES:
        return _ruled(target, x, c, method, of)
    if method == "integrated":
        settings = {"baseline": baseline, "n": n, "quad": quad, "cap_mb": cap_mb, "fold": fold, "generator": generator}
        return integrated_gradients(target, x, c, of=of, **settings)
    if method == "smoothgrad":
        return _smoothgrad(target, x, c, of, samples, sigma, generator)
    return grad_cam(target, x, c, layer=layer, of=of)


def _check(target: Target, x: Tensor, y: Tensor) -> None:
    if target.space.kind == "tokens":
        raise CapabilityError("gradient attributions need real-valued inputs; this target takes tokens")
    target.check(x, y)
