"""Bits-back coding of a model with a known answer: a linear-Gaussian one, whose evidence is in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cambrian.codec.bits_back import Buckets, pop_cdf, push_cdf
from cambrian.codec.rans import Stack
from cambrian.errors import ConfigError, DataError

NOISE, STEP, LEVELS = 0.5, 0.1, 200


def ndtr(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(np.asarray(x, np.float64))).numpy()


def pixel_cdf(mean: np.ndarray):
    def cdf(symbol: np.ndarray, part: slice) -> np.ndarray:
        inner = ndtr(((symbol - LEVELS / 2) * STEP - mean[part]) / NOISE)
        return np.where(symbol <= 0, 0.0, np.where(symbol >= LEVELS, 1.0, inner))

    return cdf


def posterior(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z ~ N(0, 1), x = z + NOISE e: the exact posterior."""
    variance = 1 / (1 + NOISE**-2)
    return variance * x / NOISE**2, np.full(len(x), math.sqrt(variance))


@pytest.mark.parametrize("lanes", [1, 16])
def test_the_message_costs_its_evidence(lanes: int) -> None:
    """With the exact posterior the bound is tight: chained pictures cost -log2 p(x), and everything comes back."""
    rng, buckets, size, count = np.random.default_rng(0), Buckets(10, 20), 32, 40
    prior = np.zeros(size), np.ones(size)
    seeds = rng.integers(0, 1 << 32, 60, dtype=np.uint32)
    stack = Stack(lanes, seed_words=seeds)
    before = stack.information()
    pictures = np.clip(rng.normal(0, math.sqrt(1 + NOISE**2), (count, size)) / STEP + LEVELS / 2, 0, 199).astype(int)
    for picture in pictures:
        x = (picture - (LEVELS - 1) / 2) * STEP
        bucket = buckets.pop_posterior(stack, posterior(x), prior)
        push_cdf(stack, picture, pixel_cdf(buckets.standard(bucket)), LEVELS, 16)
        buckets.push_prior(stack, bucket)
    edges = ((pictures[..., None] - LEVELS / 2 + np.array([0, 1])) * STEP) / math.sqrt(1 + NOISE**2)
    evidence = -np.log2(np.diff(ndtr(edges), axis=-1)).sum()
    assert abs(stack.information() - before - evidence) < 0.01 * evidence

    again = Stack.from_bytes(stack.to_bytes())
    for picture in pictures[::-1]:
        bucket = buckets.pop_prior(again, size)
        found = pop_cdf(again, size, pixel_cdf(buckets.standard(bucket)), LEVELS, 16)
        assert found.tolist() == picture.tolist()
        buckets.push_posterior(again, bucket, posterior((found - (LEVELS - 1) / 2) * STEP), prior)
    assert again.equals(Stack(lanes, seed_words=seeds))


def test_popped_buckets_follow_the_posterior() -> None:
    rng, buckets, n = np.random.default_rng(0), Buckets(), 20_000
    mean, std = np.full(n, 0.7), np.full(n, 0.1)
    stack = Stack(64, seed_words=rng.integers(0, 1 << 32, n, dtype=np.uint32))
    drawn = buckets.standard(buckets.pop_posterior(stack, (mean, std), (np.zeros(n), np.ones(n))))
    assert abs(drawn.mean() - 0.7) < 0.004
    assert abs(drawn.std() - 0.1) < 0.003


def test_errors() -> None:
    with pytest.raises(ConfigError):
        Buckets(12, 13)
    with pytest.raises(DataError):
        push_cdf(Stack(), np.array([200]), pixel_cdf(np.zeros(1)), LEVELS, 16)
    with pytest.raises(DataError, match="seed words"):
        Buckets().pop_posterior(Stack(), (np.zeros(9), np.ones(9)), (np.zeros(9), np.ones(9)))
