"""Positions as gaps: the worked example, fillers, and exact round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cambrian.codec.delta_index import DeltaIndex
from cambrian.errors import CheckpointError, ConfigError


def test_figure_2_of_the_paper():
    """Non-zeros at 1, 4 and 15 with 3 bits: the paper's differences 1, 3, 8 (filler), 3; a gap is one less."""
    mask = np.zeros(16, bool)
    mask[[1, 4, 15]] = True
    gaps, present = DeltaIndex(3).encode(mask)
    assert gaps.tolist() == [1, 2, 7, 2] and present.tolist() == [True, True, False, True]


@given(st.integers(1, 8), st.integers(0, 3000), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_random_masks_round_trip_with_the_least_number_of_fillers(bits: int, count: int, density: float, seed: int):
    mask = np.random.default_rng(seed).random(count) < density**4
    code = DeltaIndex(bits)
    gaps, present = code.encode(mask)
    assert present.sum() == mask.sum() and (not len(gaps) or 0 <= gaps.min() <= gaps.max() < code.span)
    assert np.array_equal(code.decode(gaps, present, count), np.flatnonzero(mask))
    edges = np.concatenate([[-1], np.flatnonzero(mask), [count]])
    assert (~present).sum() == ((np.diff(edges) - 1) // code.span).sum()


def test_gaps_that_leave_the_array_or_stop_early_are_refused():
    gaps, present = DeltaIndex(2).encode(np.array([0, 1, 0, 0, 0, 0, 0, 1], bool))
    for count in (7, 12, 1 << 40):
        with pytest.raises(CheckpointError, match="reach"):
            DeltaIndex(2).decode(gaps, present, count)
    for bits in (0, 9):
        with pytest.raises(ConfigError, match="bits"):
            DeltaIndex(bits)
