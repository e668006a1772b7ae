"""The network of sketch-rnn, its losses and its sampler. Shapes: B batch, N points, Z latent, H hidden, M mixtures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ShapeError
from cambrian.nn.convlstm import CELLS
from cambrian.nn.hub import Pretrained
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.nn.likelihood import Mixture2D
from cambrian.nn.scan import State, bidirectional, scan

START = (0.0, 0.0, 1.0, 0.0, 0.0)


class SketchRNN(nn.Module, Pretrained):
    """A sequence VAE over stroke-5 drawings [B, N, 5] in units of `scale` pixels; `conditional=False` is the decoder
    alone.

    `cell` is the decoder's: `lstm`, `layernorm` or `hyper`; the encoder uses `lstm` where the decoder is hyper, else
    the same.
    """

    def __init__(
        self,
        *,
        latent: int = 128,
        conditional: bool = True,
        cell: str = "lstm",
        mixtures: int = 20,
        encoder: int = 256,
        decoder: int = 512,
        dropout: float = 0.1,
        max_length: int = 250,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.latent, self.conditional = latent, conditional
        self.max_length, self.scale = max_length, scale
        self.mixture = Mixture2D(mixtures)
        if conditional:
            reader = CELLS["lstm" if cell == "hyper" else cell]
            self.forward_cell = reader(inputs=5, hidden=encoder, dropout=dropout)
            self.backward_cell = reader(inputs=5, hidden=encoder, dropout=dropout)
            self.posterior = nn.Linear(2 * encoder, 2 * latent)
            nn.init.normal_(self.posterior.weight, std=0.001)  # z starts near N(0, I)
            nn.init.zeros_(self.posterior.bias)
        self.decoder = CELLS[cell](inputs=5, hidden=decoder, context=latent if conditional else 0, dropout=dropout)
        self.sizes = [s.shape[1] for s in self.decoder.initial(1, torch.zeros(1, 5))]
        self.bridge = nn.Linear(latent, sum(self.sizes)) if conditional else None
        self.head = nn.Linear(decoder, self.mixture.n_params + 3)

    def encode(self, strokes: Tensor, lengths: Tensor) -> DiagGaussian:
        """The posterior over z [B, Z] of drawings [B, N, 5]; what lies beyond `lengths` [B] is not read."""
        if not self.conditional:
            raise ShapeError("this model is the decoder alone (conditional=False), it has no encoder")
        self._check(strokes)
        _, ahead, back = bidirectional(self.forward_cell, self.backward_cell, strokes.transpose(0, 1), lengths=lengths)
        mean, logvar = self.posterior(torch.cat((ahead[0], back[0]), 1)).chunk(2, 1)
        return DiagGaussian(mean, logvar)

    def start(self, batch: int, z: Tensor | None) -> State:
        """The decoder's first state: tanh(W_z z + b_z), or zero for the decoder alone."""
        like = self.head.weight
        if self.bridge is None or z is None:
            return self.decoder.initial(batch, like)
        return tuple(torch.tanh(self.bridge(z)).split(self.sizes, 1))

    def forward(self, strokes: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Teacher forcing: raw mixture parameters [B, N, 6M] and pen logits [B, N, 3] for each point given those
        before it.
        """
        self._check(strokes, z)
        first = strokes.new_tensor(START).expand(len(strokes), 1, 5)
        previous = torch.cat((first, strokes[:, :-1]), 1).transpose(0, 1)
        outputs, _ = scan(self.decoder, previous, self.start(len(strokes), z), context=z)
        return self._split(outputs.transpose(0, 1))

    def elbo(self, strokes: Tensor, lengths: Tensor, generator: torch.Generator) -> Losses:
        """Losses of drawings [B, N, 5] with one latent sample each, padding not counted. `Losses.bound` is in nats."""
        posterior = self.encode(strokes, lengths) if self.conditional else None
        params, pen = self(strokes, None if posterior is None else posterior.sample(generator))
        return losses(self.mixture, params, pen, strokes, lengths, posterior, count_padding=False)

    @torch.no_grad()
    def generate(
        self,
        z: Tensor | None,
        *,
        batch: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator,
        prefix: Tensor | None = None,
        reference_temperature: bool = False,
    ) -> Tensor:
        """Draw from z [B, Z] (or `batch` drawings without one): stroke-5 [B, n, 5], n <= max_length, after `prefix`
        [B, k, 5].

        Rows after a drawing's end are (0, 0, 0, 0, 1). Temperature 0 takes the likeliest component's mean and pen
        state.
        """
        batch = len(z) if z is not None else batch
        device = self.head.weight.device
        last = torch.tensor(START, device=device).expand(batch, 5)
        state = self.start(batch, z)
        rows = [] if prefix is None else list(prefix.unbind(1))
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        for t in range(self.max_length):
            output, state = self.decoder.step(self._project(last, z), state)
            if prefix is not None and t < prefix.shape[1]:
                last = prefix[:, t]
                continue
            params, pen = self._split(output)
            last = self._draw(params, pen, temperature, generator, reference_temperature)
            last = torch.where(ended[:, None], last.new_tensor((0.0, 0.0, 0.0, 0.0, 1.0)), last)
            ended = ended | (last[:, 4] > 0.5)
            rows.append(last)
            if bool(ended.all()):
                break
        return torch.stack(rows, 1)

    def _project(self, rows: Tensor, z: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        projected = self.decoder.project(rows[None], z)
        return projected[0] if isinstance(projected, Tensor) else tuple(p[0] for p in projected)

    def _draw(
        self, params: Tensor, pen: Tensor, temperature: float, generator: torch.Generator, squared: bool
    ) -> Tensor:
        spread = temperature**2 if squared else None
        offset = self.mixture.sample(params, generator, temperature, spread=spread)
        if temperature <= 0:
            state = pen.argmax(-1)
        else:
            weights = torch.softmax(pen / temperature, -1).to(generator.device)
            state = torch.multinomial(weights, 1, generator=generator)[:, 0].to(pen.device)
        pen_state = F.one_hot(state, 3).to(offset.dtype)
        return torch.cat((offset * (1 - pen_state[:, 2:]), pen_state), 1)  # the end has no offset, as in training

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.head(outputs)
        return raw[..., : self.mixture.n_params], raw[..., self.mixture.n_params :]

    def _check(self, strokes: Tensor, z: Tensor | None = None) -> None:
        if strokes.dim() != 3 or strokes.shape[2] != 5 or not strokes.is_floating_point():
            raise ShapeError(f"drawings must be float stroke-5 [B, N, 5], not {strokes.dtype} {tuple(strokes.shape)}")
        if z is not None and (not self.conditional or z.shape != (len(strokes), self.latent)):
            raise ShapeError(f"z must be [{len(strokes)}, {self.latent}] of a conditional model, not {tuple(z.shape)}")


@dataclass(frozen=True)
class Losses:
    """Per drawing [B]: `offsets` L_s and `pen` L_p divided by N_max, `kl` L_KL (mean over Z); `n_max` and `n_z` undo
    the divisions.
    """

    offsets: Tensor
    pen: Tensor
    kl: Tensor
    n_max: int
    n_z: int

    @property
    def reconstruction(self) -> Tensor:
        """L_R [B]."""
        return self.offsets + self.pen

    @property
    def bound(self) -> Tensor:
        """Upper bound on -log p(drawing) [B] in nats, of offsets in units of the scale."""
        return self.n_max * self.reconstruction + self.n_z * self.kl


def losses(
    mixture: Mixture2D,
    params: Tensor,
    pen: Tensor,
    strokes: Tensor,
    lengths: Tensor,
    posterior: DiagGaussian | None,
    *,
    count_padding: bool,
) -> Losses:
    """The paper's L_s, L_p (equation 9) and L_KL (equation 10) of drawings [B, N, 5] padded to N_max = N.

    The end of a drawing is predicted once: at position `lengths`, the first row of padding. `count_padding` includes
    the rest of the padding in the pen loss, as in training. A drawing that fills all N rows has no end to predict.
    """
    n_max = strokes.shape[1]
    at = torch.arange(n_max, device=strokes.device)[None, :]
    inside = at < lengths[:, None]
    # `where` before the density: padding may hold anything, also what gives NaN
    offsets = torch.where(inside[..., None], strokes[..., :2], strokes.new_zeros(()))
    log_density = mixture.log_prob(params, offsets)
    log_pen = -F.cross_entropy(pen.transpose(1, 2), _pen_states(strokes, inside), reduction="none")
    counted = torch.ones_like(inside) if count_padding else at <= lengths[:, None]
    return Losses(
        offsets=-torch.where(inside, log_density, log_density.new_zeros(())).sum(1) / n_max,
        pen=-torch.where(counted, log_pen, log_pen.new_zeros(())).sum(1) / n_max,
        kl=kl_diag(posterior).mean(1) if posterior is not None else log_density.new_zeros(len(strokes)),
        n_max=n_max,
        n_z=posterior.mean.shape[1] if posterior is not None else 0,
    )


def _pen_states(strokes: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside, (strokes[..., 3] > 0.5).long(), 2)


def augment(strokes: Tensor, lengths: Tensor, draws: Tensor, *, stretch: float, drop: float) -> tuple[Tensor, Tensor]:
    """Stretch x and y independently by 1 +- `stretch` and merge points inside strokes with probability `drop`.

    Stroke-3 [B, L, 3] and lengths [B] -> the same forms; `draws` uniform [B, L + 2]. Dropped points give their offset
    to the next one, so the rest of the drawing stays in place. The first two points and the last of a stroke are
    never dropped.
    """
    ends = strokes[..., 2] > 0.5
    before = F.pad(ends, (1, 0), value=True)[:, :-1]  # the point before this one ended a stroke
    second = F.pad(before, (1, 0), value=True)[:, :-1]
    at = torch.arange(strokes.shape[1], device=strokes.device)[None, :]
    inside = at < lengths[:, None]
    drops = inside & ~ends & ~before & ~second & (at < lengths[:, None] - 1) & (draws[:, 2:] < drop)
    points = strokes[..., :2].cumsum(1)
    order = (drops | ~inside).long().argsort(dim=1, stable=True)
    kept = torch.gather(points, 1, order[..., None].expand(-1, -1, 2))
    offsets = torch.cat((kept[:, :1], kept[:, 1:] - kept[:, :-1]), 1)
    offsets = offsets * (1 + stretch * (2 * draws[:, None, :2] - 1))
    out = torch.cat((offsets, torch.gather(strokes[..., 2:], 1, order[..., None])), 2)
    lengths = lengths - drops.sum(1)
    return torch.where((at < lengths[:, None])[..., None], out, out.new_zeros(())), lengths
