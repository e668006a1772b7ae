"""WaveNet and its frame classifier. Shapes: B batch, T samples, F frames of s samples, K classes, N scored positions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.causal.dilated import doubling, receptive_field
from cambrian.nn.hub import Pretrained
from cambrian.systems.perception.wavenet._layers import ContextStack, GatedLayer, Stem, Upsample


class WaveNet(nn.Module, Pretrained):
    """An autoregressive network over mu-law samples: logits of sample t + 1 from the samples up to t.

    `dilated=False` sets every dilation to 1. `global_dim` is the size of g (a speaker, tags), `local_dim` that of the
    frames y, of `local_stride` samples each. `contexts` are context stacks: (layers, width, pool) each.
    """

    def __init__(
        self,
        *,
        classes: int = 256,
        residual: int = 32,
        gate: int | None = None,
        skip: int = 64,
        blocks: int = 2,
        layers: int = 7,
        kernel: int = 2,
        dilated: bool = True,
        inputs: str = "onehot",
        global_dim: int = 0,
        local_dim: int = 0,
        local_stride: int = 1,
        local_channels: int = 16,
        contexts: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        if inputs not in ("onehot", "scalar") or kernel < 2 or classes < 2:
            raise ConfigError("inputs must be onehot or scalar, kernel and classes at least 2")
        gate = gate or residual
        self.classes, self.gate, self.skip = classes, gate, skip
        self.global_dim, self.local_dim, self.local_stride = global_dim, local_dim, local_stride
        self.dilations = doubling(layers, blocks) if dilated else [1] * (layers * blocks)
        self.stem = Stem(classes=classes, channels=residual, kernel=kernel, inputs=inputs)
        last = len(self.dilations) - 1
        self.layers = nn.ModuleList(
            GatedLayer(residual=residual, gate=gate, skip=skip, kernel=kernel, dilation=d, last=i == last)
            for i, d in enumerate(self.dilations)
        )
        self.contexts = nn.ModuleList(ContextStack(classes=classes, layers=n, width=w, pool=p) for n, w, p in contexts)
        told = (local_channels if local_dim else 0) + sum(int(w) for _, w, _ in contexts)
        self.upsample = Upsample(inputs=local_dim, outputs=local_channels, stride=local_stride) if local_dim else None
        self.local_in = nn.Linear(told, len(self.layers) * 2 * gate, bias=False) if told else None
        self.global_in = nn.Linear(global_dim, len(self.layers) * 2 * gate, bias=False) if global_dim else None
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(skip, skip), nn.ReLU(), nn.Linear(skip, classes))
        self.stack_field = receptive_field([1, *self.dilations], kernel)

    def receptive_field(self) -> int:
        """How many samples one output sees, context stacks included."""
        return self.stack_field + max((c.span for c in self.contexts), default=0)

    def forward(
        self,
        idx: Tensor,
        g: Tensor | None = None,
        y: Tensor | None = None,
        *,
        start: int | Tensor = 0,
        valid: bool = False,
    ) -> Tensor:
        """idx [B, T] -> logits [B, K, T]: those at t are of sample t + 1, given idx[:, :t + 1], g [B, G] and y [B, F, C].

        The first sample of idx is at time `start` (one number, or one a clip [B]) of y, whose frame f covers the
        samples f s to (f + 1) s - 1. Silence is put before idx; with `valid` it is not, and the first
        `receptive_field() - 1` positions have no output. Raises `ShapeError`.
        """
        return self.head(self.features(idx, g, y, start=start, valid=valid)).transpose(1, 2)

    def features(
        self, idx: Tensor, g: Tensor | None, y: Tensor | None, *, start: int | Tensor = 0, valid: bool = False
    ) -> Tensor:
        """The sum of the skip outputs [B, N, S], which the head reads; arguments as of `forward`."""
        self.check(idx, g, y)
        lead = self.receptive_field() - 1
        if not valid:
            idx, start = F.pad(idx, (lead, 0), value=self.silence), start - lead
        count = idx.shape[1] - lead
        if count < 1:
            raise ShapeError(f"a clip needs at least {lead + 1} samples (the receptive field), not {idx.shape[1]}")
        inner = count + self.stack_field - 1
        first = self.first_target(start, idx.shape[1] - inner)
        extras = self.extras(g, self.frames(y), first, inner, self.told(idx, start, inner))
        h = self.stem(idx[:, -inner:])
        skips: Tensor | float = 0.0
        for layer, extra in zip(self.layers, extras, strict=True):
            h, skip = layer(h, extra, count)
            skips = skips + skip
        return skips

    # -- conditioning: what is added inside the gates --------------------------------------------------------------

    @property
    def silence(self) -> int:
        """The class that stands before a clip's first sample."""
        return self.classes // 2

    @staticmethod
    def first_target(start: int | Tensor, skipped: int) -> int | Tensor:
        """The time of the sample that the position `skipped` after the first one predicts."""
        return start + skipped + 1

    def frames(self, y: Tensor | None) -> Tensor | None:
        """y [B, F, C] at the audio's rate [B, F s, C']."""
        return None if y is None or self.upsample is None else self.upsample(y)

    def told(self, idx: Tensor, start: int | Tensor, count: int) -> list[Tensor]:
        """What the context stacks say to the successors of the last `count` samples of idx [B, T]: [B, count, W] each."""
        if not self.contexts:
            return []
        if isinstance(start, Tensor):
            if any(bool(((start - start[0]) % c.pool).any()) for c in self.contexts):
                raise ShapeError("with context stacks the clips of a batch must start at the same place of a block")
            start = int(start[0])
        return [context(idx, start, count) for context in self.contexts]

    def extras(
        self, g: Tensor | None, frames: Tensor | None, first: int | Tensor, count: int, told: list[Tensor]
    ) -> list[Tensor | None]:
        """What each layer adds to its gate's inputs for the targets at times first .. first + count - 1: [B, count | 1,
        2G] or None. All layers' projections are one product.
        """
        pieces = [] if frames is None else [_slices(frames, first, count)]
        pieces += [t.expand(-1, count, -1) for t in told]
        total = self.local_in(torch.cat(pieces, 2)) if self.local_in is not None else None
        if self.global_in is not None and g is not None:
            constant = self.global_in(g)[:, None]
            total = constant if total is None else total + constant
        if total is None:
            return [None] * len(self.layers)
        return list(total.split(2 * self.gate, 2))

    def check(self, idx: Tensor, g: Tensor | None, y: Tensor | None) -> None:
        """Raise `ShapeError` unless the three fit this model and each other."""
        if idx.dim() != 2 or idx.is_floating_point() or idx.shape[1] < 1:
            raise ShapeError(f"idx must be integers [B, T], not {idx.dtype} {tuple(idx.shape)}")
        low, high = int(idx.min()), int(idx.max())
        if low < 0 or high >= self.classes:
            raise ShapeError(f"idx must lie in 0..{self.classes - 1}, not {low}..{high}; compand with mulaw_encode")
        for name, given, size, rank in (("g", g, self.global_dim, 2), ("y", y, self.local_dim, 3)):
            if (given is None) != (size == 0):
                want = f"takes {name} of {size} features" if size else f"has no input {name}"
                raise ShapeError(f"this model {want}; {'none' if given is None else 'one'} was given")
            if given is None:
                continue
            if given.dim() != rank or given.shape[0] != len(idx) or given.shape[-1] != size or 0 in given.shape:
                shape = f"[{len(idx)}, {'frames, ' if rank == 3 else ''}{size}]"
                raise ShapeError(f"{name} must be {shape}, not {tuple(given.shape)}")
            if not given.is_floating_point() or not torch.isfinite(given).all():
                raise ShapeError(f"{name} must be finite floating-point numbers")

    # -- likelihood and samples --------------------------------------------------------------------------------------

    def bits(
        self,
        idx: Tensor,
        g: Tensor | None = None,
        y: Tensor | None = None,
        *,
        start: int | Tensor = 0,
        padded: bool = False,
    ) -> Tensor:
        """-log2 p of each sample of idx [B, T] given those before it: [B, T - receptive_field()].

        The first samples have too little past to be scored; with `padded` silence stands before the clip, and all but
        the first are scored: [B, T - 1].
        """
        return nll(self(idx[:, :-1], g, y, start=start, valid=not padded), idx)

    def generate(
        self,
        n: int,
        g: Tensor | None = None,
        y: Tensor | None = None,
        prime: Tensor | None = None,
        temperature: float = 1.0,
        *,
        top_p: float = 1.0,
        batch: int = 1,
        stream: bool = False,
        generator: torch.Generator | None = None,
        path: str = "auto",
        chunk: int = 1024,
    ) -> Tensor | Iterator[Tensor]:
        """Draw n samples a clip, idx [B, n], after the clip `prime` [B, P] (None: silence); `stream` yields pieces of
        at most `chunk` samples as they come. B is that of prime, g or y, else `batch`.

        `path` is how: `naive` (the whole receptive field again for every sample), `cached` (queues, in torch),
        `compiled` (the same in machine code, on the CPU, needs numba) or `auto` (compiled where it can be). The noise
        is the same for all, and so are the samples, up to rounding. y's time begins with the prime.
        Raises `ShapeError`, `ConfigError`, and `MissingExtraError` for `compiled` without numba.
        """
        from cambrian.systems.perception.wavenet._generate import pieces

        made = pieces(
            self, n, g, y, prime, temperature=temperature, top_p=top_p, batch=batch, generator=generator, path=path,
            chunk=chunk,
        )  # fmt: skip
        return made if stream else torch.cat(list(made), 1)


class WaveNetRecognizer(nn.Module, Pretrained):
    """Phones of frames from raw audio: a WaveNet whose features are averaged over each frame and read by a few
    non-causal convolutions. Both its outputs are trained: the next sample and the frame's phone.
    """

    def __init__(
        self,
        *,
        phones: int,
        frame: int = 160,
        channels: int = 64,
        depth: int = 2,
        classes: int = 256,
        residual: int = 32,
        skip: int = 64,
        blocks: int = 2,
        layers: int = 7,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.wavenet = WaveNet(
            classes=classes, residual=residual, skip=skip, blocks=blocks, layers=layers, dilated=dilated
        )
        sizes = [skip, *[channels] * depth]
        convs = [m for a, b in itertools.pairwise(sizes) for m in (nn.Conv1d(a, b, 3, padding=1), nn.ReLU())]
        self.reader = nn.Sequential(nn.ReLU(), *convs, nn.Conv1d(sizes[-1], phones, 1))

    def forward(self, idx: Tensor) -> tuple[Tensor, Tensor]:
        """idx [B, T] -> logits of the next sample [B, K, T] and of the frames' phones [B, P, T // frame]."""
        if idx.dim() == 2 and idx.shape[1] < self.frame:
            raise ShapeError(f"a clip needs at least one frame of {self.frame} samples, not {idx.shape[1]}")
        features = self.wavenet.features(idx, None, None)
        frames = F.avg_pool1d(F.relu(features).transpose(1, 2), self.frame)
        return self.wavenet.head(features).transpose(1, 2), self.reader(frames)


def nll(logits: Tensor, idx: Tensor) -> Tensor:
    """-log2 p [B, N] of the last N samples of idx [B, T]; logits [B, K, N] are of these, the last one's of idx[:, -1]."""
    targets = idx[:, idx.shape[1] - logits.shape[2] :]
    return F.cross_entropy(logits, targets, reduction="none") / math.log(2)


def _slices(x: Tensor, first: int | Tensor, count: int) -> Tensor:
    """x [B, L, C] at times first .. first + count - 1, `first` an int or [B]; beyond its ends the outermost values."""
    steps = torch.arange(count, device=x.device)
    if not isinstance(first, Tensor):
        return x[:, (steps + first).clamp(0, x.shape[1] - 1)]
    at = (first.to(x.device)[:, None] + steps).clamp(0, x.shape[1] - 1)
    return torch.gather(x, 1, at[..., None].expand(-1, -1, x.shape[2]))
