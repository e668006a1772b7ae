"""Memory networks over sentences (MemN2N) and over the words before (MemN2NLM).

A sentence enters as a row of features: its words, weighted by their places, and the one-hot number of its age. Every embedding of
every memory is then one product `features @ [tables of all hops side by side]`, since with position encoding

    m_k = sum_j l_kj A_k,x_j = sum_j a_j A_k,x_j + (k/d) sum_j b_j A_k,x_j,   a_j = 1 - j/J,  b_j = 2j/J - 1

needs two weights a word only, whatever the size d.

Shapes: B questions, S sentences, J words, V words of the vocabulary, D size of an embedding, K hops, F features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.hub import Pretrained

BANNED = -1e9  # logit of the null word, which is never an answer
TYINGS = ("adjacent", "layerwise")
ENCODINGS = ("bow", "position")


def position_weights(length: Tensor, words: int) -> Tensor:
    """a_j and b_j for sentences of `length` [...] words, padded to `words`: [..., words, 2], 0 beyond the end."""
    j = torch.arange(1, words + 1, device=length.device)
    share = j / length[..., None].clamp(min=1)
    return torch.stack([1 - share, 2 * share - 1], -1) * (j <= length[..., None])[..., None]


def ages(stories: Tensor) -> Tensor:
    """Age of every sentence of `stories` [..., S, J], counted from the question backwards (0: the last one); -1 for padding."""
    real = (stories != 0).any(-1)
    later = real.flip(-1).cumsum(-1).flip(-1)
    return torch.where(real, later - 1, -1)


def with_gaps(stories: Tensor, gap: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """Random noise (RN): an empty memory before each sentence where `gap` (bool [..., S]) says so.

    Gives stories [..., M, J] with the youngest sentence first, and ages [..., M] (-1 beyond the end); M <= `memory`.
    """
    age = ages(stories)
    gap = gap & (age >= 0)
    younger = gap.flip(-1).cumsum(-1).flip(-1) - gap.long()
    total = (age >= 0).sum(-1) + gap.sum(-1)
    slots = min(memory, int(total.max()))
    moved = torch.where(age >= 0, age + younger, slots).clamp(max=slots)
    out = stories.new_zeros(*stories.shape[:-2], slots + 1, stories.shape[-1])
    out.scatter_(-2, moved[..., None].expand_as(stories), stories)
    order = torch.arange(slots, device=stories.device)
    return out[..., :slots, :], torch.where(order < total[..., None], order, -1)


def word_features(words: Tensor, vocab: int, encoding: str) -> Tensor:
    """Bags of words [..., J] -> [..., V] or, with position encoding, [..., 2V]."""
    words = words.long()
    parts = 2 if encoding == "position" else 1
    weights = (words != 0).float()[..., None]
    if parts == 2:
        weights = position_weights((words != 0).sum(-1), words.shape[-1])
    bag = weights.new_zeros(*words.shape[:-1], parts * vocab)
    for part in range(parts):
        bag.scatter_add_(-1, words + part * vocab, weights[..., part])
    return bag


def memory_features(
    stories: Tensor, age: Tensor, vocab: int, encoding: str, clock: int, memory: int
) -> tuple[Tensor, Tensor]:
    """Sentences [..., S, J] and ages [..., S] -> features [..., S, F] and which memories exist, bool [..., S].

    `clock` is `memory` with temporal encoding and 0 without.
    """
    exists = (age >= 0) & (age < memory)
    bag = word_features(stories, vocab, encoding)
    if clock:
        bag = torch.cat([bag, F.one_hot(age.clamp(0, clock - 1), clock).to(bag)], -1)
    return bag * exists[..., None], exists


class MemN2N(nn.Module, Pretrained):
    """`hops` looks at a memory of sentences, then an answer.

    adjacent: A of a hop is C of the hop before, the question is embedded by the first A and answers by the last C.
    layerwise: one A and one C for all hops, a question table B, an answer table W, and `u' = H u + o`.
    `carry=False` starts every hop at the question: what earlier hops found is dropped (a check).
    """

    def __init__(
        self, *, vocab: int, d: int = 20, hops: int = 3, memory: int = 50, tying: str = "adjacent",
        encoding: str = "position", temporal: bool = True, carry: bool = True, deviation: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if tying not in TYINGS or encoding not in ENCODINGS or min(vocab - 1, d, hops, memory) < 1:
            raise ConfigError(f"tying is one of {TYINGS}, encoding one of {ENCODINGS}, sizes at least 1")
        self.vocab, self.d, self.hops, self.memory = vocab, d, hops, memory
        self.tying, self.encoding, self.temporal, self.carry = tying, encoding, temporal, carry
        tables, clocks = (hops + 1, hops + 1) if tying == "adjacent" else (4, 2)
        self.tables = nn.ParameterList(torch.randn(vocab, d) * deviation for _ in range(tables))
        self.clocks = nn.ParameterList(torch.randn(memory, d) * deviation for _ in range(clocks if temporal else 0))
        self.H = nn.Parameter(torch.randn(d, d) * deviation) if tying == "layerwise" else None
        self.register_buffer("order", torch.arange(1, d + 1) / d)
        with torch.no_grad():
            for table in self.tables:
                table[0] = 0.0  # the null word; no feature and no answer reaches it, so it stays

    def index(self, what: str, hop: int = 0) -> int:
        """Which of `tables` (of `clocks`, for A and C) is A or C of a hop (from 0), B or W."""
        if self.tying == "adjacent":
            return {"A": hop, "C": hop + 1, "B": 0, "W": self.hops}[what]
        return "ACBW".index(what)

    def table(self, what: str, hop: int = 0) -> nn.Parameter:
        """The parameter [V, D] that is A or C of a hop (from 0), B or W."""
        return self.tables[self.index(what, hop)]

    def clock(self, what: str, hop: int = 0) -> nn.Parameter:
        """The parameter [memory, D] that is T_A or T_C of a hop."""
        return self.clocks[self.index(what, hop)]

    def _rows(self, table: Tensor) -> Tensor:
        """The weights of word features: [V, D] or [2V, D]."""
        return torch.cat([table, table * self.order]) if self.encoding == "position" else table

    # -- the network ----------------------------------------------------------------------------------------------

    def forward(
        self, stories: Tensor, query: Tensor, age: Tensor | None = None, linear: Tensor | bool = False
    ) -> tuple[Tensor, Tensor]:
        """Stories int [B, S, J] (0 pads words, rows of 0 pad sentences) in order of telling and queries [B, J] -> logits [B, V]
        and attention [K, B, S]. `age` [B, S] replaces the order, -1 where there is no memory. `linear`: no softmax (LS).
        """
        if stories.dim() != 3 or query.dim() != 2 or len(stories) != len(query) or stories.is_floating_point():
            raise ShapeError(
                f"MemN2N takes word numbers [B, S, J] and [B, J], not {list(stories.shape)} and {list(query.shape)}"
            )
        if age is not None and age.shape != stories.shape[:2]:
            raise ShapeError(f"ages must be [B, S] = {list(stories.shape[:2])}, not {list(age.shape)}")
        for name, words in (("stories", stories), ("query", query)):
            if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < self.vocab:
                raise ShapeError(f"{name} must hold word numbers below {self.vocab}")
        age = ages(stories) if age is None else age
        clock = self.memory if self.temporal else 0
        features, exists = memory_features(stories, age, self.vocab, self.encoding, clock, self.memory)
        asked = word_features(query, self.vocab, self.encoding)
        return self.answer(features, exists, asked, torch.as_tensor(linear, device=query.device))

    def answer(self, features: Tensor, exists: Tensor, asked: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        """From features [B, S, F], bool [B, S] and the query's [B, F'] to logits [B, V] and attention [K, B, S]."""
        kinds = list(range(self.hops + 1)) if self.tying == "adjacent" else [0, 1]
        rows = [self._rows(self.tables[i]) for i in kinds]
        if self.temporal:
            rows = [torch.cat([r, self.clocks[i]]) for i, r in zip(kinds, rows, strict=True)]
        seen = (features @ torch.cat(rows, 1)).unflatten(-1, (len(kinds), self.d))  # [B, S, kinds, D]

        def look(hop: int, u: Tensor) -> Tensor:
            return (seen[:, :, self.index("A", hop)] @ u[:, :, None])[:, :, 0]

        def read(hop: int, p: Tensor) -> Tensor:
            return (p[:, None, :] @ seen[:, :, self.index("C", hop)])[:, 0]

        return self._hops(look, read, exists, asked, linear)

    def answer_from(
        self, sentences: Tensor, number: Tensor, age: Tensor, asked: Tensor, linear: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, where memories are numbers [B, S] of few different `sentences` (features [U, F']): each is embedded once,
        scores are looked up by number, and attention is added up by number before it reads. `age` [B, S] is -1 where none is.
        """
        exists = (age >= 0) & (age < self.memory)
        clock = age.clamp(0, self.memory - 1)
        kinds = range(self.hops + 1 if self.tying == "adjacent" else 2)
        embedded = [sentences @ self._rows(self.tables[i]) for i in kinds]

        def look(hop: int, u: Tensor) -> Tensor:
            i = self.index("A", hop)
            scores = (u @ embedded[i].T).gather(1, number)
            return scores + (u @ self.clocks[i].T).gather(1, clock) if self.temporal else scores

        def read(hop: int, p: Tensor) -> Tensor:
            i = self.index("C", hop)
            o = p.new_zeros(len(p), len(sentences)).scatter_add(1, number, p) @ embedded[i]
            return (
                o + p.new_zeros(len(p), self.memory).scatter_add(1, clock, p) @ self.clocks[i] if self.temporal else o
            )

        return self._hops(look, read, exists, asked, linear)

    def _hops(
        self, look: Callable[[int, Tensor], Tensor], read: Callable[[int, Tensor], Tensor], exists: Tensor, asked: Tensor,
        linear: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """`look` gives scores [B, S] of a hop for u [B, D], `read` what attention [B, S] finds there."""
        question = asked @ self._rows(self.table("B"))
        u, found, attention = question, question, list[Tensor]()
        for hop in range(self.hops):
            scores = look(hop, u)
            soft = scores.masked_fill(~exists, BANNED).softmax(-1)
            p = torch.where(linear, scores, soft) * exists
            found = read(hop, p) + (u if self.H is None else u @ self.H.T)
            u = found if self.carry else question
            attention.append(p)
        logits = found @ self.table("W").T
        null = torch.arange(self.vocab, device=logits.device) == 0
        return logits.masked_fill(null, BANNED), torch.stack(attention)


class MemN2NLM(nn.Module, Pretrained):
    """Predicts a word from the `memory` words before it: layerwise tying, a constant question, ReLU on half of the units."""

    def __init__(self, *, vocab: int, d: int = 64, hops: int = 3, memory: int = 50, deviation: float = 0.05) -> None:
        super().__init__()
        if min(vocab - 1, d - 1, hops, memory) < 1:
            raise ConfigError("vocab and d must be at least 2, hops and memory at least 1")
        self.vocab, self.d, self.hops, self.memory = vocab, d, hops, memory
        self.words = nn.Parameter(torch.randn(vocab, 2 * d) * deviation)  # A and C side by side: one lookup
        self.clocks = nn.Parameter(torch.randn(memory, 2 * d) * deviation)  # row 0: the oldest word
        self.H = nn.Parameter(torch.randn(d, d) * deviation)
        self.W = nn.Parameter(torch.randn(vocab, d) * deviation)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Words int [B, memory + L - 1] -> logits [B, L, V] for the words after each of the last L, attention [K, B, L, memory]."""
        if tokens.dim() != 2 or tokens.shape[1] < self.memory or tokens.is_floating_point():
            raise ShapeError(f"MemN2NLM takes words [B, T >= {self.memory}], not {list(tokens.shape)}")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab:
            raise ShapeError(f"tokens must be word numbers below {self.vocab}")
        embedded = F.embedding(tokens.long(), self.words).unfold(1, self.memory, 1)  # [B, L, 2D, memory]
        m, c = (embedded + self.clocks.T).chunk(2, 2)
        u = m.new_full((*m.shape[:2], self.d), 0.1)
        half, attention = self.d // 2, []
        for _ in range(self.hops):
            p = (u[:, :, None, :] @ m)[:, :, 0].softmax(-1)
            u = (c @ p[..., None])[..., 0] + u @ self.H.T
            u = torch.cat([u[..., :half], u[..., half:].relu()], -1)
            attention.append(p)
        return u @ self.W.T, torch.stack(attention)
