"""Search for a decoder's output: greedy, by sampling, and by a batched beam, each under constraints.

A constraint is `allowed(prefix, rows) -> bool [R, V]`: which symbols may follow the prefixes int64 [R, t], `rows` [R] saying
which sequence of the batch each belongs to. Symbols after the stop symbol are -1.

Shapes: B sequences, K hypotheses of each, V symbols, M positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ShapeError
from cambrian.nn.seq2seq import Decoder, State, repeat, select

Constraint = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Hypotheses:
    """`symbols` int64 [B, K, M], best first, -1 after the stop symbol; `log_prob` [B, K] in nats, `score` [B, K], what they
    are ranked by (minus infinity where there are fewer than K)."""

    symbols: Tensor
    log_prob: Tensor
    score: Tensor


def greedy(
    decoder: Decoder, state: State, *, batch: int, steps: int, stop: int | None, allowed: Constraint | None = None
) -> tuple[Tensor, Tensor]:
    """The likeliest symbol at every step: int64 [B, M] and the log-probability [B] of the whole."""
    return _walk(decoder, state, batch, steps, stop, allowed, lambda logits: logits.argmax(1))


def sample(
    decoder: Decoder, state: State, generator: torch.Generator, *, batch: int, steps: int, stop: int | None,
    temperature: float = 1.0, top_k: int | None = None, allowed: Constraint | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw every symbol from the softmax of logits / temperature, among the `top_k` likeliest: [B, M], log-probability [B]
    under the decoder itself."""

    def pick(logits: Tensor) -> Tensor:
        if top_k is not None and top_k < logits.shape[1]:
            least = logits.topk(top_k, 1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        weights = torch.softmax(logits / max(temperature, 1e-6), 1)
        return torch.multinomial(weights.to(generator.device), 1, generator=generator)[:, 0].to(logits.device)

    return _walk(decoder, state, batch, steps, stop, allowed, pick)


@torch.no_grad()
def _walk(
    decoder: Decoder, state: State, batch: int, steps: int, stop: int | None, allowed: Constraint | None,
    pick: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    symbols = torch.empty(batch, 0, dtype=torch.int64)
    last, total, rows = torch.full((batch,), -1), torch.zeros(batch), torch.arange(batch)
    running = torch.ones(batch, dtype=torch.bool)
    for _ in range(steps):
        logits, state = decoder.step(last, state)
        if symbols.shape[1] == 0:
            symbols, last, total = (t.to(logits.device) for t in (symbols, last, total))
            rows, running = rows.to(logits.device), running.to(logits.device)
        logits = _constrained(logits, symbols, rows, allowed, running)
        chosen = pick(logits)
        gain = torch.log_softmax(logits, 1).gather(1, chosen[:, None])[:, 0]
        total = total + torch.where(running, gain, torch.zeros_like(gain))
        symbols = torch.cat((symbols, torch.where(running, chosen, -1)[:, None]), 1)
        last = torch.where(running, chosen, last)
        running = running & (chosen != stop) if stop is not None else running
        if not bool(running.any()):
            break
    return symbols, total


def _constrained(logits: Tensor, prefix: Tensor, rows: Tensor, allowed: Constraint | None, running: Tensor) -> Tensor:
    """Logits with what is not allowed at minus infinity. Raises `ShapeError` when a running prefix has no way on."""
    if allowed is None:
        return logits
    open_ = allowed(prefix, rows)
    if open_.shape != logits.shape:
        raise ShapeError(f"the constraint gave {tuple(open_.shape)} for logits {tuple(logits.shape)}")
    if not bool((open_.any(1) | ~running).all()):
        raise ShapeError("the constraint allows no symbol after a prefix that it allowed")
    return logits.masked_fill(~open_ & running[:, None], -math.inf)


@torch.no_grad()
def beam(
    decoder: Decoder, state: State, *, batch: int, width: int, steps: int, stop: int | None,
    allowed: Constraint | None = None, length_penalty: float = 0.0,
) -> Hypotheses:  # fmt: skip
    """Beam search over all sequences and hypotheses at once.

    A finished hypothesis keeps its place and competes with the score log p / ((5 + length) / 6)^length_penalty (Wu et al.
    2016, equation 14); running ones are ranked by log p. Each step is one call of the decoder on [B K].
    """
    if width < 1:
        raise ShapeError(f"a beam has at least one hypothesis, not {width}")
    state = repeat(state, width)
    rows = torch.arange(batch).repeat_interleave(width)
    symbols = torch.empty(batch * width, 0, dtype=torch.int64)
    last = torch.full((batch * width,), -1)
    total = torch.full((batch, width), -math.inf)
    total[:, 0] = 0.0  # all hypotheses begin alike: only one of them counts
    done = torch.zeros(batch, width, dtype=torch.bool)
    for _ in range(steps):
        logits, state = decoder.step(last, state)
        alive = (total > -math.inf) & ~done
        logits = _constrained(logits, symbols, rows, allowed, alive.flatten())
        source, chosen, total = _extended(torch.log_softmax(logits, 1), total, done, width)
        flat = (source + torch.arange(batch)[:, None] * width).flatten()
        finished = done.gather(1, source).flatten()
        state = select(state, flat)
        symbols = torch.cat((symbols[flat], torch.where(finished, -1, chosen.flatten())[:, None]), 1)
        last = torch.where(finished, last[flat], chosen.flatten())
        done = (finished | (last == (-1 if stop is None else stop))).view(batch, width)
        if bool((done | (total == -math.inf)).all()):
            break
    return _ranked(symbols.view(batch, width, -1), total, length_penalty)


def _extended(log_prob: Tensor, total: Tensor, done: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `width` ways on of every sequence: which hypothesis [B, K], which symbol [B, K], log-probability [B, K].

    A finished hypothesis has one way on: to stay, as symbol 0.
    """
    batch, symbols = len(total), log_prob.shape[1]
    ways = log_prob.view(batch, width, symbols)
    stay = torch.full_like(ways, -math.inf)
    stay[:, :, 0] = 0.0
    ways = torch.where(done[:, :, None], stay, ways) + total[:, :, None]
    ways = ways.nan_to_num(nan=-math.inf, neginf=-math.inf)  # a dead hypothesis whose symbols are all forbidden
    best, index = ways.flatten(1).topk(min(width, width * symbols), 1)
    return index // symbols, index % symbols, best


def _ranked(symbols: Tensor, total: Tensor, length_penalty: float) -> Hypotheses:
    length = (symbols >= 0).sum(2)
    score = total / ((5 + length) / 6.0) ** length_penalty
    order = score.argsort(dim=1, descending=True, stable=True)
    picked = symbols.gather(1, order[:, :, None].expand_as(symbols))
    return Hypotheses(picked, total.gather(1, order), score.gather(1, order))
