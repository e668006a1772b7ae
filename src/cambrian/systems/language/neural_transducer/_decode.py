"""From frames to symbols: greedily for a batch or a stream, or by a beam in which `<e>` moves on to the next block.

Shapes: B batch, K hypotheses of the beam, M steps a block, W frames of a block, N blocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.cells.stack import Layered
from cambrian.nn.scan import State

if TYPE_CHECKING:
    from cambrian.systems.language.neural_transducer.model import Encoded, NeuralTransducer


@dataclass(frozen=True)
class Decoded:
    """Symbols in order, the block that wrote each (from 0), and log p of the whole path where it was computed."""

    symbols: list[int]
    blocks: list[int]
    score: float = float("nan")


def write_block(
    model: NeuralTransducer, block: tuple[Tensor, Tensor, Tensor], state: State, last: Tensor
) -> tuple[Tensor, State, Tensor]:
    """The likeliest symbols of one block, step by step: [B, M] with -1 where nothing is written, the state, the last symbol.

    `last` [B] is the symbol written last (`<e>`: none yet), which only `end="none"` needs.
    """
    state = model.initial(len(last)) if model.independent else state
    implicit = model.end_by == "none"
    previous = last if implicit and not model.independent else torch.full_like(last, model.end)
    running = torch.ones_like(last, dtype=torch.bool)
    written = torch.full((len(last), model.M), -1, dtype=torch.long, device=last.device)
    for m in range(model.M - implicit):
        found, new, _ = model.step(previous[:, None], block, state)
        state = tuple(torch.where(running[:, None], a, b) for a, b in zip(new, state, strict=True))
        previous = found[:, 0].argmax(1) if m < model.M - 1 else torch.full_like(last, model.end)
        fresh = running & (previous != model.end)
        if implicit:
            fresh = fresh & (previous != last)
        else:
            running = fresh
        written[:, m] = torch.where(fresh, previous, -1)
        last = torch.where(fresh, previous, last)
        if not bool(running.any()):
            break
    return written, state, last


def greedy(model: NeuralTransducer, encoded: Encoded) -> list[Decoded]:
    """The likeliest next symbol at every step, for all utterances at once."""
    batch = len(encoded.blocks)
    state = model.initial(batch)
    last = torch.full((batch,), model.end, device=encoded.memory.device)
    rows = []
    for n in range(encoded.mask.shape[1]):
        written, state, last = write_block(model, encoded.block(n), state, last)
        rows.append(written.masked_fill((n >= encoded.blocks)[:, None], -1))
    table = torch.stack(rows, 1).cpu()
    out = []
    for one in table:
        where = (one >= 0).nonzero()
        out.append(Decoded(one[one >= 0].tolist(), where[:, 0].tolist()))
    return out


@dataclass
class _Beam:
    """K hypotheses of each utterance: scores [B, K], symbols and their blocks [B, K, P], lengths [B, K], states."""

    score: Tensor
    symbols: Tensor
    blocks: Tensor
    length: Tensor
    state: State

    def pick(self, index: Tensor, score: Tensor) -> _Beam:
        """The hypotheses at `index` [B, K'], with their new scores."""
        wide = index[..., None].expand(-1, -1, self.symbols.shape[2])
        row = (index + torch.arange(len(index), device=index.device)[:, None] * self.score.shape[1]).flatten()
        parts = tuple(part.index_select(0, row) for part in self.state)
        return _Beam(
            score, self.symbols.gather(1, wide), self.blocks.gather(1, wide), self.length.gather(1, index), parts
        )

    def join(self, other: _Beam) -> _Beam:
        """Both, side by side: [B, K + K']."""
        pairs = ((self.score, other.score), (self.symbols, other.symbols), (self.blocks, other.blocks))
        batch = len(self.score)
        states = tuple(
            torch.cat((a.view(batch, -1, a.shape[1]), b.view(batch, -1, b.shape[1])), 1).flatten(0, 1)
            for a, b in zip(self.state, other.state, strict=True)
        )
        return _Beam(*(torch.cat(p, 1) for p in pairs), torch.cat((self.length, other.length), 1), states)


def beam_search(model: NeuralTransducer, encoded: Encoded, width: int) -> list[Decoded]:
    """The likeliest path among `width` kept after every step and block. Raises `CapabilityError` without ends of blocks."""
    if width < 1:
        raise ConfigError(f"a beam holds at least 1 hypothesis, not {width}")
    if model.end_by == "none":
        raise CapabilityError("without an end of block (end='none') hypotheses cannot be compared; decode greedily")
    batch, n_blocks = encoded.mask.shape[:2]
    longest = n_blocks * (model.M - 1)
    empty = torch.full((batch, width, longest), -1, device=encoded.memory.device)
    score = torch.full((batch, width), -torch.inf, device=encoded.memory.device)
    score[:, 0] = 0.0
    now = _Beam(score, empty, empty, torch.zeros_like(empty[..., 0]), model.initial(batch * width))
    out: list[Decoded] = [Decoded([], [])] * batch
    for n in range(n_blocks):
        now = _beam_block(model, encoded.block(n), now, n)
        for i in (encoded.blocks == n + 1).nonzero()[:, 0].tolist():
            best = int(now.score[i].argmax())
            length = int(now.length[i, best])
            written = now.symbols[i, best, :length].tolist(), now.blocks[i, best, :length].tolist()
            out[i] = Decoded(*written, float(now.score[i, best]))
    return out


def _beam_block(model: NeuralTransducer, block: tuple[Tensor, Tensor, Tensor], live: _Beam, n: int) -> _Beam:
    """Extend all hypotheses through one block and keep the best that have ended it."""
    batch, width = live.score.shape
    if model.independent:
        live.state = model.initial(batch * width)
    previous = torch.full_like(live.length, model.end)
    ended: _Beam | None = None
    for m in range(model.M):
        found, state, _ = model.step(previous, block, live.state)
        stopped = _Beam(live.score + found[..., model.end], live.symbols, live.blocks, live.length, state)
        ended = stopped if ended is None else ended.join(stopped)
        if ended.score.shape[1] > width:
            best, index = ended.score.topk(width, 1)
            ended = ended.pick(index, best)
        if m + 1 == model.M:
            break
        best, index = (live.score[..., None] + found[..., : model.vocab]).flatten(1).topk(width, 1)
        live = _Beam(live.score, live.symbols, live.blocks, live.length, state).pick(index // model.vocab, best)
        previous = index % model.vocab
        at = live.length[..., None].clamp(max=live.symbols.shape[2] - 1)
        live.symbols = live.symbols.scatter(2, at, previous[..., None])
        live.blocks = live.blocks.scatter(2, at, n)
        live.length = live.length + 1
    assert ended is not None
    return ended


class Stream:
    """Writes while it reads: `push(frames)` gives the symbols of every block that they complete, `finish()` the rest.

    `log` holds (symbol, frames read when it was written), `seconds` what each block took to compute.
    """

    def __init__(self, model: NeuralTransducer) -> None:
        if model.bidirectional:
            raise CapabilityError("a bidirectional encoder reads to the end before it writes; it cannot stream")
        self.model = model
        self.log: list[tuple[int, int]] = []
        self.seconds: list[float] = []
        self.read = 0
        self._closed = False
        like = model.head.weight
        self._waiting = like.new_zeros(0, model.in_dim)
        self._encoder: Layered | None = None
        self._state = model.initial(1)
        self._last = torch.full((1,), model.end, device=like.device)

    def push(self, frames: Tensor) -> list[int]:
        """Frames [n, F], any number of them; returns what is written now. Raises `ShapeError`."""
        if self._closed:
            raise ShapeError("this stream is finished; start another one with stream()")
        if frames.dim() != 2 or frames.shape[1] != self.model.in_dim or not bool(torch.isfinite(frames).all()):
            raise ShapeError(f"frames must be finite [n, {self.model.in_dim}], not {tuple(frames.shape)}")
        self._waiting = torch.cat((self._waiting, frames))
        out: list[int] = []
        while len(self._waiting) >= self.model.W:
            out += self._block(self._waiting[: self.model.W])
            self._waiting = self._waiting[self.model.W :]
        return out

    def finish(self) -> list[int]:
        """The end of the sound: what an incomplete last block says."""
        out = self._block(self._waiting) if len(self._waiting) else []
        self._waiting, self._closed = self._waiting[:0], True
        return out

    @torch.no_grad()
    def _block(self, frames: Tensor) -> list[int]:
        started, model = time.perf_counter(), self.model
        x = ((frames - model.mean) / model.scale)[:, None]
        h, encoder = model.encoder(x, None if model.encoder_reset else self._encoder)
        self._encoder = encoder
        memory = torch.nn.functional.pad(h.transpose(0, 1), (0, 0, 0, model.W - len(frames)))
        mask = (torch.arange(model.W, device=x.device) < len(frames))[None]
        block = (memory, model.attention.project(memory), mask)
        written, self._state, self._last = write_block(model, block, self._state, self._last)
        symbols = written[0][written[0] >= 0].tolist()
        self.read += len(frames)
        self.log += [(symbol, self.read) for symbol in symbols]
        self.seconds.append(time.perf_counter() - started)
        return symbols
