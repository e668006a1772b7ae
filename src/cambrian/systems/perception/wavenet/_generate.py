"""Drawing samples one after another: naively, from queues, and from queues in machine code. All give the same samples.

A sample is argmax_k (log p_k / temperature + Gumbel noise_k), which is a draw from the softmax (Gumbel 1954); the noise
is drawn before, a chunk at a time, so that it depends on neither the way nor the number of samples asked for at once.

Shapes: B clips, m samples of a chunk, K classes, L layers, G gate channels, R residual channels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, MissingExtraError, ShapeError

if TYPE_CHECKING:
    from cambrian.systems.perception.wavenet.model import WaveNet

NOISE_ROWS = 256  # noise is drawn for so many samples at a time
PATHS = ("auto", "compiled", "cached", "naive")


def gumbel(rows: int, batch: int, classes: int, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise, float64 [rows, B, K] on the CPU."""
    uniform = torch.rand(rows, batch, classes, dtype=torch.float64, generator=generator)
    return uniform.clamp_(min=1e-300).log_().neg_().log_().neg_()


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """`logits` [..., K] with all but the likeliest classes at -inf: the fewest that hold a share of at least `top_p`."""
    if top_p >= 1:
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    shares = torch.softmax(logits, -1).gather(-1, order)
    before = shares.cumsum(-1) - shares  # the likeliest class has nothing before it, so it always stays
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(dropped, -math.inf)


def choose(logits: Tensor, noise: Tensor | None, temperature: float, top_p: float) -> Tensor:
    """Classes [B] drawn from logits [B, K] with `noise` [B, K]; without noise (temperature 0) the likeliest."""
    if noise is None:
        return logits.argmax(-1)
    return (nucleus(logits / temperature, top_p) + noise).argmax(-1)


def pieces(
    model: WaveNet,
    n: int,
    g: Tensor | None,
    y: Tensor | None,
    prime: Tensor | None,
    *,
    temperature: float,
    top_p: float,
    batch: int,
    generator: torch.Generator | None,
    path: str,
    chunk: int,
) -> Iterator[Tensor]:
    """Samples idx [B, <= chunk], n in all; see `WaveNet.generate`. Everything is checked at the call, not at the first piece."""
    if n < 0 or batch < 1 or chunk < 1:
        raise ConfigError(f"n must be at least 0, batch and chunk at least 1, not {n}, {batch} and {chunk}")
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ConfigError(f"temperature must be finite and >= 0, top_p in (0, 1], not {temperature} and {top_p}")
    stream = Stream(model, g, y, prime, batch=batch, path=path)

    def run() -> Iterator[Tensor]:
        held: Tensor | None = None
        done = 0
        while done < n:
            if temperature > 0 and (held is None or not len(held)):
                held = gumbel(NOISE_ROWS, stream.batch, model.classes, generator).to(stream.like)
            rows = min(chunk, n - done, NOISE_ROWS if held is None else len(held))
            made = stream.advance(rows, None if held is None else held[:rows], temperature, top_p)
            held = None if held is None else held[rows:]
            done += rows
            yield made

    return run()


class Stream:
    """Clips that are being generated: what the next sample depends on, and how it is computed."""

    @torch.no_grad()
    def __init__(
        self, model: WaveNet, g: Tensor | None, y: Tensor | None, prime: Tensor | None, *, batch: int = 1,
        path: str = "auto",
    ) -> None:  # fmt: skip
        if path not in PATHS:
            raise ConfigError(f"path must be one of {', '.join(PATHS)}, not {path!r}")
        self.model, self.like = model, model.stem.bias
        given = next((t for t in (prime, g, y) if t is not None), None)
        self.batch = len(given) if given is not None else batch
        if prime is not None and prime.dim() != 2:
            raise ShapeError(f"prime must be integers [B, P], not {tuple(prime.shape)}")
        silence = torch.full((self.batch, model.receptive_field()), model.silence, device=self.like.device)
        prime = silence[:, :0] if prime is None else prime.to(silence.device)
        self.history = torch.cat((silence, prime), 1)[:, -model.receptive_field() :]
        self.time = prime.shape[1]  # of the sample that comes next
        model.check(self.history, g, y)
        self.g, self.y, self.frames = g, y, model.frames(y)
        self.path = resolved(path, self.like)
        self.machine = {"naive": Naive, "cached": Cached, "compiled": _compiled}[self.path](self)

    @torch.no_grad()
    def advance(self, rows: int, noise: Tensor | None, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """The next `rows` samples idx [B, rows], with `noise` [rows, B, K] (None: the likeliest ones)."""
        out = []
        while rows:
            # a context stack says something new whenever a block of its is over
            pools = [int(c.pool) for c in self.model.contexts]
            m = min([rows, *(pool - self.time % pool for pool in pools)])
            made = self.machine.draw(m, None if noise is None else noise[:m], temperature, top_p)
            self.history = torch.cat((self.history, made), 1)[:, -self.model.receptive_field() :]
            self.time += m
            rows, noise = rows - m, None if noise is None else noise[m:]
            out.append(made)
        return torch.cat(out, 1)

    def extras(self, count: int) -> list[Tensor | None]:
        """What the layers' gates are given for the next `count` samples: L of [B, count | 1, 2G] or None."""
        length = self.history.shape[1]
        told = self.model.told(self.history, self.time - length, 1)
        return self.model.extras(self.g, self.frames, self.time, count, told)

    def pasts(self) -> list[Tensor]:
        """What stands in each layer's queue before the latest sample goes in: [B, span, R] each, by one parallel pass."""
        model = self.model
        start = self.time - self.history.shape[1]
        idx = self.history[:, :-1]
        inner = model.stack_field - 1
        h = model.stem(idx[:, -inner:])
        first = model.first_target(start, idx.shape[1] - inner)
        extras = model.extras(self.g, self.frames, first, inner, model.told(idx, start, inner))
        pasts = []
        for layer, extra in zip(model.layers, extras, strict=True):
            pasts.append(h[:, h.shape[1] - layer.conv.span :])
            if h.shape[1] > layer.conv.span:
                h, _ = layer(h, extra, 1)
        return pasts


def resolved(path: str, like: Tensor) -> str:
    """The way that `path` names on this machine; `auto` falls back to `cached`, with a note where numba is missing."""
    able = find_spec("numba") is not None
    local = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    if path == "compiled":
        if not able:
            raise MissingExtraError("numba", "fast")
        if not local:
            raise CapabilityError(f"compiled generation runs on the CPU in float32 or float64, not on {like.device}")
    if path != "auto":
        return path
    if local and not able:
        warnings.warn("numba is not installed: generation is many times slower; pip install 'cambrian[fast]'", stacklevel=2)  # fmt: skip
    return "compiled" if able and local else "cached"


class Naive:
    """The whole receptive field again for every sample."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def draw(self, count: int, noise: Tensor | None, temperature: float, top_p: float) -> Tensor:
        """The next samples [B, count]."""
        stream, window = self.stream, self.stream.history
        for t in range(count):
            idx = window[:, t:]
            start = stream.time + t - idx.shape[1]
            logits = stream.model(idx, stream.g, stream.y, start=start, valid=True)[:, :, -1]
            made = choose(logits, None if noise is None else noise[t], temperature, top_p)
            window = torch.cat((window, made[:, None]), 1)
        return window[:, -count:]


class Cached:
    """A queue of past inputs for every layer, so that a sample costs one step of each (Paine et al. 2016)."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        layers = stream.model.layers
        self.queues = [layer.conv.resume(past) for layer, past in zip(layers, stream.pasts(), strict=True)]
        self.table = stream.model.stem.table().flatten(0, 1)  # [k K, R]
        self.shift = torch.arange(stream.model.stem.kernel, device=self.table.device) * stream.model.classes

    def logits(self, recent: Tensor, extras: list[Tensor | None]) -> Tensor:
        """Logits [B, K] of the next sample; `recent` [B, k] are the latest ones, `extras` L of [B, 2G] or None."""
        model = self.stream.model
        h = F.embedding(recent + self.shift, self.table).sum(1) + model.stem.bias
        skips: Tensor | float = 0.0
        for layer, queue, extra in zip(model.layers, self.queues, extras, strict=True):
            a = layer.conv.step(h, queue, extra)
            h, skip = layer.finish(a[:, None], h[:, None], 1)
            h, skips = h[:, 0], skips + skip[:, 0]
        return model.head(skips)

    def draw(self, count: int, noise: Tensor | None, temperature: float, top_p: float) -> Tensor:
        """The next samples [B, count]."""
        stream, k = self.stream, self.stream.model.stem.kernel
        extras = [None if e is None else e.expand(-1, count, -1).unbind(1) for e in stream.extras(count)]
        recent = stream.history[:, -k:]
        out = []
        for t in range(count):
            logits = self.logits(recent, [None if e is None else e[t] for e in extras])
            made = choose(logits, None if noise is None else noise[t], temperature, top_p)
            recent = torch.cat((recent[:, 1:], made[:, None]), 1)
            out.append(made)
        return torch.stack(out, 1)


def _compiled(stream: Stream) -> object:
    from cambrian.systems.perception.wavenet._compiled import Compiled

    return Compiled(stream)
