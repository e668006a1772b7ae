"""Training, evaluation and actions of sketch-rnn. Shapes: B batch, N points, Z latent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.data import strokes as files
from cambrian.data.random import uniform
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.data.stroke_formats import (
    polylines_to_stroke3,
    polylines_to_svg,
    rdp,
    stroke3_to_polylines,
    stroke3_to_stroke5,
    stroke5_to_stroke3,
    svg_to_polylines,
)
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Drawings, Gallery, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.nn.latent import DiagGaussian, exponential_weight, floored, slerp
from cambrian.systems.likelihood.sketch_rnn.model import SketchRNN, augment, losses
from cambrian.worlds import sketches

CANVAS = 200.0  # an SVG that is to be completed is scaled to this size, that of the drawings in the published sets


@config
class Config:
    """Options of sketch-rnn."""

    steps: int = option(500, "training steps", low=1)
    batch: int = option(32, "drawings per step", low=2)
    conditional: bool = option(True, "read the drawing into z; off: the decoder alone")
    cell: str = option("lstm", "decoder's cell", choices=("lstm", "layernorm", "hyper"))
    latent: int = option(64, "Z, latent size", low=1)
    encoder: int = option(96, "LSTM width per direction of the encoder", low=1)
    decoder: int = option(192, "LSTM width of the decoder", low=1)
    mixtures: int = option(10, "M, Gaussians per point", low=1)
    dropout: float = option(0.1, "recurrent dropout on the candidates", low=0.0, high=0.9)
    kl_weight: float = option(0.5, "w_KL, weight of the divergence", low=0.0)
    kl_floor: float = option(0.2, "KL_min, below which the divergence is free", low=0.0)
    kl_start: float = option(0.01, "eta_min, share of the weight at step 0", low=0.0, high=1.0)
    kl_rate: float | None = option(
        None, "R of eta = 1 - (1 - eta_min) R^step; none: 0.01^(2 / steps)", low=0.0, high=1.0
    )
    lr: float = option(1e-3, "Adam step size at the start", low=0.0)
    lr_floor: float = option(1e-5, "what the step size decays to", low=0.0)
    lr_decay: float = option(0.9999, "factor per step on what is above the floor", low=0.0, high=1.0)
    clip: float = option(1.0, "gradients are clipped to this, element by element", low=0.0)
    stretch: float = option(0.15, "augmentation: x and y are stretched by up to this, independently", low=0.0, high=0.9)
    drop: float = option(0.1, "augmentation: points inside strokes dropped with this probability", low=0.0, high=0.9)
    shuffle_z: bool = option(False, "give each drawing the z of another one of its batch (a check of the claim)")
    max_length: int = option(64, "longer drawings are left out", low=2)
    epsilon: float = option(2.0, "ndjson is simplified to this many pixels", low=0.0)
    world_size: int = option(4000, "training drawings of the embedded world", low=10)
    temperature: float = option(0.4, "tau of `sample`", low=0.0, high=1.0)
    reference_temperature: bool = option(False, "scale variances by tau^2, as the released code does")


CLAIM = Claim(
    name="conditioning",
    statement="Reading the drawing into a latent vector (w_KL 0.5) lowers the test reconstruction loss L_R, in nats "
    "per N_max points, by at least 0.2 against the decoder alone after equally many steps.",
    metric="reconstruction",
    direction="lower",
    margin=0.2,
    paper="table 1, cat: L_R -1.33 (w_KL 0.5) against -0.57 for the decoder alone; pig -1.37 against -0.82 (unverified)",
    arms={"conditional": Arm(), "decoder-only": Arm({"conditional": False})},
    system="conditional",
    baselines=("decoder-only",),
    sabotage=Arm({"shuffle_z": True}),
)


@recipe("sketch-rnn", data="sketches")
class SketchRNNRecipe(Recipe[Config]):
    """Trains the sequence VAE; drawings are finished, blended and added by its actions."""

    presets = {
        "smoke": Config(steps=40, encoder=32, decoder=64, latent=16, mixtures=5, world_size=400),
        "laptop": Config(steps=1500, encoder=64, decoder=128, max_length=32, lr=5e-3),
        "paper": Config(
            steps=200_000, batch=100, latent=128, encoder=256, decoder=512, mixtures=20, kl_rate=0.99995, max_length=250
        ),
    }
    claims = (CLAIM,)
    headline = ("reconstruction", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        if source.kind == "world":
            held = max(20, config.world_size // 10)
            return sketches.load(train=config.world_size, valid=held, test=held, max_length=config.max_length)
        return files.load(source, max_length=config.max_length, epsilon=config.epsilon)

    def build(self, config: Config, data: Data) -> None:
        self.n_max = int(data.info["max_length"]) + 1  # so that the end of the longest drawing is predicted too
        self.model = SketchRNN(
            latent=config.latent,
            conditional=config.conditional,
            cell=config.cell,
            mixtures=config.mixtures,
            encoder=config.encoder,
            decoder=config.decoder,
            dropout=config.dropout,
            max_length=self.n_max,
            scale=float(data.info["scale"]),
        )
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr)

    # -- training -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        config = self.config
        strokes, lengths = batch["strokes"].float(), batch["length"]
        draws = uniform(batch["key"], strokes.shape[1] + 2)
        strokes, lengths = augment(strokes, lengths, draws, stretch=config.stretch, drop=config.drop)
        x = self._stroke5(strokes, lengths)
        posterior, params, pen = self._run(x, lengths, self.rng)
        found = losses(self.model.mixture, params, pen, x, lengths, posterior, count_padding=True)
        kl, reconstruction = found.kl.mean(), found.reconstruction.mean()
        weight = exponential_weight(self.iteration, self._kl_rate(), config.kl_start)
        loss = reconstruction + config.kl_weight * weight * floored(kl, config.kl_floor)
        rate = config.lr_floor + (config.lr - config.lr_floor) * config.lr_decay**self.iteration
        for group in self.optim.param_groups:
            group["lr"] = rate
        self.minimise(loss, self.optim, clip_value=config.clip)
        return {
            "loss": loss.detach(),
            "reconstruction": reconstruction.detach(),
            "kl": kl.detach(),
            "kl_weight": weight,
        }

    def _run(
        self, x: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[DiagGaussian | None, Tensor, Tensor]:
        """Posterior, mixture parameters and pen logits of drawings x [B, N, 5]."""
        if not self.config.conditional:
            return None, *self.model(x)
        posterior = self.model.encode(x, lengths)
        z = posterior.sample(generator)
        if self.config.shuffle_z:
            z = z.roll(1, 0)
        return posterior, *self.model(x, z)

    def _kl_rate(self) -> float:
        return self.config.kl_rate if self.config.kl_rate is not None else 0.01 ** (2 / self.config.steps)

    def _stroke5(self, strokes: Tensor, lengths: Tensor) -> Tensor:
        """Pixels to units of the scale, [B, L, 3] to [B, N, 5]."""
        scaled = torch.cat((strokes[..., :2] / self.model.scale, strokes[..., 2:]), 2)
        return stroke3_to_stroke5(scaled, lengths, self.n_max)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """L_R = L_s + L_p (per N_max points), L_KL (per latent feature) and the bound on -log p in nats a drawing,
        one z each.
        """
        rows = []
        for batch in self.batches(split, 128):
            x = self._stroke5(batch["strokes"].float(), batch["length"])
            posterior, params, pen = self._run(x, batch["length"], generator)
            found = losses(self.model.mixture, params, pen, x, batch["length"], posterior, count_padding=False)
            rows.append(torch.stack((found.reconstruction, found.offsets, found.pen, found.kl, found.bound)))
        mean = torch.cat(rows, 1).double().mean(1).tolist()
        names = ("reconstruction", "offsets", "pen", "kl", "bound_nats")
        return {**dict(zip(names, mean, strict=True)), "n_max": float(self.n_max)}

    # -- what it draws --------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Drawings:
        """n new drawings: z from N(0, I), or from the decoder alone."""
        z = torch.randn(n, self.config.latent, generator=generator) if self.config.conditional else None
        return Drawings(self._draw(z, self.config.temperature, generator, batch=n))

    @action
    def sheet(self, n: int = 8, seed: int = 0) -> Gallery:
        """The same n latent vectors drawn at temperatures 0.2 to 1.0."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.config.latent, generator=generator) if self.config.conditional else None
        heats = (0.2, 0.4, 0.6, 0.8, 1.0)
        return Gallery({f"tau {t}": Drawings(self._draw(z, t, generator, batch=n)) for t in heats})

    @action
    def interpolate(self, n: int = 8, temperature: float = 0.1, seed: int = 0) -> Drawings:
        """Spherical interpolation between two test drawings, which stand at the ends."""
        generator = torch.Generator().manual_seed(seed)
        batch = self._test_drawings(2, generator)
        a, b = self._means(batch)
        svgs = self._draw(slerp(a, b, n), temperature, generator)
        ends = [self._svg(batch, i) for i in range(2)]
        return Drawings([ends[0], *svgs, ends[1]], ["test", *[""] * n, "test"])

    @action
    def complete(
        self, n: int = 6, keep: float = 0.4, temperature: float = 0.3, drawing: str = "", seed: int = 0
    ) -> Drawings:
        """Finish n test drawings from their first `keep` points, or the drawing in an SVG file (`drawing`) n times.

        The decoder reads the beginning (blue) and goes on; z, where there is one, is read from the beginning alone.
        """
        generator = torch.Generator().manual_seed(seed)
        if drawing:
            prefixes = [self._from_svg(Path(drawing))] * n
        else:
            batch = self._test_drawings(n, generator)
            rows = [max(1, round(keep * int(length))) for length in batch["length"]]
            prefixes = [strokes[:k] for strokes, k in zip(batch["strokes"].float(), rows, strict=True)]
        return Drawings([self._finish(prefix, temperature, generator) for prefix in prefixes])

    @action
    def encode(self, n: int = 64) -> Table:
        """The posterior means of the first n test drawings, with their classes."""
        self._needs_encoder()
        split = self.data.split("test")
        batch = split[torch.arange(min(n, len(split)))]
        classes = self.data.info["classes"]
        means = self._means(batch).tolist()
        rows = [[classes[int(c)], *z] for c, z in zip(batch["label"], means, strict=True)]
        return Table(["class", *(f"z{i}" for i in range(self.config.latent))], rows)

    @action
    def reconstruct(self, n: int = 8, temperature: float = 0.1, seed: int = 0) -> Drawings:
        """Test drawings, each followed by what the decoder makes of its z."""
        generator = torch.Generator().manual_seed(seed)
        batch = self._test_drawings(n, generator)
        made = self._draw(self._means(batch), temperature, generator)
        pairs = [svg for i in range(n) for svg in (self._svg(batch, i), made[i])]
        return Drawings(pairs, ["test", "reconstruction"] * n)

    @action
    def arithmetic(
        self,
        base: str = "pig",
        plus: str = "cat with body",
        minus: str = "cat",
        n: int = 6,
        temperature: float = 0.2,
        seed: int = 0,
    ) -> Drawings:
        """z(base) + z(plus) - z(minus): n drawings of class `base` before and after, the other two as means over their
        classes.
        """
        generator = torch.Generator().manual_seed(seed)
        start = self._means(self._of_class(base, n))
        shift = self._means(self._of_class(plus, 50)).mean(0) - self._means(self._of_class(minus, 50)).mean(0)
        before = self._draw(start, temperature, generator)
        after = self._draw(start + shift, temperature, generator)
        captions = [base, f"{base} + {plus} - {minus}"] * len(start)
        return Drawings([svg for pair in zip(before, after, strict=True) for svg in pair], captions)

    # -- parts of the actions --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, z: Tensor | None, temperature: float, generator: torch.Generator, batch: int = 1) -> list[str]:
        self.model.eval()
        made = self.model.generate(
            None if z is None else z.to(self.device),
            batch=batch,
            temperature=temperature,
            generator=generator,
            reference_temperature=self.config.reference_temperature,
        )
        return [polylines_to_svg(stroke3_to_polylines(self._pixels(one))) for one in made]

    @torch.no_grad()
    def _finish(self, prefix: Tensor, temperature: float, generator: torch.Generator) -> str:
        """`prefix` [k, 3] in pixels and what follows it, as SVG."""
        self.model.eval()
        lengths = torch.tensor([len(prefix)], device=self.device)
        x = self._stroke5(prefix[None].to(self.device), lengths)
        z = self.model.encode(x, lengths).mean if self.config.conditional else None
        made = self.model.generate(z, temperature=temperature, generator=generator, prefix=x[:, : len(prefix)])
        strokes = self._pixels(made[0])
        strokes[len(prefix) - 1, 2] = 1.0  # only for the picture: what is new begins a line of another colour
        lines, begun = stroke3_to_polylines(strokes), int((strokes[: len(prefix), 2] > 0.5).sum())
        if begun < len(lines) and prefix[-1, 2] < 0.5:
            lines[begun] = np.concatenate((lines[begun - 1][-1:], lines[begun]))
        return polylines_to_svg(lines, marked=begun)

    def _pixels(self, drawing: Tensor) -> np.ndarray:
        """stroke-5 [T, 5] of the model as stroke-3 [n, 3] in pixels."""
        return stroke5_to_stroke3(drawing) * np.array((self.model.scale, self.model.scale, 1.0), np.float32)

    def _from_svg(self, path: Path) -> Tensor:
        """The strokes of an SVG file as stroke-3 [k, 3], simplified, and scaled to the size of the training drawings."""
        try:
            lines = svg_to_polylines(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path} as SVG ({error})") from None
        points = np.concatenate(lines)
        factor = CANVAS / max(float(np.ptp(points, axis=0).max()), 1e-9)
        strokes = polylines_to_stroke3([rdp(line * factor, self.config.epsilon) for line in lines])
        if len(strokes) >= self.n_max:
            raise DataError(
                f"{path} has {len(strokes)} points after simplification; this model draws at most {self.n_max}"
            )
        return torch.from_numpy(strokes)

    @torch.no_grad()
    def _means(self, batch: Batch) -> Tensor:
        self._needs_encoder()
        self.model.eval()
        lengths = batch["length"].to(self.device)
        return self.model.encode(self._stroke5(batch["strokes"].float().to(self.device), lengths), lengths).mean

    def _test_drawings(self, n: int, generator: torch.Generator) -> Batch:
        split = self.data.split("test")
        if n > len(split):
            raise ConfigError(f"n must be at most the {len(split)} test drawings, not {n}")
        return split[torch.randperm(len(split), generator=generator)[:n]]

    def _of_class(self, name: str, n: int) -> Batch:
        classes = self.data.info["classes"]
        if name not in classes:
            raise ConfigError(f"no class {name!r} in this data; classes: {', '.join(classes)}")
        split = self.data.split("test")
        label = split[torch.arange(len(split))]["label"]
        return split[(label == classes.index(name)).nonzero()[:n, 0]]

    def _svg(self, batch: Batch, i: int) -> str:
        strokes = batch["strokes"][i, : int(batch["length"][i])].numpy()
        return polylines_to_svg(stroke3_to_polylines(strokes))

    def _needs_encoder(self) -> None:
        if not self.config.conditional:
            raise CapabilityError(
                "this run is the decoder alone (conditional=false) and has no encoder; train one with it"
            )
