"""The oracles: alignments, the search, decoding and streams of the neural transducer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.systems.language.neural_transducer._decode import beam_search, greedy
from cambrian.systems.language.neural_transducer._search import search
from cambrian.systems.language.neural_transducer.model import Encoded, NeuralTransducer

ATTENTIONS = ("none", "dot", "mlp", "lstm")


def model(seed: int = 0, **options: object) -> NeuralTransducer:
    torch.manual_seed(seed)
    base = dict(in_dim=3, vocab=4, W=2, M=3, hidden=8)
    made = NeuralTransducer(**{**base, **options}).double().eval()
    with torch.no_grad():  # far from uniform, so that alignments differ
        made.head.weight.mul_(8)
        made.embedding.weight.mul_(2)
        if made.stop is not None:
            made.stop.weight.mul_(20)
            made.stop.bias.fill_(-1.0)
    return made


def utterances(n: int = 5, frames: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, frames, 3, generator=torch.Generator().manual_seed(seed)).double()


def alignments(symbols: int, blocks: int, most: int) -> list[tuple[int, ...]]:
    return [c for c in itertools.product(range(most + 1), repeat=blocks) if sum(c) == symbols]


# -- log p of an alignment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("end", ["symbol", "logistic"])
@pytest.mark.parametrize("independent", [False, True])
def test_log_p_equals_one_step_after_another(attention: str, end: str, independent: bool) -> None:
    net = model(attention=attention, end=end, independent=independent, upper_layers=2)
    x, frames = utterances(2, 7), torch.tensor([7, 5])
    y = torch.tensor([[1, 1, 3, 0], [2, 0, -1, -1]])
    counts = torch.tensor([[0, 2, 1, 1], [1, 0, 1, 0]])
    found = net.log_prob(x, y, counts, frames)
    for b, (blocks, symbols) in enumerate(((4, [1, 1, 3, 0]), (3, [2, 0]))):
        encoded = net.encode(x[b : b + 1, : frames[b]])
        state, total, at = net.initial(1), 0.0, 0
        for n in range(blocks):
            state = net.initial(1) if independent else state
            previous = net.end
            for target in [*symbols[at : at + counts[b, n]], net.end]:
                logs, state, _ = net.step(torch.tensor([[previous]]), encoded.block(n), state)
                torch.testing.assert_close(logs.exp().sum(), torch.ones(()).double())
                total, previous = total + float(logs[0, 0, target]), target
            at += int(counts[b, n])
        assert float(found[b]) == pytest.approx(total, rel=1e-10)


def test_probabilities_of_everything_a_block_can_write_sum_to_one_less_what_is_cut_off() -> None:
    """One block, M = 3: nothing, one or two symbols; what is missing is p(three or more)."""
    net, x = model(W=8), utterances(1)
    targets = [list(t) for s in range(3) for t in itertools.product(range(4), repeat=s)]
    y = torch.full((len(targets), 2), -1)
    for i, target in enumerate(targets):
        y[i, : len(target)] = torch.tensor(target, dtype=torch.long)
    total = net.log_prob(x.expand(len(y), -1, -1), y, (y >= 0).sum(1, keepdim=True)).exp().sum()
    longer = 0.0
    for target in targets[5:]:  # the two-symbol targets, followed by anything but <e>
        state, previous, logs = net.initial(1), net.end, 0.0
        for symbol in [*target, None]:
            found, state, _ = net.step(torch.tensor([[previous]]), net.encode(x).block(0), state)
            logs = logs + (found[0, 0, symbol] if symbol is not None else torch.log1p(-found[0, 0, net.end].exp()))
            previous = symbol
        longer += float(torch.as_tensor(logs).exp())
    assert float(total) == pytest.approx(1 - longer, rel=1e-8)


def test_without_an_end_a_repeated_symbol_writes_nothing() -> None:
    net = model(end="none", M=4)
    x, y = utterances(1, 6), torch.tensor([[2, 0]])
    found = net.log_prob(x, y, torch.tensor([[0, 2, 0]]))
    encoded, state, total = net.encode(x), net.initial(1), 0.0
    end = net.end
    said = [[end, end, end], [2, 0, 0], [0, 0, 0]]
    previous = end
    for n in range(3):
        for target in said[n]:
            logs, state, _ = net.step(torch.tensor([[previous]]), encoded.block(n), state)
            total, previous = total + float(logs[0, 0, target]), target
    assert float(found) == pytest.approx(total, rel=1e-10)
    with pytest.raises(ShapeError, match="follows itself"):
        net.loss(x, torch.tensor([[2, 2]]), torch.tensor([[0, 2, 0]]))
    with pytest.raises(CapabilityError, match="given"):
        net.align(x, y)


@pytest.mark.parametrize("options", [{}, {"independent": True}, {"bidirectional": True}, {"encoder_reset": True}])
def test_padding_changes_nothing(options: dict[str, object]) -> None:
    net, x = model(**options), utterances(2, 8)
    y, counts = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[1, 0, 1, 0], [2, 0, 0, 0]])
    frames = torch.tensor([8, 3])
    x[1, 3:] = 50.0
    alone = net.log_prob(x[1:, :3], y[1:], counts[1:, :2])
    torch.testing.assert_close(net.log_prob(x, y, counts, frames)[1:], alone)
    longer = torch.cat((x, x), 1)
    torch.testing.assert_close(net.log_prob(longer, y, counts, frames)[1:], alone)  # fewer blocks in the alignment
    assert torch.equal(net.align(x, y, frames)[1:, :2], net.align(x[1:, :3], y[1:]))
    assert net.decode(x, frames)[1].symbols == net.decode(x[1:, :3])[0].symbols


def test_the_future_is_not_read() -> None:
    """Steps in block n depend on frames of blocks 0..n alone, unless the encoder is bidirectional."""
    x = utterances(1, 8).requires_grad_()
    for options, causal in (({}, True), ({"bidirectional": True}, False)):
        net = model(**options)
        encoded = net.encode(x)
        for n in range(4):
            (g,) = torch.autograd.grad(encoded.memory[:, n].square().sum(), x, retain_graph=True)
            assert g[0, : 2 * n + 2].abs().sum(1).gt(0).all()
            assert bool(g[0, 2 * n + 2 :].any()) != causal or n == 3


def test_independent_blocks_know_only_the_encoder() -> None:
    """What a carried state changes: log p of the last block given what was written before it."""
    x = utterances(1, 8)
    first, second = (torch.tensor([[a, 3]]) for a in (0, 1))
    counts = torch.tensor([[1, 0, 0, 1]])
    for options, same in (({}, False), ({"independent": True}, True)):
        net = model(**options)
        rest = [net.log_prob(x, y, counts) - net.log_prob(x[:, :2], y[:, :1], counts[:, :1]) for y in (first, second)]
        assert torch.allclose(rest[0], rest[1]) == same


# -- the search --------------------------------------------------------------------------------------------------------


class Memoryless:
    """p depends on the last symbol and the block alone: tables[n][previous]; the `step` of a transducer."""

    def __init__(self, blocks: int, vocab: int, M: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.tables = (3 * torch.randn(blocks, vocab + 1, vocab + 1, generator=g).double()).log_softmax(-1)
        self.M, self.end, self.vocab, self.independent, self.end_by = M, vocab, vocab, False, "symbol"

    def initial(self, rows: int) -> tuple[Tensor, ...]:
        return (torch.zeros(rows, 1).double(),)

    def step(self, previous: Tensor, block: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple:
        n = block[0][:, 0, 0].long()
        return self.tables[n[:, None], previous], state, None

    def encoded(self, batch: int, blocks: Tensor) -> Encoded:
        n = len(self.tables)
        memory = torch.arange(n).double().view(1, n, 1, 1).expand(batch, -1, -1, -1)
        return Encoded(memory, memory, torch.ones(batch, n, 1, dtype=torch.bool), blocks)

    def path(self, y: list[int], counts: tuple[int, ...]) -> float:
        total, at = 0.0, 0
        for n, count in enumerate(counts):
            row = [self.end, *y[at : at + count], self.end]
            total += sum(float(self.tables[n, a, b]) for a, b in itertools.pairwise(row))
            at += count
        return total


@pytest.mark.parametrize("seed", range(4))
def test_without_memory_the_search_is_exact(seed: int) -> None:
    fake = Memoryless(4, 5, 3, seed)
    y = torch.tensor([[0, 3, 3, 1], [2, 2, -1, -1], [4, 0, 1, -1], [-1, -1, -1, -1], [1, 1, 1, 1]])
    blocks = torch.tensor([4, 3, 4, 2, 2])
    counts, score = search(fake, fake.encoded(len(y), blocks), y)  # type: ignore[arg-type]
    for b in range(len(y)):
        symbols = y[b][y[b] >= 0].tolist()
        paths = {c: fake.path(symbols, c) for c in alignments(len(symbols), int(blocks[b]), 2)}
        best = max(paths, key=paths.__getitem__)
        assert tuple(counts[b, : blocks[b]].tolist()) == best
        assert not counts[b, blocks[b] :].any()
        assert float(score[b]) == pytest.approx(paths[best], rel=1e-12)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_with_independent_blocks_the_search_is_exact(attention: str) -> None:
    """The real network: where every block starts afresh, its state depends on j and the block alone."""
    net, x = model(attention=attention, independent=True), utterances(3)
    y = torch.tensor([[0, 3, 3, 1], [2, 1, -1, -1], [3, 0, 2, -1]])
    counts, score = search(net, net.encode(x), y)
    for b in range(3):
        symbols = y[b : b + 1][:, y[b] >= 0]
        every = torch.tensor(alignments(symbols.shape[1], 4, 2))
        found = net.log_prob(x[b].expand(len(every), -1, -1), symbols.expand(len(every), -1), every)
        assert torch.equal(every[found.argmax()], counts[b])
        assert float(score[b]) == pytest.approx(float(found.max()), rel=1e-9)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("end", ["symbol", "logistic"])
def test_the_found_alignment_has_the_probability_that_the_search_says(attention: str, end: str) -> None:
    net, x = model(attention=attention, end=end, upper_layers=2), utterances(6, 9)
    frames = torch.tensor([9, 9, 8, 6, 7, 4])
    y = torch.tensor(
        [[0, 3, 3, 1, 2], [2, 1, 0, 1, -1], [3, 0, 2, -1, -1], [1, 1, 1, 1, 1], [-1] * 5, [2, 2, 2, 2, -1]]
    )
    counts, score = search(net, net.encode(x, frames), y)
    torch.testing.assert_close(net.log_prob(x, y, counts, frames), score)
    assert torch.equal(counts, net.align(x, y, frames))


def test_the_search_equals_one_hypothesis_after_another() -> None:
    """With memory the search is an approximation, but the same one that a loop over hypotheses makes."""
    net, x = model(), utterances(2)
    y = torch.tensor([[0, 3, 3, 1], [2, 1, 0, -1]])
    counts, score = search(net, net.encode(x), y)
    for b in range(2):
        symbols = y[b][y[b] >= 0].tolist()
        encoded = net.encode(x[b : b + 1])
        table = {0: (0.0, net.initial(1), ())}
        for n in range(4):
            arrived: dict[int, tuple] = {}
            for j, (total, state, path) in table.items():
                previous, running, live = net.end, state, total
                for m in range(3):
                    logs, running, _ = net.step(torch.tensor([[previous]]), encoded.block(n), running)
                    finished = live + float(logs[0, 0, net.end])
                    if j + m not in arrived or finished > arrived[j + m][0]:
                        arrived[j + m] = (finished, running, (*path, m))
                    if m == 2 or j + m == len(symbols):
                        break
                    previous = symbols[j + m]
                    live += float(logs[0, 0, previous])
            left = 2 * (3 - n)
            table = {j: hypothesis for j, hypothesis in arrived.items() if len(symbols) - j <= left}
        assert table[len(symbols)][2] == tuple(counts[b].tolist())
        assert float(score[b]) == pytest.approx(table[len(symbols)][0], rel=1e-9)


def test_a_target_that_does_not_fit_is_named() -> None:
    net, x = model(), utterances(1, 4)
    with pytest.raises(ShapeError, match=r"S = 5.*W = 2.*M = 3"):
        net.align(x, torch.tensor([[0, 1, 2, 3, 0]]))
    assert net.align(x, torch.tensor([[0, 1, 2, 3]])).tolist() == [[2, 2]]


# -- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("independent", [False, True])
def test_a_beam_that_keeps_everything_finds_the_likeliest_path(independent: bool) -> None:
    net, x = model(vocab=2, W=4, independent=independent, seed=3), utterances(2, 8)
    found = beam_search(net, net.encode(x), 200)
    for b in range(2):
        best = (-1e9, [], [])
        for counts in itertools.product(range(3), repeat=2):
            for symbols in itertools.product(range(2), repeat=sum(counts)):
                y = torch.tensor([symbols], dtype=torch.long)
                p = float(net.log_prob(x[b : b + 1], y, torch.tensor([counts])))
                best = max(best, (p, list(symbols), [n for n in range(2) for _ in range(counts[n])]))
        assert found[b].symbols == best[1]
        assert found[b].blocks == best[2]
        assert found[b].score == pytest.approx(best[0], rel=1e-9)


def test_a_beams_score_is_log_p_of_its_path_and_a_wider_one_finds_no_worse() -> None:
    net, x, frames = model(), utterances(6, 9), torch.tensor([9, 9, 8, 6, 7, 4])
    scores = []
    for width in (2, 8):
        found = net.decode(x, frames, beam=width)
        for b, one in enumerate(found):
            y = torch.tensor([one.symbols], dtype=torch.long).view(1, -1)
            counts = torch.tensor([[one.blocks.count(n) for n in range(-(-int(frames[b]) // 2))]])
            again = net.log_prob(x[b : b + 1, : frames[b]], y, counts)
            assert one.score == pytest.approx(float(again), rel=1e-9)
        scores.append(sum(one.score for one in found))
    assert scores[1] >= scores[0]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"end": "logistic"}, {"end": "none"}, {"independent": True}, {"encoder_reset": True}]
)
def test_a_stream_in_pieces_of_any_size_writes_what_the_whole_does(attention: str, options: dict[str, object]) -> None:
    net = model(attention=attention, W=3, encoder_layers=2, **options)
    for frames in (14, 12, 2):
        x = utterances(3, frames, seed=frames)
        whole = net.decode(x)
        assert frames < 5 or any(one.symbols for one in whole)
        for b in range(3):
            for size in (1, 2, 3, 5, frames):
                stream = net.stream()
                written = [s for piece in x[b].split(size) for s in stream.push(piece)] + stream.finish()
                assert written == whole[b].symbols
                assert [t for _, t in stream.log] == [min(3 * (n + 1), frames) for n in whole[b].blocks]
                assert len(stream.seconds) == -(-frames // 3)


def test_a_step_writes_at_most_one_less_than_m() -> None:
    net = model(M=4)
    net.head.bias.data[net.end] = -50.0  # never wants to end a block
    found = greedy(net, net.encode(utterances(2)))
    assert all([one.blocks.count(n) for n in range(4)] == [3] * 4 for one in found)


# -- the door ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_a_typed_error() -> None:
    net, x = model(), utterances(2)
    y, counts = torch.tensor([[0, 1], [2, -1]]), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    assert torch.isfinite(net.loss(x, y, counts))
    for bad in (x[0], x[..., :2], x[:, :0], torch.full_like(x, torch.nan), x.long()):
        with pytest.raises(ShapeError):
            net.encode(bad)
    for frames in (torch.tensor([8]), torch.tensor([0, 8]), torch.tensor([9, 8])):
        with pytest.raises(ShapeError):
            net.encode(x, frames)
    for target in (y[:1], y + 3, y.double(), torch.tensor([[-1, 1], [2, -1]])):
        with pytest.raises(ShapeError):
            net.loss(x, target, counts)
    for alignment in (counts[:, :2], counts * 3, counts * 0, counts.flip(0), counts - 1):
        with pytest.raises(ShapeError):
            net.loss(x, y, alignment)
    with pytest.raises(ConfigError):
        net.decode(x, beam=0)
    for options in ({"attention": "soft"}, {"M": 1}, {"W": 0}, {"end": "both"}):
        with pytest.raises(ConfigError):
            model(**options)


def test_streams_refuse_what_they_cannot_do() -> None:
    with pytest.raises(CapabilityError, match="bidirectional"):
        model(bidirectional=True).stream()
    stream = model().stream()
    for bad in (torch.zeros(3), torch.zeros(2, 4), torch.full((1, 3), torch.nan)):
        with pytest.raises(ShapeError):
            stream.push(bad)
    stream.finish()
    with pytest.raises(ShapeError, match="finished"):
        stream.push(torch.zeros(1, 3))


@pytest.mark.parametrize("options", [{}, {"attention": "mlp", "end": "logistic"}, {"bidirectional": True}])
def test_weights_round_trip(options: dict[str, object], tmp_path: Path) -> None:
    net, x = model(**options).float(), utterances().float()
    net.mean.fill_(0.3)
    net.save_pretrained(tmp_path)
    again = NeuralTransducer.from_pretrained(tmp_path)
    assert [d.symbols for d in again.decode(x)] == [d.symbols for d in net.decode(x)]
    assert torch.equal(again.mean, net.mean)
