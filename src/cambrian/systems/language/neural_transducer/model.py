"""The network of the neural transducer: encoder, one step of the transducer, and all steps of an alignment at once.

An alignment is a tensor of counts [B, N]: how many symbols each block writes before its `<e>`. Symbols are 0..V-1, `<e>`
is V, and what follows the last symbol of a target is -1.

Shapes: B batch, T frames, F features, W frames a block, N blocks, M steps a block at most, S symbols, J hypotheses of one
utterance, L steps of an alignment, D encoder features, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.cells import RNN, LSTMCell
from cambrian.nn.hub import Pretrained
from cambrian.nn.scan import State
from cambrian.systems.language.neural_transducer._attention import scorer
from cambrian.systems.language.neural_transducer._decode import Decoded, Stream, beam_search, greedy
from cambrian.systems.language.neural_transducer._search import search
from cambrian.systems.language.neural_transducer._steps import Steps, unrolled

ENDS = ("symbol", "logistic", "none")


@dataclass(frozen=True)
class Encoded:
    """Blocks of encoder states: `memory` [B, N, W, D], `keys` [B, N, W, K], `mask` bool [B, N, W], `blocks` int64 [B]."""

    memory: Tensor
    keys: Tensor
    mask: Tensor
    blocks: Tensor

    def block(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Memory, keys and mask of block n: [B, W, .]."""
        return self.memory[:, n], self.keys[:, n], self.mask[:, n]

    def separate(self) -> Encoded:
        """Every block as an utterance of its own: [B N, 1, W, .]."""
        whole = (self.memory, self.keys, self.mask)
        return Encoded(*(t.flatten(0, 1)[:, None] for t in whole), self.blocks.new_ones(self.mask.shape[:2].numel()))


class NeuralTransducer(nn.Module, Pretrained):
    """Reads frames [B, T, F] in blocks of `W` and writes at most `M` - 1 of `vocab` symbols after each.

    `attention` over a block: lstm, mlp, dot or none (its last state). `end` of a block: a `symbol` of the softmax, a
    `logistic` unit on the context, or `none`: M - 1 steps, of which one that repeats the last symbol writes nothing.
    `independent` forgets everything but the encoder at every block; `encoder_reset` makes the encoder forget too.
    With `W` as long as the utterance and `attention="mlp"` it is the offline model with attention, and `<e>` its end.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        vocab: int,
        W: int = 8,
        M: int = 4,
        attention: str = "lstm",
        end: str = "symbol",
        hidden: int = 128,
        encoder_layers: int = 1,
        upper_layers: int = 1,
        bidirectional: bool = False,
        independent: bool = False,
        encoder_reset: bool = False,
    ) -> None:
        super().__init__()
        if min(in_dim, vocab, W, hidden, encoder_layers, upper_layers) < 1 or M < 2:
            raise ConfigError(f"sizes must be at least 1 and M at least 2 (a symbol and <e>), not W {W} and M {M}")
        if end not in ENDS:
            raise ConfigError(f"end must be one of {', '.join(ENDS)}, not {end!r}")
        self.in_dim, self.vocab, self.W, self.M, self.end_by = in_dim, vocab, W, M, end
        self.bidirectional, self.independent, self.encoder_reset = bidirectional, independent, encoder_reset
        self.end = vocab
        self.width = hidden * (2 if bidirectional else 1)
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))
        self.encoder = RNN(inputs=in_dim, hidden=hidden, layers=encoder_layers, bidirectional=bidirectional)
        self.embedding = nn.Embedding(vocab + 1, hidden)
        self.lower = LSTMCell(inputs=hidden + self.width, hidden=hidden)
        self.attention = scorer(attention, query=hidden, memory=self.width, window=W)
        self.upper = RNN(inputs=hidden + self.width, hidden=hidden, layers=upper_layers)
        self.head = nn.Linear(hidden, vocab + (end != "logistic"))
        self.stop = nn.Linear(self.width, 1) if end == "logistic" else None

    # -- the encoder -----------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, frames: Tensor | None = None) -> Encoded:
        """Encoder states of x [B, T, F] in blocks; `frames` int64 [B] of each utterance count (default: all T)."""
        frames = self._check(x, frames)
        n = -(-x.shape[1] // self.W)
        x = F.pad((x - self.mean) / self.scale, (0, 0, 0, n * self.W - x.shape[1]))
        within = (torch.arange(n * self.W, device=x.device) < frames[:, None]).unflatten(1, (n, self.W))
        if self.encoder_reset:
            pieces = x.unflatten(1, (n, self.W)).flatten(0, 1)
            h, _ = self.encoder(pieces.transpose(0, 1), lengths=within.sum(2).flatten())
            memory = h.transpose(0, 1).unflatten(0, (len(x), n))
        else:
            full = bool((frames == x.shape[1]).all())
            h, _ = self.encoder(x.transpose(0, 1), lengths=None if full else frames)
            memory = h.transpose(0, 1).unflatten(1, (n, self.W))
        return Encoded(memory, self.attention.project(memory), within, -(-frames // self.W))

    # -- one step --------------------------------------------------------------------------------------------------

    def initial(self, rows: int) -> State:
        """The transducer's state before the first step: s, its cell, the context, the attention's, the upper layers'."""
        like = self.head.weight
        upper = [part for layer in self.upper.initial(rows, like) for part in layer]
        own = self.lower.initial(rows, like)
        return (*own, like.new_zeros(rows, self.width), *self.attention.initial(rows, like), *upper)

    def step(
        self, previous: Tensor, block: tuple[Tensor, Tensor, Tensor], state: State
    ) -> tuple[Tensor, State, Tensor]:
        """log p [B, J, V+1] after the symbols `previous` [B, J] for J hypotheses of each utterance, whose states are
        rows [B J, .]; and the new state and the attention [B, J, W]. `block` is memory, keys and mask of one block.
        """
        s, context, weights, state = self.look(self.embedding(previous.flatten()), block, state)
        split = len(state) - 2 * self.upper.layers
        upper = tuple(zip(state[split::2], state[split + 1 :: 2], strict=True))
        out, new = self.upper.step(torch.cat((context, s), 1), upper)
        state = (*state[:split], *(part for layer in new for part in layer))
        return self.log_probs(out, context).view(*previous.shape, -1), state, weights

    def look(
        self, embedded: Tensor, block: tuple[Tensor, Tensor, Tensor], state: State
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """The part of a step that feeds back: s_m [R, H], c_m [R, D], attention [B, J, W], and the state (the upper
        layers' left as they were).
        """
        memory, keys, mask = block
        used = 3 + len(self.attention.initial(0, embedded))
        h, cell, context, *attending = state[:used]
        gates = self.lower.project(torch.cat((embedded, context), 1))
        s, (h, cell) = self.lower.step(gates, (h, cell))
        query = s.view(len(memory), -1, s.shape[1])
        weights, attending = self.attention.step(query, keys, mask, tuple(attending))
        context = (weights @ memory).flatten(0, 1)
        return s, context, weights, (h, cell, context, *attending, *state[used:])

    def log_probs(self, out: Tensor, context: Tensor) -> Tensor:
        """log p over symbols and `<e>` [..., V+1] from h' [..., H] and the context [..., D]."""
        logits = self.head(out)
        if self.stop is None:
            return logits.log_softmax(-1)
        stop = self.stop(context)
        return torch.cat((logits.log_softmax(-1) + F.logsigmoid(-stop), F.logsigmoid(stop)), -1)

    # -- whole utterances ------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor, alignment: Tensor, frames: Tensor | None = None) -> Tensor:
        """log p of targets y [B, S] written as `alignment` [B, N] says: nats [B]."""
        encoded = self.encode(x, frames)
        self.check_targets(y, encoded.blocks)
        return unrolled(self, encoded, Steps.of(self, y, alignment, encoded))

    def loss(self, x: Tensor, y: Tensor, alignment: Tensor, frames: Tensor | None = None) -> Tensor:
        """-log p per step of the alignment (symbols and ends of blocks), averaged over the batch."""
        encoded = self.encode(x, frames)
        self.check_targets(y, encoded.blocks)
        steps = Steps.of(self, y, alignment, encoded)
        return -unrolled(self, encoded, steps).sum() / steps.valid.sum()

    forward = loss

    @torch.no_grad()
    def align(self, x: Tensor, y: Tensor, frames: Tensor | None = None) -> Tensor:
        """The best alignment [B, N] that the search finds for targets y [B, S]. Raises `ShapeError` without any."""
        encoded = self.encode(x, frames)
        self.check_targets(y, encoded.blocks)
        return search(self, encoded, y)[0]

    @torch.no_grad()
    def decode(self, x: Tensor, frames: Tensor | None = None, *, beam: int = 1) -> list[Decoded]:
        """What it writes for x [B, T, F]: greedily, or the best of a beam of hypotheses."""
        encoded = self.encode(x, frames)
        return greedy(self, encoded) if beam == 1 else beam_search(self, encoded, beam)

    def stream(self) -> Stream:
        """An object that takes frames as they come. Raises `CapabilityError` for a bidirectional encoder."""
        return Stream(self)

    def check_targets(self, y: Tensor, blocks: Tensor) -> None:
        """Raise `ShapeError` unless y [B, S] has symbols of the vocabulary, then only -1, and few enough of them."""
        if y.dim() != 2 or len(y) != len(blocks) or y.is_floating_point():
            raise ShapeError(f"targets must be int64 [{len(blocks)}, S], not {y.dtype} {tuple(y.shape)}")
        if y.numel() and (int(y.min()) < -1 or int(y.max()) >= self.vocab):
            raise ShapeError(f"symbols are 0..{self.vocab - 1}, and -1 after the last; found {int(y.min())}..{int(y.max())}")  # fmt: skip
        lengths = (y >= 0).sum(1)
        if bool(((y >= 0) != (torch.arange(y.shape[1], device=y.device) < lengths[:, None])).any()):
            raise ShapeError("a target is written without gaps: -1 stands only after its last symbol")
        over = (lengths > blocks * (self.M - 1)).nonzero()
        if len(over):
            i = int(over[0])
            raise ShapeError(
                f"target {i} has no alignment: S = {int(lengths[i])} symbols, but its {int(blocks[i])} blocks (L of at most "
                f"{int(blocks[i]) * self.W} frames, W = {self.W}) hold {self.M - 1} each (M = {self.M}); raise M or lower W"
            )
        if self.end_by == "none" and bool(((y[:, 1:] == y[:, :-1]) & (y[:, 1:] >= 0)).any()):
            raise ShapeError("without an end of block (end='none') a symbol that follows itself cannot be written")

    def _check(self, x: Tensor, frames: Tensor | None) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.in_dim or x.shape[1] < 1 or not x.is_floating_point():
            raise ShapeError(f"frames must be float [B, T, {self.in_dim}], not {x.dtype} {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise ShapeError("frames must be finite; found NaN or infinity")
        if frames is None:
            return torch.full((len(x),), x.shape[1], device=x.device)
        if frames.shape != x.shape[:1] or int(frames.min()) < 1 or int(frames.max()) > x.shape[1]:
            raise ShapeError(f"numbers of frames must be [{len(x)}] in 1..{x.shape[1]}, not {frames.tolist()[:8]}")
        return frames
