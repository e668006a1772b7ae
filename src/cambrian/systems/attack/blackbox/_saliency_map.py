"""The saliency-map attack (JSMA, Papernot et al. 2016, arXiv 1511.07528), for many inputs at once.

Shapes: B batch, D values of one input, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.inspect.target import Target

SCORES = ("logit", "probability")
MAPS = ("gradient", "jacobian")


def outputs(module: nn.Module, x: Tensor, scores: str) -> Tensor:
    """`[B,K]`: logits, or probabilities."""
    if scores not in SCORES:
        raise ConfigError(f"scores must be one of {', '.join(SCORES)}, not {scores!r}")
    logits = module(x)
    return logits if scores == "logit" else logits.softmax(1)


def saliency_map(
    module: nn.Module, x: Tensor, wanted: Tensor, *, kind: str = "jacobian", scores: str = "logit", sign: int = 1
) -> Tensor:
    """How useful it is to move each value of `x [B,...]` by `sign` towards class `wanted [B]`: `[B,D]`.

    "jacobian" is the paper's map from two gradients, zero where a value does not serve both ends; "gradient" ranks by the
    wanted class alone.
    """
    if kind not in MAPS:
        raise ConfigError(f"the map must be one of {', '.join(MAPS)}, not {kind!r}")
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        out = outputs(module, moved, scores)
        chosen = out.gather(1, wanted[:, None]).sum()
        (own,) = torch.autograd.grad(chosen, moved, retain_graph=kind == "jacobian")
        own = sign * own.flatten(1)
        if kind == "gradient":
            return own
        (every,) = torch.autograd.grad(out.sum(), moved)
    others = sign * every.flatten(1) - own
    return torch.where((own > 0) & (others < 0), own * others.abs(), 0.0)


@torch.no_grad()
def jsma(
    target: Target,
    x: Tensor,
    wanted: Tensor,
    *,
    theta: float = 1.0,
    gamma: float = 0.1,
    kind: str = "jacobian",
    scores: str = "logit",
    pair: int = 2,
) -> Tensor:
    """Move the `pair` most salient values of each input by `theta` (fraction of the range, either sign), again and again,
    until `target` takes it for `wanted [B]`, until more than the share `gamma` of its values was touched, or until nothing
    is left to move. Returns `[B,...]` in the box.
    """
    target.check(x, wanted)
    if not 0 < abs(theta) <= 1 or not 0 < gamma <= 1 or pair < 1:
        raise ConfigError(f"theta in [-1, 1] without 0, gamma in (0, 1] and pair >= 1, got {theta}, {gamma}, {pair}")
    space, flat = target.space, x.detach().clone().flatten(1)
    sign, stop = (1, space.hi) if theta > 0 else (-1, space.lo)
    free, touched = flat != stop, torch.zeros_like(flat, dtype=torch.bool)
    with target.quiet() as module:
        active = torch.nonzero((module(x).argmax(1) != wanted) & free.any(1)).flatten()
        while len(active):
            now = flat[active]
            usefulness = saliency_map(
                module, now.view(-1, *x.shape[1:]), wanted[active], kind=kind, scores=scores, sign=sign
            )
            best = usefulness.masked_fill(~free[active], float("-inf")).topk(pair, dim=1).indices
            raised = now.gather(1, best) + theta * space.width
            now.scatter_(1, best, raised.clamp(space.lo, space.hi))
            flat[active] = now
            free[active] = now != stop
            touched[active] = touched[active].scatter(1, best, True)
            found = module(now.view(-1, *x.shape[1:])).argmax(1) == wanted[active]
            spent = touched[active].float().mean(1) > gamma
            active = active[~found & ~spent & free[active].any(1)]
    return flat.view_as(x)
