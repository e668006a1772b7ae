"""The coder against arithmetic in whole numbers, against information content, and against damaged data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cambrian.codec import frequencies
from cambrian.codec.rans import LOW, Stack
from cambrian.errors import CambrianError, ConfigError, DataError, ShapeError

FEW = settings(max_examples=60, deadline=None)


def tables(rng: np.random.Generator, rows: int, symbols: int, precision: int) -> np.ndarray:
    """Cumulative tables of peaked and of flat distributions."""
    weights = rng.dirichlet(np.full(symbols, rng.choice([0.05, 1.0, 20.0])), rows)
    return frequencies.cumulative(weights, precision)


# -- frequencies -----------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(9, 28))
def test_frequencies_sum_exactly_and_are_positive(seed: int, symbols: int, precision: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(symbols, 0.05), 5) * 10.0 ** rng.integers(-5, 5, (5, 1))
    freq = frequencies.quantise(weights, precision)
    assert freq.shape == weights.shape
    assert freq.dtype == np.int64
    assert (freq >= 1).all()
    assert (freq.sum(1) == 1 << precision).all()
    ideal = weights / weights.sum(1, keepdims=True) * ((1 << precision) - symbols) + 1
    assert np.abs(freq - ideal).max() <= 1 + 1e-6


def test_quantised_frequencies_cost_next_to_nothing() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(256), 50)
    freq = frequencies.quantise(weights, 16) / 65536
    extra = (weights * np.log2(weights / freq)).sum(1)
    assert extra.min() >= 0
    assert extra.max() < 0.01


@pytest.mark.parametrize("bad", [[0.5, -0.1], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], []])
def test_bad_probabilities_are_refused(bad: list[float]) -> None:
    with pytest.raises(DataError):
        frequencies.quantise(bad, 16)


def test_too_many_symbols_are_refused() -> None:
    assert frequencies.quantise(np.ones(16), 4).tolist() == [1] * 16
    with pytest.raises(ConfigError):
        frequencies.quantise(np.ones(17), 4)


# -- the stack -------------------------------------------------------------------------------------------------------


def test_one_lane_is_the_textbook_number() -> None:
    """While no word leaves, the state is the number that rANS's formula gives, in Python's whole numbers."""
    stack, state = Stack(precision=4), LOW
    for start, freq in ((3, 5), (0, 3), (8, 8), (3, 5)):
        stack.push(np.array([start]), np.array([freq]))
        state = (state // freq << 4) + start + state % freq
    assert int(stack.heads[0]) == state


@FEW
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), st.integers(2, 40), st.integers(6, 20))
def test_symbols_come_back(seed: int, lanes: int, count: int, symbols: int, precision: int) -> None:
    """Tables that change from symbol to symbol, counts that do not divide by the lanes, through bytes, over seed
    words.
    """
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 1 << 32, lanes + int(rng.integers(0, 4)), dtype=np.uint32) if rng.random() < 0.5 else None
    stack = Stack(lanes, precision, seeds)
    own, shared = tables(rng, count, symbols, precision), tables(rng, 1, symbols, 12)[0]
    first, second = rng.integers(0, symbols, count), rng.integers(0, symbols, count + 3)
    stack.push_symbols(first, own)
    stack.push_symbols(second, shared, precision=12)
    again = Stack.from_bytes(stack.to_bytes())
    assert (again.lanes, again.precision) == (lanes, precision)
    assert again.pop_symbols(count + 3, shared, precision=12).tolist() == second.tolist()
    assert again.pop_symbols(count, own).tolist() == first.tolist()
    assert again.equals(Stack(lanes, precision, seeds))
    assert again.is_empty() == (seeds is None)


@FEW
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_popping_first_and_pushing_back_restores_the_stack(seed: int, lanes: int) -> None:
    """Bits-back coding: what is popped under any distribution and pushed back leaves no trace."""
    rng = np.random.default_rng(seed)
    stack = Stack(lanes, 16, rng.integers(0, 1 << 32, 60, dtype=np.uint32))
    before = stack.to_bytes()
    cdf = tables(rng, 20, 30, 16)
    symbols = stack.pop_symbols(20, cdf)
    stack.push_symbols(symbols, cdf)
    assert stack.to_bytes() == before


@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_size_is_the_information_content(lanes: int) -> None:
    rng = np.random.default_rng(0)
    cdf = tables(rng, 4096, 50, 16)
    freq = np.diff(cdf, axis=1)
    symbols = np.array([rng.choice(50, p=row / 65536) for row in freq])
    stack = Stack(lanes)
    stack.push_symbols(symbols, cdf)
    content = 16 * len(symbols) - np.log2(freq[np.arange(len(symbols)), symbols]).sum()
    assert abs(stack.information() - content) < 0.001 * content
    assert content - 1 < stack.bits() < content * 1.001 + 64 * lanes + 24
    assert stack.bits() == 8 * len(stack.to_bytes())


def test_a_short_message_is_short() -> None:
    """One lane pays at most eight bytes beyond its content, the prefix included."""
    for count in range(12):
        stack = Stack()
        for _ in range(count):
            stack.push(np.array([100]), np.array([256]))
        assert len(stack.to_bytes()) <= 1 + count + 5
        again = Stack.from_bytes(stack.to_bytes())
        for _ in range(count):
            assert 100 <= again.peek()[0] < 356
            again.pop(np.array([100]), np.array([256]))
        assert again.is_empty()


def test_a_symbol_with_all_the_mass_is_free() -> None:
    stack = Stack(3)
    before = stack.to_bytes()
    stack.push(np.zeros(3, int), np.full(3, 1 << 16))
    assert stack.to_bytes() == before


def test_damage_is_a_typed_error_or_shows_at_the_end() -> None:
    """Any byte changed, removed or added: an error, other symbols, or a stack that is not empty; never silence."""
    rng = np.random.default_rng(1)
    cdf = tables(rng, 60, 20, 16)
    symbols = rng.integers(0, 20, 60)
    stack = Stack(2)
    stack.push_symbols(symbols, cdf)
    good = stack.to_bytes()
    wrong = [good[:n] for n in range(len(good))] + [good + b"\0", good + b"\1", b"", b"\xff" * 20, bytes(30)]
    wrong += [good[:i] + bytes([good[i] ^ 1 << int(rng.integers(8))]) + good[i + 1 :] for i in range(len(good))]
    for data in wrong:
        try:
            found = Stack.from_bytes(data)
            decoded = found.pop_symbols(60, cdf)
        except CambrianError:
            continue
        assert not (found.is_empty() and decoded.tolist() == symbols.tolist())
        assert not found.is_empty()


def test_what_is_not_there_cannot_be_popped() -> None:
    stack = Stack(2)
    with pytest.raises(DataError, match="ends too early"):
        stack.pop_symbols(40, np.array([0, 1 << 15, 1 << 16]))
    with pytest.raises(DataError, match="outside its interval"):
        Stack().pop(np.array([5]), np.array([1]))


@pytest.mark.parametrize(
    ("start", "freq", "error"),
    [
        ([0], [0], DataError),
        ([-1], [2], DataError),
        ([65535], [2], DataError),
        ([0, 0, 0], [1, 1, 1], ShapeError),
        ([0, 0], [1], ShapeError),
        ([0.0], [1.0], ShapeError),
    ],
)
def test_bad_intervals_are_refused(start: list[float], freq: list[float], error: type[Exception]) -> None:
    for act in (Stack(2).push, Stack(2).pop):
        with pytest.raises(error):
            act(np.array(start), np.array(freq))


def test_bad_requests_are_typed_errors() -> None:
    with pytest.raises(ConfigError):
        Stack(0)
    with pytest.raises(ConfigError):
        Stack(precision=40)
    with pytest.raises(ConfigError, match="seed words"):
        Stack(3, seed_words=[1, 2])
    with pytest.raises(ShapeError):
        Stack(2).peek(3)
    with pytest.raises(DataError):
        Stack().push_symbols([5], [0, 1, 1 << 16])
    with pytest.raises(ShapeError):
        Stack().push_symbols([0, 0], np.zeros((3, 4)))
    stack = Stack()
    other = stack.copy()
    other.push(np.array([0]), np.array([1]))
    assert stack.is_empty()
    assert not other.is_empty()
    assert other.equals(other.copy())
    assert not other.equals(stack)
