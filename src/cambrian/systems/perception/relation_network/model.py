"""Encoders that make objects, and reasoners that answer questions about them.

Every reasoner is `(objects [B, N, D], question [B, Q, E] or [B, E], mask bool [B, N] or None) -> logits [B, Q, K] or [B, K]`; the
relation network and the baselines of the ladder (question only, MLP, stacked attention) are interchangeable.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.nn.hub import Pretrained
from cambrian.nn.pairs import PairSum


def mlp(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between; dropout before the last one, as in f of the paper."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        if last and dropout:
            layers.append(nn.Dropout(dropout))
        layers += [nn.Linear(a, b)] if last else [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)


class Reasoner(nn.Module, Pretrained):
    """What relation network and baselines have in common: one question may come without its own dimension."""

    def forward(self, objects: Tensor, question: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, K] for `question` [B, Q, E], [B, K] for [B, E]."""
        if question.dim() == 2:
            return self.answer(objects, question[:, None], mask)[:, 0]
        return self.answer(objects, question, mask)

    def answer(self, objects: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, Q, K] for `question` [B, Q, E]."""
        raise NotImplementedError


class RelationNet(Reasoner):
    """f(sum over pairs of g([o_i; o_j; q])), equation 1. `pairs="self"` sums over single objects instead."""

    def __init__(
        self,
        *,
        obj_dim: int,
        q_dim: int,
        out: int,
        g: Sequence[int] = (256, 256, 256, 256),
        f: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        pairs: str = "all",
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.g = PairSum(obj_dim=obj_dim, q_dim=q_dim, widths=g, pairs=pairs, fused=fused)
        self.f = mlp((g[-1], *f, out), dropout)

    def answer(self, objects: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, Q, K]."""
        return self.f(self.g(objects, question, mask))

    @torch.no_grad()
    def relevance(self, objects: Tensor, question: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """How much each pair matters, for `question` [B, Q, E]: two maps [B, Q, N, N].

        The first is the length of g_ij. The second is the drop of the given answer's logit when the pair is left out of the sum,
        f(S) - f(S - g_ij), which is exact, because the sum lets any term be taken away.
        """
        if self.g.pairs != "all":
            raise ShapeError("relevance is a matter of pairs; this network was built with pairs='self'")
        features = self.g.pair_features(objects, question)  # [B, Q, N, N, H]
        if mask is not None:
            features = features * (mask[:, :, None] & mask[:, None])[:, None, :, :, None]
        total = features.sum((2, 3))
        logits = self.f(total)
        given = logits.argmax(-1)[..., None, None]
        without = self.f(total[:, :, None, None] - features)  # [B, Q, N, N, K]
        kept = logits[:, :, None, None].expand_as(without)
        index = given[..., None].expand(*without.shape[:4], 1)
        return features.norm(dim=-1), (kept - without).gather(-1, index)[..., 0]


class FlatMLP(Reasoner):
    """An MLP on all objects in a row and the question; absent objects are zeros."""

    def __init__(
        self, *, objects: int, obj_dim: int, q_dim: int, out: int, widths: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.net = mlp((objects * obj_dim + q_dim, *widths, out), dropout)

    def answer(self, objects: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, Q, K]."""
        if mask is not None:
            objects = objects * mask[:, :, None]
        flat = objects.flatten(1)[:, None].expand(-1, question.shape[1], -1)
        return self.net(torch.cat([flat, question], -1))


class QuestionOnly(Reasoner):
    """An MLP that never looks: what the question alone gives away."""

    def __init__(self, *, q_dim: int, out: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp((q_dim, *widths, out))

    def answer(self, objects: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, Q, K]."""
        return self.net(question)


class StackedAttention(Reasoner):
    """Hops of attention over the objects, the query growing by what it read (Yang et al. 2016, arXiv 1511.02274, equations 15 to 19)."""

    def __init__(
        self,
        *,
        obj_dim: int,
        q_dim: int,
        out: int,
        hidden: int = 64,
        hops: int = 2,
        f: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.value = nn.Linear(obj_dim, hidden)
        self.query = nn.Linear(q_dim, hidden)
        self.keys = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(hops))
        self.asks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(hops))
        self.scores = nn.ModuleList(nn.Linear(hidden, 1, bias=False) for _ in range(hops))
        self.f = mlp((hidden, *f, out), dropout)

    def answer(self, objects: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, Q, K]."""
        values, query = torch.tanh(self.value(objects)), torch.tanh(self.query(question))
        for key, ask, score in zip(self.keys, self.asks, self.scores, strict=True):
            match = torch.tanh(key(values)[:, None] + ask(query)[:, :, None])  # [B, Q, N, H]
            weight = score(match)[..., 0]
            if mask is not None:
                weight = weight.masked_fill(~mask[:, None], float("-inf"))
            query = query + weight.softmax(-1) @ values
        return self.f(query)


def objects_from_map(features: Tensor) -> Tensor:
    """The cells of a map [B, C, h, w] as objects [B, h*w, C+2], with x (to the right) and y (down) in [-1, 1] as the last two features."""
    if features.dim() != 4:
        raise ShapeError(f"a feature map must be [B, C, h, w], not {list(features.shape)}")
    b, _, h, w = features.shape
    y = torch.linspace(-1, 1, h, device=features.device, dtype=features.dtype)
    x = torch.linspace(-1, 1, w, device=features.device, dtype=features.dtype)
    place = torch.stack([x.expand(h, w), y[:, None].expand(h, w)])  # [2, h, w]
    return torch.cat([features, place.expand(b, 2, h, w)], 1).flatten(2).transpose(1, 2)


class PixelEncoder(nn.Module, Pretrained):
    """Convolutions of 3 x 3 with stride 2, batch normalisation and ReLU; each cell of the last map is an object."""

    def __init__(self, *, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((3, *channels)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.obj_dim = channels[-1] + 2

    def forward(self, image: Tensor) -> Tensor:
        """Objects [B, cells, C+2] from uint8 pictures [B, 3, S, S]."""
        if image.dim() != 4 or image.shape[1] != 3 or image.dtype != torch.uint8:
            raise ShapeError(f"pictures must be uint8 [B, 3, S, S], not {image.dtype} {list(image.shape)}")
        return objects_from_map(self.net(image.float() / 255 - 0.5))


class StoryEncoder(nn.Module, Pretrained):
    """Sentences through one LSTM, the question through another; a sentence's object carries its distance from the question."""

    def __init__(self, *, vocabulary: int, sentences: int, embedding: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.sentence = nn.LSTM(embedding, hidden, batch_first=True)
        self.question = nn.LSTM(embedding, hidden, batch_first=True)
        self.sentences = sentences
        self.obj_dim, self.q_dim = hidden + sentences, hidden

    def forward(self, story: Tensor, question: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objects [B, S, H+S], questions [B, Q, H] and which sentences exist, bool [B, S], from words (0 pads)."""
        if story.dim() != 3 or story.shape[1] != self.sentences or question.dim() != 3:
            raise ShapeError(
                f"story must be [B, {self.sentences}, T] and question [B, Q, T], not {list(story.shape)}, {list(question.shape)}"
            )
        mask = story[..., 0] != 0
        age = mask.flip(1).cumsum(1).flip(1) - 1  # 0 for the last sentence
        tag = nn.functional.one_hot(age.clamp(min=0), self.sentences).to(self.words.weight.dtype)
        objects = torch.cat([self._read(self.sentence, story), tag], -1)
        return objects, self._read(self.question, question), mask

    def _read(self, network: nn.LSTM, words: Tensor) -> Tensor:
        """The state after the last word of each row of `words` [B, S, T]: [B, S, H]."""
        flat = words.flatten(0, 1)
        outputs, _ = network(self.words(flat))
        last = ((flat != 0).sum(1) - 1).clamp(min=0)
        return outputs[torch.arange(len(flat), device=flat.device), last].unflatten(0, words.shape[:2])
