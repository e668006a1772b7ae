"""Rounding to powers of two by the carry into the exponent, against comparing with every value of the alphabet.

Run: python benchmarks/inq.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.systems.compress.inq import Powers


def by_comparison(weight: Tensor, powers: Powers) -> Tensor:
    """Equation 4 as written: one pass over the weights for each magnitude of the alphabet."""
    size, out, alpha = weight.abs(), torch.zeros_like(weight), 0.0
    for exponent in range(powers.low, powers.high + 1):
        beta = 2.0**exponent
        inside = (size >= (alpha + beta) / 2) & (size < 1.5 * beta)
        out = torch.where(inside, weight.sign() * beta, out)
        alpha = beta
    return out


def measure(count: int) -> None:
    weight = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.05
    powers = Powers.of(weight, 5)
    assert torch.equal(powers.round(weight), by_comparison(weight, powers))
    result = compare({"carry": lambda: powers.round(weight), "comparison": lambda: by_comparison(weight, powers)})
    print(f"{count} weights, 5 bits:", result)


def main() -> None:
    torch.set_num_threads(1)
    for count in (100_000, 4_000_000):
        measure(count)


if __name__ == "__main__":
    main()
