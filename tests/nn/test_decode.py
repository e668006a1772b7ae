import itertools
import math

import pytest
import torch
from torch import nn

from cambrian.errors import ShapeError
from cambrian.nn.decode import beam, greedy, sample
from cambrian.nn.seq2seq import repeat, select

SYMBOLS, STOP = 4, 0


class Chain(nn.Module):
    """A decoder whose state counts and remembers: logits depend on all symbols so far."""

    def __init__(self, seed, batch):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(50, SYMBOLS, generator=generator) * 1.5
        self.first = (torch.arange(batch) * 3, torch.zeros(batch, dtype=torch.int64))

    def step(self, last, state):
        code, t = state
        code = (code * 7 + last + 2 + t) % 50
        return self.table[code], (code, t + 1)


def every_answer(decoder, row, steps, allowed=None):
    """All finished or full-length sequences with their log-probability."""
    found = {}
    for length in range(1, steps + 1):
        for symbols in itertools.product(range(SYMBOLS), repeat=length):
            if STOP in symbols[:-1] or (symbols[-1] != STOP and length < steps):
                continue
            state, last, total, ok = select(decoder.first, torch.tensor([row])), torch.tensor([-1]), 0.0, True
            for i, symbol in enumerate(symbols):
                logits, state = decoder.step(last, state)
                if allowed is not None:
                    open_ = allowed(torch.tensor([symbols[:i]], dtype=torch.int64).view(1, i), torch.tensor([row]))
                    ok = ok and bool(open_[0, symbol])
                    logits = logits.masked_fill(~open_, -math.inf)
                total += float(logits.log_softmax(1)[0, symbol])
                last = torch.tensor([symbol])
            if ok:
                found[symbols] = total
    return found


def no_repeats(prefix, rows):
    """No symbol but the stop twice in a row; sequence 1 may not use symbol 3."""
    open_ = torch.ones(len(prefix), SYMBOLS, dtype=torch.bool)
    if prefix.shape[1]:
        open_.scatter_(1, prefix[:, -1:].clamp(min=0), False)
        open_[:, STOP] = True
    open_[rows == 1, 3] = False
    return open_


@pytest.mark.parametrize("allowed", [None, no_repeats])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_is_exhaustive_search(seed, allowed):
    decoder = Chain(seed, 3)
    found = beam(decoder, decoder.first, batch=3, width=300, steps=4, stop=STOP, allowed=allowed)
    for row in range(3):
        truth = sorted(every_answer(decoder, row, 4, allowed).items(), key=lambda item: -item[1])
        for k in range(5):
            symbols = tuple(s for s in found.symbols[row, k].tolist() if s >= 0)
            assert symbols == truth[k][0]
            assert float(found.log_prob[row, k]) == pytest.approx(truth[k][1], abs=1e-4)
        assert int((found.log_prob[row] > -math.inf).sum()) == len(truth)


def test_batched_beam_is_one_sequence_at_a_time_and_width_one_is_greedy():
    decoder = Chain(5, 6)
    together = beam(decoder, decoder.first, batch=6, width=3, steps=6, stop=STOP)
    for row in range(6):
        state = select(decoder.first, torch.tensor([row]))
        alone = beam(decoder, state, batch=1, width=3, steps=6, stop=STOP)
        length = alone.symbols.shape[2]
        assert torch.equal(together.symbols[row, :, :length], alone.symbols[0])
        assert torch.allclose(together.log_prob[row], alone.log_prob[0])
    one = beam(decoder, decoder.first, batch=6, width=1, steps=6, stop=STOP)
    symbols, total = greedy(decoder, decoder.first, batch=6, steps=6, stop=STOP)
    assert torch.equal(one.symbols[:, 0], symbols) and torch.allclose(one.log_prob[:, 0], total)


def test_length_penalty_ranks_by_wu():
    decoder = Chain(1, 2)
    found = beam(decoder, decoder.first, batch=2, width=40, steps=4, stop=STOP, length_penalty=1.0)
    length = (found.symbols >= 0).sum(2)
    assert torch.allclose(found.score, found.log_prob / ((5 + length) / 6))
    assert (found.score.diff(dim=1).nan_to_num(nan=0.0) <= 1e-6).all()


def test_sampling_follows_the_distribution_and_top_k_narrows_it():
    decoder = Chain(3, 4000)
    decoder.first = (torch.zeros(4000, dtype=torch.int64), torch.zeros(4000, dtype=torch.int64))
    symbols, total = sample(decoder, decoder.first, torch.Generator().manual_seed(0), batch=4000, steps=3, stop=STOP)
    truth = every_answer(decoder, 0, 3)
    for answer, log_prob in sorted(truth.items(), key=lambda item: -item[1])[:4]:
        same = torch.ones(4000, dtype=torch.bool)
        for i in range(3):
            same &= symbols[:, i] == (answer[i] if i < len(answer) else -1)
        assert float(same.float().mean()) == pytest.approx(math.exp(log_prob), abs=0.03)
        assert torch.allclose(total[same], torch.tensor(log_prob), atol=1e-4)
    generator = torch.Generator().manual_seed(1)
    narrow, _ = sample(decoder, decoder.first, generator, batch=4000, steps=3, stop=STOP, top_k=1)
    best, _ = greedy(decoder, decoder.first, batch=4000, steps=3, stop=STOP)
    assert torch.equal(narrow, best)


def test_a_constraint_without_a_way_on_is_an_error():
    decoder = Chain(0, 2)

    def never(prefix, rows):
        return torch.zeros(len(prefix), SYMBOLS, dtype=torch.bool)

    with pytest.raises(ShapeError, match="no symbol"):
        greedy(decoder, decoder.first, batch=2, steps=3, stop=STOP, allowed=never)
    with pytest.raises(ShapeError, match="no symbol"):
        beam(decoder, decoder.first, batch=2, width=2, steps=3, stop=STOP, allowed=never)
    with pytest.raises(ShapeError, match="at least one"):
        beam(decoder, decoder.first, batch=2, width=0, steps=3, stop=STOP)


def test_states_are_trees():
    state = (torch.arange(3), (torch.arange(6).view(3, 2),))
    assert repeat(state, 2)[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert select(state, torch.tensor([2, 0]))[1][0].tolist() == [[4, 5], [0, 1]]
