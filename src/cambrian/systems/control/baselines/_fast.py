"""Forward and backward passes of small dense networks in numpy, on the memory of the torch parameters.

With 64 hidden units and batches of 64 the time of a PPO update goes into dispatching some hundred tiny tensor operations and
building their graph, not into arithmetic. Here the gradients are written out; tests hold them equal to autograd's on the losses of
`cambrian.rl.losses`. Used on the CPU for vector observations; everything else takes the autograd path.

Shapes: n samples, D inputs, A actions or action dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

Array = np.ndarray[Any, Any]


class Dense:
    """A `nn.Sequential` of Linear, Tanh and ReLU layers that shares its parameters' memory; gradients land in `.grad`."""

    def __init__(self, net: nn.Sequential) -> None:
        modules = list(net)
        after = [*modules[1:], None]
        linear = [
            (m, {nn.Tanh: "tanh", nn.ReLU: "relu"}.get(type(a), "none"))
            for m, a in zip(modules, after)
            if isinstance(m, nn.Linear)
        ]
        self.modules = linear
        self.inputs: list[Array] = []
        self.refresh()

    def refresh(self) -> None:
        """Find the parameters' memory again; needed after something has replaced a tensor rather than written into it."""
        self.layers = [(m, m.weight.detach().numpy(), m.bias.detach().numpy(), kind) for m, kind in self.modules]

    def __call__(self, x: Array) -> Array:
        """[n, D] -> [n, out]; keeps what `backward` needs."""
        self.inputs = [x]
        for _, weight, bias, kind in self.layers:
            x = x @ weight.T
            x += bias
            if kind == "tanh":
                np.tanh(x, out=x)
            elif kind == "relu":
                np.maximum(x, 0, out=x)
            self.inputs.append(x)
        return x

    def backward(self, gradient: Array, *, to_input: bool = False) -> Array | None:
        """Set the parameters' gradients from that of the output [n, out]; return that of the input [n, D] if asked."""
        for i in range(len(self.layers) - 1, -1, -1):
            module, weight, _, kind = self.layers[i]
            out = self.inputs[i + 1]
            if kind == "tanh":
                gradient = gradient * (1 - out * out)
            elif kind == "relu":
                gradient = gradient * (out > 0)
            module.weight.grad = torch.from_numpy(gradient.T @ self.inputs[i])
            module.bias.grad = torch.from_numpy(gradient.sum(0))
            if i or to_input:
                gradient = gradient @ weight
        return gradient if to_input else None


class DuellingDense:
    """Encoder, advantage stream and (if there is one) value stream of a `QNetwork`."""

    def __init__(self, encoder: nn.Sequential, advantage: nn.Sequential, value: nn.Sequential | None) -> None:
        self.encoder, self.advantage = Dense(encoder), Dense(advantage)
        self.value = None if value is None else Dense(value)

    def refresh(self) -> None:
        """As `Dense.refresh`."""
        for part in (self.encoder, self.advantage, self.value):
            if part is not None:
                part.refresh()

    def __call__(self, obs: Array) -> Array:
        """[n, D] -> action values [n, A]."""
        features = self.encoder(obs)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(1, keepdims=True)

    def backward(self, gradient: Array) -> None:
        """Set all gradients from that of the action values [n, A]."""
        centred = gradient if self.value is None else gradient - gradient.mean(1, keepdims=True)
        back = self.advantage.backward(centred, to_input=True)
        assert back is not None
        if self.value is not None:
            back = back + self.value.backward(gradient.sum(1, keepdims=True), to_input=True)
        self.encoder.backward(back)


@dataclass(frozen=True)
class Objective:
    """PPO's loss in numbers; `clip=None` leaves the ratio alone, `beta` weighs KL(pi_old | pi)."""

    clip: float | None
    beta: float
    entropy: float
    value: float
    value_clip: float | None


@dataclass
class HeadGradients:
    """Loss terms (means over the batch) and the gradients of the total loss at the network's outputs."""

    head: Array  # [n, A]
    value: Array  # [n]
    log_std: Array | None  # [A]
    scalars: dict[str, float]


def log_softmax(logits: Array) -> Array:
    """[n, A] -> log probabilities."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def surrogate_gradient(ratio: Array, advantage: Array, clip: float | None) -> tuple[float, Array, float]:
    """PPO's policy loss, its gradient in log pi(a|s) [n], and the share of samples beyond the clip."""
    bare = ratio * advantage
    if clip is None:
        return -float(bare.mean()), -bare / len(bare), 0.0
    outside = np.abs(ratio - 1) > clip
    kept = np.minimum(bare, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    active = (bare <= kept) | ~outside
    return -float(kept.mean()), -bare * active / len(bare), float(np.count_nonzero(outside)) / len(bare)


def value_gradient(value: Array, batch: dict[str, Array], clip: float | None) -> tuple[float, Array]:
    """Half the mean squared error (or its clipped form) and its gradient in the values [n]."""
    error = value - batch["returns"]
    if clip is None:
        return 0.5 * float((error * error).mean()), error / len(error)
    moved = value - batch["values"]
    kept = batch["values"] + np.clip(moved, -clip, clip) - batch["returns"]
    plain = error * error >= kept * kept
    gradient = np.where(plain, error, np.where(np.abs(moved) <= clip, kept, 0))
    return 0.5 * float(np.maximum(error * error, kept * kept).mean()), gradient.astype(value.dtype) / len(error)


def categorical_gradients(head: Array, value: Array, batch: dict[str, Array], goal: Objective) -> HeadGradients:
    """For logits [n, A]; `batch` holds action, log_prob, head (all old), advantage, returns, values, each [n, ...]."""
    n, row = len(head), np.arange(len(head))
    log_p = log_softmax(head)
    p = np.exp(log_p)
    ratio = np.exp(log_p[row, batch["action"]] - batch["log_prob"])
    policy_loss, pull, clipped = surrogate_gradient(ratio, batch["advantage"], goal.clip)
    gradient = -p * pull[:, None]
    gradient[row, batch["action"]] += pull
    entropy = -(p * log_p).sum(1)
    if goal.entropy:
        gradient += (goal.entropy / n) * p * (log_p + entropy[:, None])
    old = log_softmax(batch["head"])
    kl = float((np.exp(old) * (old - log_p)).sum(1).mean())
    if goal.beta:
        gradient += (goal.beta / n) * (p - np.exp(old))
    value_loss, pull_value = value_gradient(value, batch, goal.value_clip)
    scalars = _scalars(policy_loss, value_loss, float(entropy.mean()), kl, clipped, goal)
    return HeadGradients(gradient, goal.value * pull_value, None, scalars)


def gaussian_gradients(
    head: Array, log_std: Array, value: Array, batch: dict[str, Array], goal: Objective
) -> HeadGradients:
    """For means [n, A] and log standard deviations [A]; `batch` also holds old_log_std [A]."""
    n = len(head)
    z = (batch["action"] - head) * np.exp(-log_std)
    log_prob = -(0.5 * z * z + log_std).sum(1) - 0.5 * math.log(2 * math.pi) * head.shape[1]
    ratio = np.exp(log_prob - batch["log_prob"])
    policy_loss, pull, clipped = surrogate_gradient(ratio, batch["advantage"], goal.clip)
    gradient = pull[:, None] * z * np.exp(-log_std)
    spread = (pull[:, None] * (z * z - 1)).sum(0) - goal.entropy
    shift = head - batch["head"]
    old, precision = batch["old_log_std"], np.exp(-2 * log_std)
    second = (np.exp(2 * old) + shift * shift) * precision
    kl = float((0.5 * (second - 1) + log_std - old).sum(1).mean())
    if goal.beta:
        gradient += (goal.beta / n) * shift * precision
        spread += goal.beta * (1 - second).mean(0)
    value_loss, pull_value = value_gradient(value, batch, goal.value_clip)
    entropy = float((log_std + 0.5 * math.log(2 * math.pi * math.e)).sum())
    scalars = _scalars(policy_loss, value_loss, entropy, kl, clipped, goal)
    return HeadGradients(gradient, goal.value * pull_value, spread.astype(head.dtype), scalars)


def _scalars(
    policy_loss: float, value_loss: float, entropy: float, kl: float, clipped: float, goal: Objective
) -> dict[str, float]:
    loss = policy_loss + goal.value * value_loss - goal.entropy * entropy + goal.beta * kl
    return {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": kl,
        "clip_share": clipped,
    }
