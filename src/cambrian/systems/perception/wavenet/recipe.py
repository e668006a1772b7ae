"""Training and evaluation of wavenet. Shapes: B batch, T samples, N scored samples, F frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.audio import mulaw
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.recipe import Recipe, recipe
from cambrian.errors import DataError
from cambrian.nn.adversarial.players import MovingAverage
from cambrian.nn.causal.dilated import doubling, receptive_field
from cambrian.systems.perception.wavenet import _sound
from cambrian.systems.perception.wavenet._actions import Actions
from cambrian.systems.perception.wavenet._baseline import SampleLSTM
from cambrian.systems.perception.wavenet._config import CLAIM, Config
from cambrian.systems.perception.wavenet.model import WaveNet, WaveNetRecognizer


@recipe("wavenet", data="phones")
class WaveNetRecipe(Actions, Recipe[Config]):
    """Trains a WaveNet on crops of sound, told who speaks, which phones and at which pitch where the data says so."""

    without_gradient = ("average",)
    presets = {
        "smoke": Config(steps=40, batch=1, crop=1000, layers=5, clips=12, held=4, seconds=1.0, lr=1e-2),
        "laptop": Config(),
        "paper": Config(
            steps=200_000, batch=8, crop=4000, residual=512, skip=256, blocks=4, layers=10, lr=1e-3, lr_final=1e-4,
            rate=16_000, seconds=4.0, clips=20_000, held=200,
        ),
    }  # fmt: skip
    claims = (CLAIM,)
    headline = ("bits", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """Sound with what is known about it; see `_sound.load`."""
        return _sound.load(config, source)

    def build(self, config: Config, data: Data) -> None:
        """The network that the options name, its average, and what the samples' frequencies alone would cost."""
        self.layout = _sound.Layout.of(config.condition if config.network == "wavenet" else "none", data)
        contexts = [config.contexts[i : i + 3] for i in range(0, len(config.contexts), 3)]
        # with and without dilation the same samples are read and scored
        widest = receptive_field([1, *doubling(config.layers, config.blocks)], config.kernel)
        self.model = self._network(config, data, contexts, widest)
        self.lead = max(widest, self._field()) - 1
        self.step_of_starts = math.lcm(*(pool for _, _, pool in contexts))
        _sound.check_lengths(data, self.lead + 1)
        self.average = MovingAverage(self.model, config.ema, warm=True)
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr)
        self.marginal = _sound.marginal(data, config.classes)

    def _network(
        self, config: Config, data: Data, contexts: list[tuple[int, ...]], widest: int
    ) -> WaveNet | WaveNetRecognizer | SampleLSTM:
        if config.network == "lstm":
            return SampleLSTM(classes=config.classes, hidden=config.hidden, field=widest)
        sizes = {"classes": config.classes, "residual": config.residual, "skip": config.skip, "blocks": config.blocks,
                 "layers": config.layers, "dilated": config.dilated}  # fmt: skip
        if config.task == "recognise":
            if not data.info.get("phones"):
                raise DataError(
                    f"{data.name} names no phones to recognise; give a .lab file for each sound in meta.csv"
                )
            return WaveNetRecognizer(phones=len(data.info["phones"]), frame=self.layout.hop, **sizes)
        return WaveNet(
            **sizes, kernel=config.kernel, inputs=config.inputs, global_dim=self.layout.clip_dim,
            local_dim=self.layout.frame_dim, local_stride=self.layout.hop, contexts=[list(c) for c in contexts],
        )  # fmt: skip

    def _field(self) -> int:
        model = self.model.wavenet if isinstance(self.model, WaveNetRecognizer) else self.model
        return model.receptive_field()

    # -- training -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """Minimise the bits of a crop's samples; for the recogniser also the cross-entropy of its frames."""
        config = self.config
        rate = config.lr * (config.lr_final / config.lr) ** (self.iteration / config.steps) if config.lr else 0.0
        for group in self.optim.param_groups:
            group["lr"] = rate
        if config.task == "recognise":
            bits, phones, _ = self._frames(self.model, batch)
            loss, scalars = config.sample_weight * bits * math.log(2) + phones, {"phones": phones.detach()}
        else:
            bits = self._crop_bits(batch)
            loss, scalars = bits * math.log(2), {}
        self.minimise(loss, self.optim, clip_norm=5.0)
        self.average.update(self.model)
        return {"loss": loss.detach(), "bits": bits.detach(), "lr": rate, **scalars}

    def _crop_bits(self, batch: Batch) -> Tensor:
        crop = _sound.crops(
            batch, lead=self.lead, count=self.config.crop, step=self.step_of_starts, classes=self.config.classes
        )
        return _mean(self._bits(self.model, crop.idx, batch, crop.start), crop.scored)

    def _bits(self, model: WaveNet | SampleLSTM, idx: Tensor, batch: Batch, start: int | Tensor) -> Tensor:
        """Bits [B, T - lead - 1] of all samples after the first lead + 1, whatever the model's own receptive field."""
        g, y = self.layout.features(batch)
        if self.config.permute:
            g, y = (None if t is None else t.roll(1, 0) for t in (g, y))
        unused = self.lead + 1 - self._field()
        return model.bits(idx[:, unused:], g, y, start=start + unused)

    def _frames(self, model: WaveNetRecognizer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of whole clips: mean bits a sample, mean cross-entropy (nats) and error rate of the frames within them."""
        idx = mulaw.encode(batch["audio"], self.config.classes)
        logits, frames = model(idx)
        count = frames.shape[2]
        at = torch.arange(idx.shape[1], device=idx.device)
        bits = F.cross_entropy(logits[:, :, self.lead : -1], idx[:, self.lead + 1 :], reduction="none") / math.log(2)
        labels = batch["phone"][:, :count]
        inside = (torch.arange(count, device=idx.device) + 1) * self.layout.hop <= batch["length"][:, None]
        entropy = F.cross_entropy(frames, labels, reduction="none")
        wrong = (frames.argmax(1) != labels).float()
        scored = at[self.lead + 1 :] < batch["length"][:, None]
        return _mean(bits, scored), _mean(entropy, inside), _mean(wrong, inside)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Bits a sample and perplexity, all clips from their first scored sample to their end (`held` clips at most).

        `marginal_bits` is what the samples' frequencies in training alone would cost; the recogniser adds `frame_error`.
        """
        model, sums = self.average.averaged, torch.zeros(4, dtype=torch.float64)
        for batch in self._held(split):
            scored = torch.arange(self.lead + 1, batch["audio"].shape[1], device=self.device) < batch["length"][:, None]
            n = float(scored.sum())
            idx = mulaw.encode(batch["audio"], self.config.classes)
            error = torch.zeros(())
            if isinstance(model, WaveNetRecognizer):
                bits, _, error = self._frames(model, batch)
            else:
                bits = _mean(self._bits(model, idx, batch, 0), scored)
            alone = _mean(self.marginal.to(idx.device)[idx[:, self.lead + 1 :]], scored)
            sums += n * torch.tensor([1.0, float(bits), float(alone), float(error)], dtype=torch.float64)
        bits, alone, error = (sums[1:] / sums[0]).tolist()
        found = {"bits": bits, "perplexity": 2**bits, "marginal_bits": alone}
        return {**found, "frame_error": error} if self.config.task == "recognise" else found

    def _held(self, split: str) -> list[Batch]:
        """The first `held` clips of a split, a few at a time, on the device."""
        samples = self.data.split(split)
        parts = torch.arange(min(self.config.held, len(samples))).split(5)
        return [{name: t.to(self.device) for name, t in samples[part].items()} for part in parts]


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of `values` where `chosen`; 0 where nothing is."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
