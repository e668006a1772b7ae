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

from cambrian.nn.flat import Layout, share

Array = np.ndarray[Any, Any]
Batch = dict[str, Array]


class Flat:
    """A network whose parameters are views of one vector and whose gradients are views of another.

    The optimiser then updates, and the clip measures, one tensor instead of a dozen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.vector = nn.Parameter(share(self.parameters))
        self.vector.grad = torch.zeros_like(self.vector)
        self.gradients = Layout.of(self.parameters).views(self.vector.grad)
        self.attach()

    @property
    def intact(self) -> bool:
        """Whether the gradients still are where they were put."""
        return self.parameters[0].grad is self.gradients[0]

    def attach(self) -> None:
        """Put the gradients' memory back in place, after something set `.grad` to None."""
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient


@dataclass(frozen=True)
class Layer:
    """Memory of one linear layer, its gradients', and the activation after it."""

    weight: Array
    bias: Array
    weight_grad: Array
    bias_grad: Array
    activation: str


class Dense:
    """A `nn.Sequential` of Linear, Tanh and ReLU layers whose parameters and gradients have memory (see `Flat`) that it shares."""

    def __init__(self, net: nn.Sequential) -> None:
        modules = list(net)
        kinds = {nn.Tanh: "tanh", nn.ReLU: "relu"}
        following = [kinds.get(type(m), "none") for m in modules[1:]] + ["none"]
        self.linear = [(m, kind) for m, kind in zip(modules, following) if isinstance(m, nn.Linear)]
        self.inputs: list[Array] = []
        self.refresh()

    def refresh(self) -> None:
        """Find the memory again; needed after something has replaced a tensor rather than written into it."""
        self.layers: list[Layer] = []
        for module, kind in self.linear:
            weight, bias = module.weight, module.bias
            assert weight.grad is not None and bias.grad is not None
            memory = (weight.detach().numpy(), bias.detach().numpy(), weight.grad.numpy(), bias.grad.numpy())
            self.layers.append(Layer(*memory, kind))

    def __call__(self, x: Array) -> Array:
        """[n, D] -> [n, out]; keeps what `backward` needs."""
        self.inputs = [x]
        for layer in self.layers:
            x = x @ layer.weight.T
            x += layer.bias
            if layer.activation == "tanh":
                np.tanh(x, out=x)
            elif layer.activation == "relu":
                np.maximum(x, 0, out=x)
            self.inputs.append(x)
        return x

    def backward(self, gradient: Array, *, to_input: bool = False) -> Array | None:
        """Write the parameters' gradients from that of the output [n, out]; return that of the input [n, D] if asked."""
        for i in range(len(self.layers) - 1, -1, -1):
            layer, out = self.layers[i], self.inputs[i + 1]
            if layer.activation == "tanh":
                slope = out * out
                np.subtract(1, slope, out=slope)
                gradient = np.multiply(gradient, slope, out=slope)
            elif layer.activation == "relu":
                gradient = gradient * (out > 0)
            np.matmul(gradient.T, self.inputs[i], out=layer.weight_grad)
            np.add.reduce(gradient, 0, out=layer.bias_grad)
            if i or to_input:
                gradient = gradient @ layer.weight
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
        return self.value(features) + _centred(advantage)

    def backward(self, gradient: Array) -> None:
        """Set all gradients from that of the action values [n, A]."""
        centred = gradient if self.value is None else _centred(gradient)
        back = self.advantage.backward(centred, to_input=True)
        assert back is not None
        if self.value is not None:
            back = back + self.value.backward(gradient.sum(1, keepdims=True), to_input=True)
        self.encoder.backward(back)


def _centred(x: Array) -> Array:
    """[n, A] minus each row's mean."""
    return x - np.add.reduce(x, 1, keepdims=True) * np.float32(1 / x.shape[1])


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
    """Gradients of the total loss at the network's outputs, and the terms of the loss (means over the batch) if asked for."""

    head: Array  # [n, A]
    value: Array  # [n]
    log_std: Array | None = None  # [A]
    scalars: dict[str, float] | None = None


def log_softmax(logits: Array) -> Array:
    """[n, A] -> log probabilities."""
    shifted = logits - np.maximum.reduce(logits, 1, keepdims=True)
    shifted -= np.log(np.add.reduce(np.exp(shifted), 1, keepdims=True))
    return shifted


def surrogate_gradient(ratio: Array, advantage: Array, clip: float | None) -> Array:
    """Gradient [n] of PPO's policy loss in log pi(a|s): zero where the clipped term is the smaller one."""
    pull = ratio * advantage
    pull *= -1 / len(ratio)
    if clip is not None:
        pull *= np.where(advantage > 0, ratio <= 1 + clip, ratio >= 1 - clip)
    return pull


def value_gradient(value: Array, batch: Batch, clip: float | None) -> Array:
    """Gradient [n] in the values of half the mean squared error, or of its clipped form."""
    error = value - batch["returns"]
    if clip is not None:
        moved = value - batch["values"]
        kept = batch["values"] + np.clip(moved, -clip, clip) - batch["returns"]
        error = np.where(error * error >= kept * kept, error, np.where(np.abs(moved) <= clip, kept, 0))
    return error * np.float32(1 / len(error))


def categorical_gradients(
    head: Array, value: Array, batch: Batch, goal: Objective, *, report: bool = False
) -> HeadGradients:
    """For logits [n, A]; `batch` holds action, log_prob, head (log probabilities; all old), advantage, returns, values."""
    n, row, action = len(head), np.arange(len(head)), batch["action"]
    log_p = log_softmax(head)
    p = np.exp(log_p)
    ratio = np.exp(log_p[row, action] - batch["log_prob"])
    pull = surrogate_gradient(ratio, batch["advantage"], goal.clip)
    gradient = p * -pull[:, None]
    gradient[row, action] += pull
    entropy = -np.add.reduce(p * log_p, 1) if goal.entropy or report else None
    if goal.entropy:
        assert entropy is not None
        gradient += (goal.entropy / n) * p * (log_p + entropy[:, None])
    if goal.beta:
        gradient += (goal.beta / n) * (p - np.exp(batch["head"]))
    found = HeadGradients(gradient, goal.value * value_gradient(value, batch, goal.value_clip))
    if report:
        assert entropy is not None
        kl = float((np.exp(batch["head"]) * (batch["head"] - log_p)).sum(1).mean())
        found.scalars = _scalars(ratio, value, batch, goal, float(entropy.mean()), kl)
    return found


def gaussian_gradients(
    head: Array, log_std: Array, value: Array, batch: Batch, goal: Objective, *, report: bool = False
) -> HeadGradients:
    """For means [n, A] and log standard deviations [A]; `batch` also holds old_log_std [A]."""
    n, inverse = len(head), np.exp(-log_std)
    z = (batch["action"] - head) * inverse
    log_prob = -np.add.reduce(0.5 * z * z + log_std, 1) - 0.5 * math.log(2 * math.pi) * head.shape[1]
    ratio = np.exp(log_prob - batch["log_prob"])
    pull = surrogate_gradient(ratio, batch["advantage"], goal.clip)
    gradient = pull[:, None] * z * inverse
    spread = np.add.reduce(pull[:, None] * (z * z - 1), 0) - goal.entropy
    shift, old = head - batch["head"], batch["old_log_std"]
    if goal.beta or report:
        second = (np.exp(2 * old) + shift * shift) * (inverse * inverse)
        if goal.beta:
            gradient += (goal.beta / n) * shift * (inverse * inverse)
            spread += goal.beta * (1 - second).mean(0)
    found = HeadGradients(gradient, goal.value * value_gradient(value, batch, goal.value_clip), spread)
    if report:
        kl = float((0.5 * (second - 1) + log_std - old).sum(1).mean())
        entropy = float((log_std + 0.5 * math.log(2 * math.pi * math.e)).sum())
        found.scalars = _scalars(ratio, value, batch, goal, entropy, kl)
    return found


def _scalars(ratio: Array, value: Array, batch: Batch, goal: Objective, entropy: float, kl: float) -> dict[str, float]:
    """The terms of the loss, for the log."""
    advantage, error = batch["advantage"], (value - batch["returns"]) ** 2
    kept, outside = ratio * advantage, 0.0
    if goal.clip is not None:
        kept = np.minimum(kept, np.clip(ratio, 1 - goal.clip, 1 + goal.clip) * advantage)
        outside = float((np.abs(ratio - 1) > goal.clip).mean())
    if goal.value_clip is not None:
        moved = np.clip(value - batch["values"], -goal.value_clip, goal.value_clip)
        error = np.maximum(error, (batch["values"] + moved - batch["returns"]) ** 2)
    policy_loss, value_loss = -float(kept.mean()), 0.5 * float(error.mean())
    loss = policy_loss + goal.value * value_loss - goal.entropy * entropy + goal.beta * kl
    terms = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl, "clip_share": outside}
    return {"loss": loss, **terms}
