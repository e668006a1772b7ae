"""The networks of the baselines, and the agent that acts with one.

Observations are vectors [B, D] or images [B, C, H, W] (channels first); images pass a shared convolutional encoder.

Shapes: B environments, A actions (discrete) or action dimensions (continuous).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ShapeError
from cambrian.nn.hub import Pretrained
from cambrian.rl.distributions import Categorical, DiagonalGaussian
from cambrian.rl.normalise import ObservationNormaliser


def dense(sizes: Sequence[int], activation: type[nn.Module], *, last: bool = False) -> nn.Sequential:
    """Linear layers of these widths with the activation between them, and after the last one if `last`."""
    layers: list[nn.Module] = []
    for i, (inside, outside) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(inside, outside))
        if last or i < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def convolutional(shape: tuple[int, ...], width: int) -> nn.Sequential:
    """Images [B, C, H, W] to features [B, width]: DQN's three layers (Nature 2015) from 36 pixels on, MinAtar's one below it."""
    channels, height, columns = shape
    if channels > 16 and columns <= 4:
        raise ShapeError(f"images must have channels first, [C, H, W]; {shape} looks like [H, W, C]; permute it")
    if min(height, columns) >= 36:
        layers = [
            nn.Conv2d(channels, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
        ]
    else:
        layers = [nn.Conv2d(channels, 16, 3), nn.ReLU()]
    body = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        features = body(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, width), nn.ReLU())


def orthogonal(module: nn.Module, gain: float) -> None:
    """Orthogonal weights times `gain` and zero biases, for every layer of the module."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.orthogonal_(layer.weight, gain)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class ActorCritic(Pretrained, nn.Module):
    """Policy and value of B observations.

    Vectors: two separate tanh networks. Images: a shared encoder with two linear heads. Continuous policies have a log standard
    deviation that does not depend on the state.
    """

    def __init__(
        self,
        *,
        obs_shape: tuple[int, ...],
        actions: int,
        discrete: bool,
        hidden: tuple[int, ...] = (64, 64),
        orthogonal_init: bool = True,
        normalise_obs: bool = False,
    ) -> None:
        super().__init__()
        self.obs_shape, self.discrete = tuple(obs_shape), discrete
        self.norm = ObservationNormaliser(self.obs_shape) if normalise_obs else None
        vector = len(self.obs_shape) == 1
        self.encoder = nn.Identity() if vector else convolutional(self.obs_shape, hidden[-1])
        widths = (*self.obs_shape, *hidden) if vector else (hidden[-1],)
        self.actor, self.critic = dense((*widths, actions), nn.Tanh), dense((*widths, 1), nn.Tanh)
        self.log_std = None if discrete else nn.Parameter(torch.zeros(actions))
        if orthogonal_init:
            orthogonal(self, math.sqrt(2))
            orthogonal(self.actor[-1], 0.01)
            orthogonal(self.critic[-1], 1.0)

    def seen(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them: float, bytes scaled to [0, 1], normalised if the model does so."""
        if obs.shape[1:] != self.obs_shape:
            raise ShapeError(f"observations must be of shape [B, {self.obs_shape}], not {tuple(obs.shape)}")
        obs = obs.float() / 255 if obs.dtype == torch.uint8 else obs.float()
        return obs if self.norm is None else self.norm(obs)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """[B, ...] -> policy head [B, A] (logits or means) and value [B]."""
        features = self.encoder(self.seen(obs))
        return self.actor(features), self.critic(features)[:, 0]

    def distribution(self, head: Tensor, log_std: Tensor | None = None) -> Categorical | DiagonalGaussian:
        """The policy with this head; `log_std` defaults to the model's own."""
        if self.discrete:
            return Categorical(head)
        spread = self.log_std if log_std is None else log_std
        assert spread is not None
        return DiagonalGaussian(head, spread)

    def act(self, obs: Tensor, *, deterministic: bool, generator: torch.Generator) -> Tensor:
        """Actions [B] or [B, A] for observations [B, ...]."""
        policy = self.distribution(self(obs)[0])
        return policy.mode() if deterministic else policy.sample(generator)


class QNetwork(Pretrained, nn.Module):
    """Action values [B, A]. Duelling: Q = V + A - mean_a A, with one hidden layer in each stream (1511.06581, eq. 9)."""

    def __init__(
        self, *, obs_shape: tuple[int, ...], actions: int, hidden: tuple[int, ...] = (64, 64), duelling: bool = True
    ) -> None:
        super().__init__()
        self.obs_shape = tuple(obs_shape)
        if len(self.obs_shape) == 1:
            self.encoder = dense((*self.obs_shape, *hidden[:-1]), nn.ReLU, last=True)
            widths = ((*self.obs_shape, *hidden)[-2], hidden[-1])
        else:
            self.encoder, widths = convolutional(self.obs_shape, hidden[-1]), (hidden[-1], hidden[-1])
        self.advantage = dense((*widths, actions), nn.ReLU)
        self.value = dense((*widths, 1), nn.ReLU) if duelling else None

    def forward(self, obs: Tensor) -> Tensor:
        """[B, ...] -> [B, A]."""
        if obs.shape[1:] != self.obs_shape:
            raise ShapeError(f"observations must be of shape [B, {self.obs_shape}], not {tuple(obs.shape)}")
        features = self.encoder(obs.float() / 255 if obs.dtype == torch.uint8 else obs.float())
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)

    def act(self, obs: Tensor, *, deterministic: bool, generator: torch.Generator, epsilon: float = 0.05) -> Tensor:
        """The best actions [B], each replaced by a random one with probability `epsilon` unless deterministic."""
        q = self(obs)
        best = q.argmax(1)
        if deterministic:
            return best
        draw = torch.rand(2, len(obs), generator=generator).to(q.device)
        return torch.where(draw[0] < epsilon, (draw[1] * q.shape[1]).long(), best)


class Agent:
    """A trained network that acts: `agent.act(obs [B, ...], deterministic=True) -> actions [B]` (or [B, A], within the bounds).

    Raises `CapabilityError` for a model that cannot act, `ShapeError` for observations of another shape.
    """

    def __init__(
        self, model: ActorCritic | QNetwork, *, bounds: tuple[float, float] | None = None, seed: int = 0
    ) -> None:
        if not isinstance(model, (ActorCritic, QNetwork)):
            raise CapabilityError(f"an agent acts with an ActorCritic or a QNetwork, not with a {type(model).__name__}")
        self.model, self.bounds = model, bounds
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """Actions for B observations; draws come from `generator`, or from the agent's own."""
        device = next(self.model.parameters()).device
        action = self.model.act(
            obs.to(device), deterministic=deterministic, generator=generator or self.generator
        ).cpu()
        return action if self.bounds is None else action.clamp(*self.bounds)
