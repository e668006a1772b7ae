"""Training, evaluation and actions of conv-draw. Shapes: B batch, C channels, H x W pixels, T steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.codec import baselines
from cambrian.codec.files import replace_bytes
from cambrian.data import images, pixels
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Curves, Gallery, Images, Plot, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.likelihood.conv_draw import _codec, _measure
from cambrian.systems.likelihood.conv_draw.model import LIKELIHOODS, PRIORS, SPREADS, ConvDRAW
from cambrian.worlds import figures, photos

WORLDS = ("figures", "photos")
RECENT = 0.02  # weight of the newest batch in the running mean of each latent's cost


@config
class Config:
    """Options of conv-draw."""

    steps: int = option(1800, "training steps", low=1)
    batch: int = option(16, "pictures per step", low=1)
    size: int = option(16, "pixels a side; a folder's pictures are scaled and cropped to it", low=8, high=128)
    draws: int = option(4, "T, drawing steps", low=1, high=64)
    hidden: int = option(48, "maps of each ConvLSTM", low=1)
    latent: int = option(8, "Z, latent maps per step", low=1)
    layers: int = option(1, "stacked layers, the second at half the resolution", choices=(1, 2))
    scale: int = option(4, "pixels a side of a cell of the LSTMs and latents", choices=(2, 4))
    kernel: int = option(3, "kernel of the ConvLSTMs, odd", low=1)
    likelihood: str = option("discretized", "of the pixels", choices=LIKELIHOODS)
    prior: str = option("learned", "of the latents: read from the decoder, or N(0, 1)", choices=PRIORS)
    feedback: bool = option(True, "show the encoder what the canvas still lacks")
    spread: str = option("picture", "pixels share their sigma over a picture, or each has its own", choices=SPREADS)
    variety: str = option("few", "of the world figures: full, or few values of most factors", choices=figures.VARIETIES)
    beta: float = option(0.35, "weight of the pixels against the latents at the end; 1 for likelihoods", low=1e-3)
    beta_start: float = option(4.0, "the same at the start, falling for 60 % of the steps; free bits first", low=1e-3)
    lr: float = option(4e-3, "Adam's learning rate, at its top", low=0.0)
    codec: str = option("model", "who codes at evaluation", choices=("model", "jpeg", "jpeg2000", "webp"))
    rate: float = option(0.2, "bits per dimension of the lossy comparison", low=1e-3, high=32.0)
    montage: int = option(64, "test pictures of the lossy comparison", low=1)
    keep: int = option(-1, "drawing steps whose latents are sent; -1: as many as the rate allows", low=-1)
    evaluated: int = option(512, "pictures of an evaluation of the bound", low=1)

    def check(self) -> None:
        if self.keep > self.draws:
            raise ConfigError(f"keep must be at most draws = {self.draws}, not {self.keep}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, not {self.kernel}")


CLAIM = Claim(
    name="lossy",
    statement="At 0.2 bits/dim of real bytes the model's PSNR is at least 1 dB above JPEG's and JPEG 2000's.",
    metric="psnr",
    direction="higher",
    margin=1.0,
    paper="Section 3.3, figures 7 and 8: lossy quality at equal rates against JPEG and JPEG 2000, judged by eye",
    arms={
        "conv-draw": Arm(),
        "jpeg": Arm({"codec": "jpeg", "steps": 1}),
        "jpeg2000": Arm({"codec": "jpeg2000", "steps": 1}),
    },
    system="conv-draw",
    baselines=("jpeg", "jpeg2000"),
    sabotage=Arm({"keep": 0}),
    conditions=(
        Condition("conv-draw", "rate", "<=", 0.2),
        Condition("jpeg", "rate", ">=", 0.2),
        Condition("jpeg2000", "rate", ">=", 0.2),
    ),
)


@recipe("conv-draw", data="figures")
class ConvDRAWRecipe(Recipe[Config]):
    """The bound by Adam, the codecs at evaluation."""

    presets = {
        "smoke": Config(steps=40, batch=8, hidden=16, latent=2, draws=3, montage=8, evaluated=64),
        "laptop": Config(),
        "paper": Config(
            steps=250_000,
            batch=32,
            size=32,
            draws=32,
            hidden=160,
            latent=12,
            kernel=5,
            scale=2,
            beta=1.0,
            beta_start=1.0,
            lr=5e-4,
        ),
    }
    claims = (CLAIM,)
    headline = ("bits_per_dim", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """Figures or crops of photographs, or the pictures of a folder or table."""
        if source.kind != "world":
            return images.load(source, size=config.size)
        if source.value == "figures":
            return figures.load(size=config.size, variety=config.variety)
        if source.value == "photos":
            return photos.load(train=20_000, size=config.size, channels=3, standardise=False)
        raise ConfigError(f"conv-draw knows the worlds {', '.join(WORLDS)} and folders of pictures, not {source.value}")

    def build(self, config: Config, data: Data) -> None:
        """The network and its optimiser."""
        self.model = ConvDRAW(
            channels=data.info["shape"][0], size=config.size, hidden=config.hidden, latent=config.latent,
            steps=config.draws, layers=config.layers, scale=config.scale, kernel=config.kernel,
            likelihood=config.likelihood, prior=config.prior, feedback=config.feedback, spread=config.spread,
        )  # fmt: skip
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr)

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """beta L_x + sum L_t; nothing where another codec is measured."""
        if self.config.codec != "model":
            return {"loss": 0.0}
        for group in self.optim.param_groups:
            group["lr"] = self.config.lr * self._fall()
        nll, kl, means = self.model.elbo(batch["image"], self.rng, profile=True)
        weight = max(RECENT, 1 / (self.iteration + 1))
        self.model.cost.lerp_(means / math.log(2), weight)
        loss = (self._beta() * nll + kl.sum(1)).mean()
        self.minimise(loss, self.optim, clip_norm=5.0 * batch["image"][0].numel())
        dims = math.log(2) * batch["image"][0].numel()
        parts = {"loss": loss, "pixels": nll.mean(), "latents": kl.sum(1).mean()}
        return {name: value.detach() / dims for name, value in parts.items()}

    def _fall(self) -> float:
        """The factor of the step size: up for 50 steps, then down a cosine to a twentieth."""
        done = self.iteration / self.config.steps
        return min(1.0, (self.iteration + 1) / 50) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))

    def _beta(self) -> float:
        """From `beta_start` to `beta` on a straight line in log space."""
        left = max(0.0, 1 - self.iteration / (0.6 * self.config.steps))
        return self.config.beta * (self.config.beta_start / self.config.beta) ** left

    @torch.no_grad()
    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The bound in bits per dimension, and the lossy codec at `rate`: `psnr` in dB (mean over pictures), `rate` and
        `file_rate` (headers included) in bits per dimension.
        """
        shown = self.pictures(split, self.config.montage)
        if self.config.codec != "model":
            return _measure.other(self.config.codec, shown.numpy(), self.config.rate)
        return {**self.bound(split, generator), **self.lossy(shown)}

    def bound(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Upper bounds on bits per dimension: whole, pixels, latents."""
        pixel, latent, count = 0.0, 0.0, 0
        for batch in self.pictures(split, self.config.evaluated).split(128):
            nll, kl, _ = self.model.elbo(batch.to(self.device), generator)
            pixel, latent = pixel + float(nll.sum()), latent + float(kl.sum())
            count += batch.numel()
        bits = math.log(2) * count
        return {"bits_per_dim": (pixel + latent) / bits, "pixels": pixel / bits, "latents": latent / bits}

    def lossy(self, shown: Tensor) -> dict[str, float]:
        """The codec at the configured rate, or with the latents of `keep` steps, the rest drawn from the prior."""
        keep = self.config.keep
        if keep < 0:
            coded = _codec.encode(self.model, shown, bits_per_dim=self.config.rate)
        else:
            coded = _codec.encode(self.model, shown, mode="lossy-sample", steps=keep)
        psnr = baselines.mean_psnr(shown.numpy(), coded.picture.numpy())
        return {"psnr": psnr, "rate": coded.bits_per_dim, "file_rate": 8 * len(coded.data) / shown.numel()}

    def pictures(self, split: str, n: int) -> Tensor:
        """The first n pictures of a split, on the CPU."""
        held = self.data.split(split)
        return held[torch.arange(min(n, len(held)))]["image"].cpu()

    def sample(self, n: int, generator: torch.Generator) -> Images:
        """Pictures from the prior."""
        return Images(self.model.sample(n, generator=generator).cpu().float() / 255)

    # -- actions -----------------------------------------------------------------------------------------------------

    @action
    def encode(
        self, input: str, output: str = "", lossless: bool = False, steps: int | None = None,
        bits_per_dim: float | None = None, rest: str = "mean", seed: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """Code a picture file, or every picture of a folder, to `.cmb` beside it (or `output`): lossless, or the first
        `steps` drawing steps, or what fits `bits_per_dim`; with neither, all latents.
        """
        self._needs_model()
        if rest not in ("mean", "sample"):
            raise ConfigError(f"rest is mean or sample, not {rest!r}")
        mode = "lossless" if lossless else "lossy" if rest == "mean" else "lossy-sample"
        found = Path(input).expanduser()
        names = sorted(p for p in found.iterdir() if p.suffix.lower() in pixels.SUFFIXES) if found.is_dir() else [found]
        if not names:
            raise DataError(f"{found}: no picture in this folder")
        rows = []
        for name in names:
            image = torch.from_numpy(_read(name, self.model.channels))
            coded = _codec.encode(self.model, image, mode=mode, steps=steps, bits_per_dim=bits_per_dim, seed=seed)
            path = _place(name, output, found.is_dir(), ".cmb")
            replace_bytes(path, coded.data)
            rows.append(
                {
                    "file": str(path),
                    "bytes": len(coded.data),
                    "payload": coded.payload,
                    "bits_per_dim": coded.bits_per_dim,
                    "blocks": f"{coded.blocks} of {coded.all_blocks}",
                    "initial_bits": coded.initial,
                    "psnr": "exact" if lossless else baselines.psnr(image.numpy(), coded.picture[0].numpy()),
                }
            )
        return rows[0] if not found.is_dir() else {"files": rows}

    @action
    def decode(self, input: str, output: str = "") -> dict[str, Any]:
        """Decode a `.cmb` file of this run to `NAME.decoded.png` beside it (or `output`)."""
        self._needs_model()
        name = Path(input).expanduser()
        try:
            data = name.read_bytes()
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
        picture = _codec.decode(self.model, data).numpy()
        sheet = baselines.montage(picture) if len(picture) > 1 else picture[0].transpose(1, 2, 0)
        path = _place(name, output, False, ".decoded.png")
        _measure.save_png(sheet, path)
        return {"file": str(path), "shape": list(picture.shape)}

    @action
    def progressive(self, n: int = 8, rest: str = "mean", seed: int = 0) -> Images:
        """Rows of pictures: rebuilt from the latents of 0, 1, ..., T steps, the original last."""
        shown, generator = self.pictures("test", n), torch.Generator().manual_seed(seed)
        kept = [self.model.reconstruct(shown.to(self.device), keep=t, rest=rest, generator=generator).cpu()
                for t in range(self.config.draws + 1)]  # fmt: skip
        sheet = torch.stack([*kept, shown], 1).flatten(0, 1)
        return Images(sheet.float() / 255, columns=self.config.draws + 2)

    @action
    @torch.no_grad()
    def information(self, n: int = 256, seed: int = 0) -> Plot:
        """A bar for the bits of each drawing step, and of the pixels given them, per picture."""
        generator = torch.Generator().manual_seed(seed)
        nll, kl, _ = self.model.elbo(self.pictures("test", n).to(self.device), generator)
        return _measure.bars([float(v) / math.log(2) for v in kl.mean(0)], float(nll.mean()) / math.log(2))

    @action
    def rate_distortion(self, n: int = 64) -> Gallery:
        """PSNR and MS-SSIM against bits per dimension on a montage of n test pictures: this model, JPEG, JPEG 2000,
        WebP; with headers left out and with whole files.
        """
        self._needs_model()
        rows = _measure.curves(self.model, self.pictures("test", n))
        return Gallery(
            {
                "table": Table.of(rows),
                "psnr": Curves(_measure.lines(rows, "rate", "psnr"), x="bits/dim, headers excluded", y="PSNR, dB"),
                "psnr of files": Curves(
                    _measure.lines(rows, "file_rate", "psnr"), x="bits/dim, whole file", y="PSNR, dB"
                ),
                "ms-ssim": Curves(_measure.lines(rows, "rate", "ms_ssim"), x="bits/dim, headers excluded", y="MS-SSIM"),
            }
        )

    @action
    def side_by_side(self, n: int = 8, bits_per_dim: float = 0.2) -> Gallery:
        """n test pictures of a montage of 64 at equal bytes: original, this model, JPEG, JPEG 2000, WebP (columns)."""
        self._needs_model()
        shown = self.pictures("test", 64)
        rows = [shown, _codec.encode(self.model, shown, bits_per_dim=bits_per_dim).picture]
        names = ["original", "conv-draw"]
        for codec in ("jpeg", "jpeg2000", "webp"):
            (made,) = _measure.best(codec, shown.numpy(), [bits_per_dim])
            if made is not None:
                rows.append(torch.from_numpy(made[1]))
                names.append(codec)
        sheet = torch.stack([row[:n] for row in rows], 1).flatten(0, 1)
        return Gallery({" - ".join(names): Images(sheet.float() / 255, columns=len(rows))})

    @action
    def lossless(self, n: int = 64) -> Table:
        """Bits per dimension of n test pictures coded exactly: the bound, this codec, PNG and lossless WebP."""
        self._needs_model()
        return Table.of(_measure.lossless(self.model, self.pictures("test", n)))

    @action
    def ordering(self, n: int = 500, seed: int = 0) -> Table:
        """How well a judge names form and colour when only the first, or only the last, of the bits are kept."""
        self._needs_model()
        if "form" not in self.data.split("test")[torch.arange(1)]:
            raise CapabilityError("ordering needs pictures whose form and colour are known: the world figures")
        return Table.of(_measure.ordering(self.model, self.data, n, seed))

    def _needs_model(self) -> None:
        if self.config.codec != "model":
            raise CapabilityError(f"this run only measures {self.config.codec}; train with codec=model")


def _read(name: Path, channels: int) -> np.ndarray:
    try:
        data = name.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    return pixels.decode(data, str(name), channels=channels)


def _place(name: Path, output: str, many: bool, suffix: str) -> Path:
    """Where the result goes; the input itself is never overwritten."""
    if output and many:
        raise ConfigError("output names one file; a folder's results stand beside its pictures")
    path = Path(output).expanduser() if output else name.with_suffix(suffix)
    if path.resolve() == name.resolve():
        raise ConfigError(f"{path} is the input; give another output")
    return path
