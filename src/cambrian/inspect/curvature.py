"""How strongly the loss bends in each weight: the diagonal of the Hessian, or what stands for it.

    gauss-newton:  h = mean_x sum_y p(y|x) (d log p(y|x) / dw)^2         exact diagonal of the Gauss-Newton matrix of
                                                                         cross-entropy; vmap(grad) over samples and classes
    fisher:        the same with one y drawn from p(.|x) for each x      unbiased, K times cheaper
    hutchinson:    h = mean_z z * (H z),  z = +-1                        unbiased for the Hessian itself (may be negative)
    adam:          h = sqrt(v),  v the running mean of squared batch gradients, bias-corrected, weights held still
    exact:         h_i = (H e_i)_i, one product for each weight          for small networks only

Squaring the gradient of a batch's mean loss instead of each sample's own is not a Gauss-Newton diagonal: it shrinks
with the batch. `adam` is such a figure, and only its square root and its order are of use.

Shapes: B batch, K classes; results have the weights' shapes, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.target import Target

WAYS = ("gauss-newton", "fisher", "hutchinson", "adam", "exact")
EXACT_LIMIT = 5000  # weights for which one product each is still acceptable


def hessian_diag(
    target: Target,
    names: Sequence[str],
    *,
    n: int = 1000,
    how: str = "gauss-newton",
    generator: torch.Generator,
    split: str = "train",
    batch: int = 50,
    probes: int = 20,
) -> dict[str, Tensor]:
    """The diagonal for the parameters `names`, from `n` samples of a split (all when it has fewer), in eval mode.

    `probes` are the random vectors of hutchinson, for each batch. Estimates may be negative or zero: see `floored`.
    Raises `ConfigError` for an unknown way, `CapabilityError` when the network is too large for exact, or when its
    operations cannot be differentiated as the way needs.
    """
    if how not in WAYS:
        raise ConfigError(f"curvature is one of {', '.join(WAYS)}, not {how!r}")
    own = dict(target.module.named_parameters())
    unknown = [name for name in names if name not in own]
    if unknown or not names:
        raise ConfigError(f"the network has no parameter {unknown[0]!r}" if unknown else "name at least one parameter")
    seed = int(torch.randint(2**31, (), generator=generator))
    batches = [(x, y) for x, y, _ in target.batches(split, min(n, target.size(split)), seed, batch)]
    weights = {name: own[name].detach() for name in names}
    if how == "exact" and sum(w.numel() for w in weights.values()) > EXACT_LIMIT:
        raise CapabilityError(f"exact curvature is for at most {EXACT_LIMIT} weights; use gauss-newton or hutchinson")
    with target.quiet() as module:
        if how in ("gauss-newton", "fisher"):
            found = _per_sample(module, weights, batches, generator if how == "fisher" else None)
        elif how == "adam":
            return _moments(module, weights, batches)
        elif how == "hutchinson":
            found = _hutchinson(module, weights, batches, probes, generator)
        else:
            found = _exact(module, weights, batches)
    total = sum(len(x) for x, _ in batches)
    return {name: value / total for name, value in found.items()}


def floored(diagonal: dict[str, Tensor], share: float = 1e-4) -> dict[str, Tensor]:
    """Negative estimates become 0, and every one gets a floor: `share` of the mean over all weights (1 where that is 0).

    Clusters of weights without any curvature would have no mean.
    """
    kept = {name: value.clamp_min(0.0) for name, value in diagonal.items()}
    count = sum(value.numel() for value in kept.values())
    mean = sum(float(value.double().sum()) for value in kept.values()) / max(count, 1)
    return {name: value + (share * mean if mean > 0 else 1.0) for name, value in kept.items()}


def _sums(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(w) for name, w in weights.items()}


def _per_sample(
    module: nn.Module, weights: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]], draw: torch.Generator | None
) -> dict[str, Tensor]:
    """Sums over samples of squared gradients of log p(y|x): y drawn, or all y by their probability."""

    def log_p(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional_call(module, parameters, (x[None],)).log_softmax(1)[0].gather(0, y[None])[0]

    slopes, total = vmap(grad(log_p), in_dims=(None, 0, 0)), _sums(weights)
    for x, _ in batches:
        with torch.no_grad():
            p = module(x).softmax(1)
        if draw is not None:
            drawn = torch.multinomial(p.cpu(), 1, generator=draw).to(p.device)
            classes = [(drawn[:, 0], torch.ones_like(p[:, 0]))]
        else:
            classes = [(torch.full((len(x),), y, device=p.device), p[:, y]) for y in range(p.shape[1])]
        for y, share in classes:
            for name, slope in slopes(weights, x, y).items():
                total[name] += torch.einsum("b,b...->...", share, slope.square_())
    return total


def _loss_slopes(module: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor):
    """Leaves for the weights and the gradient of the batch's summed loss in them, which can be differentiated again."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        loss = F.cross_entropy(functional_call(module, leaves, (x,)), y, reduction="sum")
        slopes = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    return list(leaves.values()), slopes


def _hutchinson(
    module: nn.Module,
    weights: dict[str, Tensor],
    batches: list[tuple[Tensor, Tensor]],
    probes: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    total = _sums(weights)
    for x, y in batches:
        leaves, slopes = _loss_slopes(module, weights, x, y)
        for _ in range(probes):
            signs = [
                (torch.randint(2, w.shape, generator=generator) * 2 - 1).to(w.device, w.dtype) for w in weights.values()
            ]
            products = torch.autograd.grad(slopes, leaves, signs, retain_graph=True)
            for name, sign, product in zip(weights, signs, products, strict=True):
                total[name] += sign * product / probes
    return total


def _exact(module: nn.Module, weights: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    total = _sums(weights)
    for x, y in batches:
        leaves, slopes = _loss_slopes(module, weights, x, y)
        for name, leaf, slope in zip(weights, leaves, slopes, strict=True):
            flat, into = slope.flatten(), total[name].view(-1)
            for i in range(len(flat)):
                (row,) = torch.autograd.grad(flat[i], leaf, retain_graph=True)
                into[i] += row.flatten()[i]
    return total


def _moments(
    module: nn.Module, weights: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]], beta: float = 0.999
) -> dict[str, Tensor]:
    """`sqrt(v)` of Adam at these weights: the running mean of squared gradients of the mean loss."""
    v = _sums(weights)
    for x, y in batches:
        _, slopes = _loss_slopes(module, weights, x, y)
        for name, slope in zip(weights, slopes, strict=True):
            v[name].mul_(beta).add_((slope.detach() / len(x)).square(), alpha=1 - beta)
    return {name: (value / (1 - beta ** len(batches))).sqrt() for name, value in v.items()}
