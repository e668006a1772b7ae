"""One training pass of SRNN: the deterministic paths swept and the latent recursion alone in a loop, against one cell a step.

Run with `python benchmarks/srnn.py`. The peer computes at every step what a single recurrent cell would: one step of the forward
GRU, the prior and the posterior as two nets of their own, the output net; the backward GRU runs step by step before. Weights,
noise and result are the same; forward and backward, T = 40.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.inspect.bench import compare
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.likelihood.srnn import SRNN
from cambrian.systems.likelihood.srnn.model import floored_logvar

BATCH, STEPS, FEATURES = 32, 40, 40


def gru_step(layer: torch.nn.GRU, x: Tensor, h: Tensor) -> Tensor:
    """One step from the layer's own weights."""
    return torch.gru_cell(x, h, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)


def naive(model: SRNN, x: Tensor, noise: Tensor) -> Tensor:
    """The bound [B], a step at a time."""
    net, width = model.transition, model.transition.weight.shape[1]
    zero = x.new_zeros(len(x), model.hidden)
    d, ds, before = zero, [], x.new_zeros(len(x), FEATURES)
    for t in range(STEPS):
        d = gru_step(model.deterministic, model.embed(before), d)
        ds.append(d)
        before = x[:, t]
    a, read = zero, [zero] * STEPS
    for t in reversed(range(STEPS)):
        a = gru_step(model.reader, torch.cat((ds[t], model.embed(x[:, t])), 1), a)
        read[t] = a
    z, total = x.new_zeros(len(x), model.z_dim), x.new_zeros(len(x))
    squash = lambda v: F.leaky_relu(v, 1 / 3).clamp(-3.0, 3.0)  # noqa: E731
    for t in range(STEPS):
        p = squash(net.from_context(ds[t]) + z @ net.from_z.weight[:width].T) @ net.weight[0] + net.bias[0]
        q = squash(net.from_inference(read[t]) + z @ net.from_z.weight[width:].T) @ net.weight[1] + net.bias[1]
        (prior_mean, prior_logvar), (mean, logvar) = p.chunk(2, 1), q.chunk(2, 1)
        mean = mean + prior_mean
        z = mean + torch.exp(0.5 * logvar) * noise[t]
        kl = kl_diag(DiagGaussian(mean, logvar), DiagGaussian(prior_mean, floored_logvar(prior_logvar))).sum(-1)
        total = total + model.log_px(model.output(torch.cat((ds[t], z), 1)), x[:, t]) - kl
    return total


def main() -> None:
    """Check equality, then time."""
    torch.manual_seed(0)
    model = SRNN(x_dim=FEATURES)
    with torch.no_grad():
        model.transition.weight.mul_(100)
    x = torch.randn(BATCH, STEPS, FEATURES)
    noise = torch.randn((STEPS, BATCH, model.z_dim), generator=torch.Generator().manual_seed(3))

    def ours() -> Tensor:
        return model.elbo(x, generator=torch.Generator().manual_seed(3)).value

    def gradient(value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value.mean(), list(model.parameters())))

    torch.testing.assert_close(ours(), naive(model, x, noise), rtol=1e-4, atol=1e-3)
    for a, b in zip(gradient(ours()), gradient(naive(model, x, noise)), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-3)
    timed = {"swept": lambda: gradient(ours()), "one cell a step": lambda: gradient(naive(model, x, noise))}
    print(compare(timed, threads=1))


if __name__ == "__main__":
    main()
