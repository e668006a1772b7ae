"""The pointer network and its two baselines. Shapes: B sets, n points, M positions of an answer, H hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.attention.scorers import Additive
from cambrian.nn.cells import LSTMCell
from cambrian.nn.decode import Hypotheses, beam, greedy
from cambrian.nn.hub import Pretrained
from cambrian.nn.scan import scan
from cambrian.nn.seq2seq import State
from cambrian.systems.language.ptr_net import _valid

OUTPUTS = ("pointer", "attention", "dictionary")


class PointerNet(nn.Module, Pretrained):
    """Reads points and answers with a sequence of their numbers: 0 stops, i points at point i.

    `output` "pointer" scores the encoder's states themselves, so that any number of points will do; "attention" and
    "dictionary" (with and without attention) choose from `largest` numbers, whatever the input. The decoder reads the
    coordinates of the point chosen last. `permute` shows the scores the states of other positions (a check of the claim).
    """

    def __init__(
        self, *, in_dim: int = 2, hidden: int = 128, output: str = "pointer", largest: int = 10, init: float = 0.08,
        permute: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if output not in OUTPUTS:
            raise ConfigError(f"output must be one of {', '.join(OUTPUTS)}, not {output!r}")
        self.in_dim, self.hidden, self.output, self.largest, self.permute = in_dim, hidden, output, largest, permute
        self.encoder = LSTMCell(inputs=in_dim, hidden=hidden)
        self.decoder = LSTMCell(inputs=in_dim, hidden=hidden)
        self.begin = nn.Parameter(torch.empty(in_dim))
        self.stop = nn.Parameter(torch.empty(hidden))
        self.scorer = Additive(query=hidden, key=hidden, size=hidden) if output != "dictionary" else None
        if output != "pointer":
            self.classes = nn.Linear(2 * hidden if output == "attention" else hidden, largest + 1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)

    def forward(self, points: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """Logits [B, M, n + 1] of every position of target [B, M] given those before it (`target` -1 is padding).

        points [B, n, in_dim], of which the first `count` [B] are real. Raises `ShapeError`.
        """
        count = self.check(points, count)
        if target.dim() != 2 or len(target) != len(points) or int(target.max()) > points.shape[1]:
            raise ShapeError(
                f"targets are [{len(points)}, M] numbers up to {points.shape[1]}, not {tuple(target.shape)}"
            )
        return self.unroll(target, self.memory(points, count))

    def check(self, points: Tensor, count: Tensor | None) -> Tensor:
        """The counts [B]; raises `ShapeError` for points that this net cannot read."""
        if points.dim() != 3 or points.shape[2] != self.in_dim or not bool(torch.isfinite(points).all()):
            raise ShapeError(f"points are finite [B, n, {self.in_dim}], not {tuple(points.shape)}")
        if self.output != "pointer" and points.shape[1] > self.largest:
            raise ShapeError(f"a fixed dictionary of {self.largest} numbers cannot answer for {points.shape[1]} points")
        if count is None:
            return torch.full((len(points),), points.shape[1], device=points.device)
        if count.shape != points.shape[:1] or int(count.min()) < 1 or int(count.max()) > points.shape[1]:
            raise ShapeError(f"counts are {len(points)} numbers in 1..{points.shape[1]}, not {count.tolist()[:8]}")
        return count

    # -- the decoder protocol of cambrian.nn.seq2seq ------------------------------------------------------------------

    def memory(self, points: Tensor, count: Tensor) -> State:
        """The decoder's first state: (h, c, inputs [B, n + 1, in_dim], keys, prepared keys, mask [B, n + 1])."""
        states, (h, c) = scan(self.encoder, points.transpose(0, 1), lengths=count)
        keys = torch.cat((self.stop.expand(len(points), 1, -1), states.transpose(0, 1)), 1)
        if self.permute:
            keys = torch.cat((keys[:, :1], keys[:, 1:].roll(1, 0).flip(1)), 1)
        inputs = torch.cat((self.begin.expand(len(points), 1, -1), points), 1)
        at = torch.arange(points.shape[1] + 1, device=points.device)
        mask = at <= count[:, None]
        prepared = keys if self.scorer is None else self.scorer.prepare(keys)
        return h, c, inputs, keys, prepared, mask

    def step(self, last: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, n + 1] of the next number, after `last` [B] (-1 at the beginning)."""
        h, c, *memory = state
        rows = torch.arange(len(last), device=last.device)
        chosen = memory[0][rows, last.clamp(min=0)]
        out, (h, c) = self.decoder.step(self.decoder.project(chosen[None])[0], (h, c))
        return self._logits(out[:, None], memory)[:, 0], (h, c, *memory)

    def unroll(self, target: Tensor, state: State) -> Tensor:
        """Logits [B, M, n + 1], the decoder's LSTM as one sweep and its scores as one product."""
        h, c, *memory = state
        before = torch.cat((torch.zeros_like(target[:, :1]), target[:, :-1].clamp(min=0)), 1)
        chosen = memory[0].gather(1, before[:, :, None].expand(-1, -1, self.in_dim))
        out, _ = scan(self.decoder, chosen.transpose(0, 1), (h, c))
        return self._logits(out.transpose(0, 1), memory)

    def _logits(self, out: Tensor, memory: list[Tensor]) -> Tensor:
        """[B, M, n + 1] from decoder states [B, M, H]; minus infinity for points that are not there."""
        _, keys, prepared, mask = memory
        if self.output == "pointer":
            assert self.scorer is not None
            return self.scorer.scores(out, keys, mask, cached=prepared)
        if self.scorer is not None:
            _, context = self.scorer(out, keys, mask, cached=prepared)
            out = torch.cat((out, context), 2)
        logits = self.classes(out)[:, :, : keys.shape[1]]
        return logits.masked_fill(~mask[:, None], -torch.inf)

    # -- answers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(
        self,
        points: Tensor,
        count: Tensor | None = None,
        *,
        beam_width: int = 1,
        valid: str = "none",
        steps: int | None = None,
    ) -> Hypotheses:
        """Answers for points [B, n, in_dim], best first. `valid` "hull", "tour" or "delaunay" searches valid answers alone: a
        convex polygon without repetition, a permutation, a list of different triangles."""
        count = self.check(points, count)
        allowed = _valid.constraint(valid, points, count)
        steps = steps or _valid.steps(valid, points.shape[1])
        batch, state = len(points), self.memory(points, count)
        if beam_width == 1:
            symbols, total = greedy(self, state, batch=batch, steps=steps, stop=0, allowed=allowed)
            return Hypotheses(symbols[:, None], total[:, None], total[:, None])
        return beam(self, state, batch=batch, width=beam_width, steps=steps, stop=0, allowed=allowed)
