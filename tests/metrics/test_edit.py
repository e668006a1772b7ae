from __future__ import annotations

import itertools
import math
from functools import cache

import pytest

from cambrian.metrics.edit import distance, error_rate, pairs


@cache
def defined(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(defined(a[1:], b) + 1, defined(a, b[1:]) + 1, defined(a[1:], b[1:]) + (a[0] != b[0]))


WORDS = ["".join(w) for n in range(4) for w in itertools.product("ab", repeat=n)] + ["kitten", "sitting"]


def test_the_distance_equals_its_definition() -> None:
    for a, b in itertools.product(WORDS, repeat=2):
        assert distance(a, b) == defined(a, b)
    assert distance("kitten", "sitting") == 3


def test_pairs_are_in_order_complete_and_as_cheap_as_the_distance() -> None:
    for a, b in itertools.product(WORDS, repeat=2):
        found = pairs(a, b)
        assert [i for i, _ in found if i is not None] == list(range(len(a)))
        assert [j for _, j in found if j is not None] == list(range(len(b)))
        cost = sum(i is None or j is None or a[i] != b[j] for i, j in found)
        assert cost == distance(a, b)


def test_the_error_rate_weighs_by_length() -> None:
    assert error_rate([([1, 2, 3, 4], [1, 2, 3, 4]), ([5], [6, 5])]) == pytest.approx(1 / 5)
    assert error_rate([("a", "abc")]) == 2.0
    assert math.isnan(error_rate([]))
