"""Importance-weighted evaluation of a VAE: all samples through one matrix product a chunk, against a loop over samples.

Run with `python benchmarks/vae.py`. Both start from the same posterior and the same noise, so the estimates must agree.
The peer encodes once too, decodes one sample of every picture at a time, and keeps the log weights for one logsumexp.
Measured for few pictures (a user's), for a batch, and for 28x28 with the paper's 500 hidden units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.latent import DiagGaussian
from cambrian.systems.likelihood.vae import VAE

CASES = {
    "8 pictures 16x16, 128-128-20, K = 1000": (8, 16, (128, 128), 1000),
    "100 pictures 16x16, 128-128-20, K = 200": (100, 16, (128, 128), 200),
    "8 pictures 28x28, 500-20, K = 1000": (8, 28, (500,), 1000),
}


@torch.no_grad()
def loop(model: VAE, x: Tensor, samples: int, seed: int) -> Tensor:
    """-log 1/K sum w [B], one sample of each picture at a time."""
    q = model.encode(x)
    prior = DiagGaussian.standard(q.mean)
    noise = torch.randn(samples, len(x), model.latent, generator=torch.Generator().manual_seed(seed))
    rows = []
    for one in noise:
        z = q.mean + q.std * one
        log_p = model.log_likelihood(x, z[None])[0]
        rows.append(log_p + prior.log_prob(z) - q.log_prob(z))
    return math.log(samples) - torch.logsumexp(torch.stack(rows).double(), 0)


def main() -> None:
    """Check equality, then time."""
    for title, (pictures, size, hidden, samples) in CASES.items():
        torch.manual_seed(0)
        model = VAE(shape=(1, size, size), hidden=hidden, activation="relu").eval()
        x = torch.randint(2, (pictures, 1, size, size)).float()

        def batched(model: VAE = model, x: Tensor = x, samples: int = samples) -> Tensor:
            return model.nll(x, torch.Generator().manual_seed(1), samples)

        def looped(model: VAE = model, x: Tensor = x, samples: int = samples) -> Tensor:
            return loop(model, x, samples, seed=1)

        torch.testing.assert_close(batched(), looped(), rtol=1e-6, atol=1e-3)
        timed = compare({"K in one product, in chunks": batched, "loop over samples": looped}, threads=1, repeats=9)
        print(f"{title}: {timed}")


if __name__ == "__main__":
    main()
