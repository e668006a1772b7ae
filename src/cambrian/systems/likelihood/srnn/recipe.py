"""Training, evaluation and actions of srnn and the models beside it. Shapes as in `_parts`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Curves, Images, Plot, Sample, Table
from cambrian.engine.sounds import Audio
from cambrian.errors import CapabilityError, ConfigError
from cambrian.nn.latent import linear_weight
from cambrian.systems.likelihood.srnn import _data
from cambrian.systems.likelihood.srnn._baselines import RNN, STORN, VRNN
from cambrian.systems.likelihood.srnn._figure import latent_figure
from cambrian.systems.likelihood.srnn._parts import Bound, FrameModel, State
from cambrian.systems.likelihood.srnn.model import SRNN


@config
class Config:
    """Options of srnn."""

    steps: int = option(1500, "training steps", low=1)
    batch: int = option(32, "sequences per step", low=1)
    model: str = option("srnn", "what is trained", choices=("srnn", "vrnn", "storn", "rnn"))
    inference: str = option(
        "smooth", "srnn's posterior reads past and future, or the past", choices=("smooth", "filter")
    )
    resq: bool = option(True, "srnn's posterior mean is a correction of the prior's (Res_q)")
    use_latent: bool = option(True, "srnn's output net reads z; off: zeros in its place (a check of the claim)")
    likelihood: str = option(
        "auto",
        "output distribution; auto: bernoulli for music, else gauss",
        choices=("auto", "gauss", "gmm", "bernoulli"),
    )
    mixtures: int = option(20, "components of gmm", low=1)
    latent: int = option(16, "Z, latent size", low=1)
    hidden: int = option(64, "H, deterministic state", low=1)
    inference_hidden: int = option(64, "A, state of the inference network", low=1)
    embed: int = option(64, "E, embedding of a frame", low=1)
    width: int = option(64, "units of the hidden layers", low=1)
    lr: float = option(5e-3, "Adam's learning rate", low=0.0)
    clip: float = option(100.0, "norm to which gradients are clipped", low=0.0)
    kl_start: float = option(0.01, "weight of the divergence at the first step", low=0.0, high=1.0)
    kl_share: float = option(0.5, "share of the steps after which that weight is 1", low=0.0, high=1.0)
    chunk: int = option(40, "frames through which gradients flow; state is carried from chunk to chunk", low=1)
    rate: int = option(4000, "Hz at which sound is read", low=2000)
    frame: int = option(40, "samples of a frame", low=1)
    seconds: float = option(0.4, "length of a clip of sound", low=0.05)
    clips: int = option(2000, "training sequences of an embedded world", low=10)


CLAIM = Claim(
    name="latent-layer",
    statement="On speech-like sound the bound of the stochastic recurrent network (smoothing, Res_q) is above the exact "
    "log-likelihood of an RNN with Gaussian outputs and as many parameters, by at least 2 nats a frame of 40 samples.",
    metric="bound",
    direction="higher",
    margin=2.0,
    paper="table 1: SRNN (smooth + Res_q) >= 11991 (Blizzard), >= 60550 (TIMIT) nats a sequence; RNN-Gauss 3539, -1900",
    arms={"srnn": Arm(), "rnn-gauss": Arm({"model": "rnn", "hidden": 127})},
    system="srnn",
    baselines=("rnn-gauss",),
    sabotage=Arm({"use_latent": False}),
)


def build_model(config: Config, features: int, likelihood: str) -> FrameModel:
    """The network that `config.model` names."""
    shared: dict[str, Any] = {
        "x_dim": features, "d": config.hidden, "embed": config.embed, "width": config.width, "likelihood": likelihood,
        "mixtures": config.mixtures,
    }  # fmt: skip
    if config.model == "rnn":
        return RNN(**shared)
    if config.model == "vrnn":
        return VRNN(z=config.latent, **shared)
    if config.model == "storn":
        return STORN(z=config.latent, a=config.inference_hidden, **shared)
    return SRNN(
        z=config.latent, a=config.inference_hidden, inference=config.inference, resq=config.resq,
        use_latent=config.use_latent, **shared,
    )  # fmt: skip


@recipe("srnn", data="phones")
class SRNNRecipe(Recipe[Config]):
    """Maximises the bound per frame."""

    presets = {
        "smoke": Config(steps=30, hidden=32, inference_hidden=32, embed=32, width=32, latent=8, clips=64),
        "laptop": Config(),
        "paper": Config(
            steps=100_000, batch=64, latent=256, hidden=1024, inference_hidden=1024, embed=512, width=512, rate=16000,
            frame=200, seconds=3.0, clips=20_000, clip=3000.0, lr=1e-3, kl_start=0.0,
        ),
    }  # fmt: skip
    claims = (CLAIM,)
    headline = ("bound", "higher")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """`phones` (default), `chorales`, `ssm`, or a folder of sound or of scores."""
        return _data.load(source, _data.Reading(config.rate, config.seconds, config.frame, config.clips))

    def build(self, config: Config, data: Data) -> None:
        likelihood = config.likelihood
        if likelihood == "auto":
            likelihood = "bernoulli" if data.kind == "music" else "gauss"
        if (likelihood == "bernoulli") != (data.kind == "music"):
            raise ConfigError(f"likelihood {likelihood} does not fit data of kind {data.kind}")
        self.model = build_model(config, int(data.info["features"]), likelihood)
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr, eps=1e-4)

    # -- training -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        x, lengths = _data.frames(self.data, batch)
        rise = max(1, round(self.config.kl_share * self.config.steps))
        weight = linear_weight(self.iteration, rise, self.config.kl_start)
        count = float(x.shape[0] * x.shape[1] if lengths is None else lengths.sum())
        log_px = kl = x.new_zeros(())
        for found in self._chunks(x, lengths, self.rng):
            log_px, kl = log_px + found.log_px.sum(), kl + found.kl.sum()
        log_px, kl = log_px / max(count, 1.0), kl / max(count, 1.0)
        self.minimise(weight * kl - log_px, self.optim, clip_norm=self.config.clip)
        return {"bound": (log_px - kl).detach(), "kl": kl.detach(), "kl_weight": weight}

    def _chunks(self, x: Tensor, lengths: Tensor | None, generator: torch.Generator) -> list[Bound]:
        """The bound chunk by chunk; the state is carried, gradients and smoothing end with the chunk."""
        found: list[Bound] = []
        state: State | None = None
        for start in range(0, x.shape[1], self.config.chunk):
            piece = x[:, start : start + self.config.chunk]
            left = None if lengths is None else (lengths - start).clamp(0, piece.shape[1])
            found.append(self.model.elbo(piece, left, state=state, generator=generator))
            state = found[-1].state
        return found

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Per frame, in nats: the bound (exact for model=rnn), log p(x | z), divergence; for phones also the divergence where
        a phone begins and elsewhere."""
        sums = torch.zeros(6, dtype=torch.float64)
        for batch in self.batches(split, 128):
            x, lengths = _data.frames(self.data, batch)
            found = self._chunks(x, lengths, generator)
            log_px, kl = torch.cat([f.log_px for f in found], 1), torch.cat([f.kl for f in found], 1)
            count = x.shape[0] * x.shape[1] if lengths is None else int(lengths.sum())
            sums[:3] += torch.tensor([float(log_px.sum()), float(kl.sum()), count])
            begins = _data.boundaries(batch, self.data, x.shape[1])
            if begins is not None:
                sums[3:] += torch.tensor([float(kl[begins].sum()), int(begins.sum()), float(kl[~begins].sum())])
        log_px, kl, frames, at, changes, elsewhere = sums.tolist()
        figures = {"bound": (log_px - kl) / frames, "log_px": log_px / frames, "kl": kl / frames}
        if changes and self.config.model != "rnn":
            figures |= {"kl_at_changes": at / changes, "kl_elsewhere": elsewhere / (frames - changes)}
        return figures

    # -- what it makes ---------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """n sequences from the prior, as long as those of the data."""
        steps = _data.frames(self.data, self.data.split("test")[torch.tensor([0])])[0].shape[1]
        return self._shown(self.model.sample(n, max(steps, 40), generator), "sample")

    def _shown(self, x: Tensor, title: str) -> Sample:
        if self.data.kind == "audio":
            waves = x.flatten(1) * self.data.info["scale"]
            return Audio(waves.clamp(-1, 1), self.data.info["rate"], [f"{title} {i}" for i in range(len(waves))])
        if self.data.kind == "music":
            return Images(x.transpose(1, 2).flip(1)[:, None], columns=1, scale=2)
        lines = {
            f"{title} {i} x{j}": (list(range(x.shape[1])), x[i, :, j].tolist())
            for i in range(len(x))
            for j in range(x.shape[2])
        }
        return Curves(dict(list(lines.items())[:12]), x="step", y="x")

    @action
    def posterior(self, index: int = 0, seed: int = 0) -> Plot:
        """A test sequence over the latent layer: divergence per frame, and the widest latents with two standard deviations."""
        if self.config.model == "rnn":
            raise CapabilityError("model=rnn has no latent layer; train srnn, vrnn or storn")
        batch = self._test(index)
        x, lengths = _data.frames(self.data, batch)
        self.model.eval()
        with torch.no_grad():
            found = self._chunks(x.to(self.device), lengths, torch.Generator().manual_seed(seed))
        return Plot(latent_figure(x[0], found, _data.boundaries(batch, self.data, x.shape[1])))

    @action
    def prolong(self, index: int = 0, n: int = 3, keep: int = 20, steps: int = 60, seed: int = 0) -> Sample:
        """`keep` frames of a test sequence, gone on with n times."""
        x = _data.frames(self.data, self._test(index))[0][:, :keep].repeat(n, 1, 1).to(self.device)
        self.model.eval()
        more = self.model.sample(n, steps, torch.Generator().manual_seed(seed), prefix=x)
        return self._shown(torch.cat((x, more), 1), "continuation")

    @action
    def importance(self, k: int = 50, n: int = 50, seed: int = 0) -> Table:
        """The bound beside the estimate with k latent paths a sequence, in nats a frame, on n test sequences of a chunk."""
        split = self.data.split("test")
        x, lengths = _data.frames(self.data, split[torch.arange(min(n, len(split)))])
        x = x[:, : self.config.chunk].to(self.device)
        lengths = None if lengths is None else lengths.clamp(max=x.shape[1])
        generator = torch.Generator().manual_seed(seed)
        self.model.eval()
        frames = float(x.shape[0] * x.shape[1] if lengths is None else lengths.sum())
        bound = float(self.model.iwae(x, 1, generator, lengths=lengths).sum()) / frames
        parts = [self.model.iwae(a, k, generator, lengths=b) for a, b in _pairs(x, lengths)]
        return Table(["paths", "nats a frame"], [[1, bound], [k, float(torch.cat(parts).sum()) / frames]])

    def _test(self, index: int) -> Batch:
        split = self.data.split("test")
        if not 0 <= index < len(split):
            raise ConfigError(f"index must lie in 0..{len(split) - 1}, not {index}")
        return split[torch.tensor([index])]


def _pairs(x: Tensor, lengths: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Ten sequences at a time."""
    return [(x[i : i + 10], None if lengths is None else lengths[i : i + 10]) for i in range(0, len(x), 10)]
