"""What DCGAN does with trained nets: probe features, steer latents, remove objects. Functions of models and
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, DataError
from cambrian.metrics.judges import Judge
from cambrian.nn.adversarial import DCGANGenerator

Decode = Callable[[Tensor], Tensor]


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], cost: float = 1e-3) -> float:
    """Test accuracy of an L2-regularised linear SVM on standardised features `[N, F]` with labels `[N]`."""
    from sklearn.svm import LinearSVC

    mean, deviation = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    machine = LinearSVC(C=cost, dual="auto", random_state=0)
    machine.fit(((train[0] - mean) / deviation).numpy(), train[1].numpy())
    return float(machine.score(((test[0] - mean) / deviation).numpy(), test[1].numpy()))


def exemplars(decode: Decode, prior: Callable[[int], Tensor], judge: Judge, label: int, count: int) -> Tensor:
    """Latents `[count, Z]` whose samples the judge is surest to be of class `label`, of 1,000 draws.

    Raises `DataError` where the judge sees fewer than `count` samples of that class.
    """
    z = torch.cat([prior(250) for _ in range(4)])
    probability = torch.cat([judge.probabilities(decode(part)) for part in z.split(250)])
    members = (probability.argmax(1) == label).nonzero().flatten()
    if len(members) < count:
        raise DataError(f"the generator makes {len(members)} samples of class {label} in {len(z)}, {count} are needed")
    best = probability[members, label].argsort(descending=True)[:count]
    return z[members[best]]


def arithmetic_trial(
    decode: Decode, pools: Sequence[Tensor], judge: Judge, target: int, triples: int, generator: torch.Generator
) -> tuple[float, float]:
    """Share of `triples` random combinations `a - b + c` of 3 exemplars each that the judge takes for class `target`:
    `(in latent space, in pixels)`. `pools` are the latents of the three concepts, `[P, Z]` each."""
    accepted = [0, 0]
    for _ in range(triples):
        chosen = [pool[torch.randperm(len(pool), generator=generator)[:3].to(pool.device)] for pool in pools]
        plus, minus, other = (z.mean(0, keepdim=True) for z in chosen)
        in_latent = decode(plus - minus + other)
        plus, minus, other = (decode(z).mean(0, keepdim=True) for z in chosen)
        in_pixels = (plus - minus + other).clamp(0, 1)
        for i, image in enumerate((in_latent, in_pixels)):
            accepted[i] += int(judge.probabilities(image).argmax(1)) == target
    return accepted[0] / triples, accepted[1] / triples


def nearest_neighbours(made: Tensor, train: Tensor) -> Tensor:
    """For each of `made [N, ...]` the row of `train [M, ...]` at least Euclidean distance: int64 `[N]`."""
    return torch.cdist(made.flatten(1), train.flatten(1)).argmin(1)


def inside(boxes: Tensor, edge: int) -> Tensor:
    """Which cells of an `edge x edge` map have their centre in each box `[N, 4]` (left, top, right, bottom in [-1,
    1]): bool `[N, edge, edge]`."""
    ticks = (torch.arange(edge) + 0.5) * (2 / edge) - 1
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))
    across, down = (ticks >= left) & (ticks <= right), (ticks >= top) & (ticks <= bottom)
    return down[:, :, None] & across[:, None, :]


@torch.no_grad()
def object_filters(generator: nn.Module, z: Tensor, boxes: Tensor, block: int) -> Tensor:
    """Which feature maps entering block `block` of a DCGAN generator draw an object (1511.06434, section 6.3.1).

    A logistic regression predicts from the activations at each place of the map whether it lies inside the
    object's box `[N, 4]` of the sample of `z [N, Z]`; maps with a positive weight are the object's: bool `[width]`.
    """
    if not isinstance(generator, DCGANGenerator):
        raise CapabilityError("removing filters needs a convolutional generator; train with arch=dcgan")
    from sklearn.linear_model import LogisticRegression

    maps = _entering(generator, z, block)
    places = maps.permute(0, 2, 3, 1).flatten(0, 2)
    answer = inside(boxes, maps.shape[-1]).flatten()
    if not bool(answer.any()) or bool(answer.all()):
        raise DataError("the boxes cover no place of the map, or all of it; there is nothing to tell apart")
    fitted = LogisticRegression(max_iter=300).fit(places.numpy(), answer.numpy())
    return torch.from_numpy(fitted.coef_[0]) > 0


@torch.no_grad()
def without_filters(generator: DCGANGenerator, z: Tensor, filters: Tensor, block: int) -> Tensor:
    """The samples of `z` drawn again with these feature maps (bool `[width]`) set to zero wherever they are."""
    maps = _entering(generator, z, block)
    return generator.resume(maps * (~filters).to(maps.dtype)[:, None, None], block)


def _entering(generator: DCGANGenerator, z: Tensor, block: int) -> Tensor:
    x = generator.start(z)
    for up in list(generator.blocks)[:block]:
        x = up(x)
    return x
