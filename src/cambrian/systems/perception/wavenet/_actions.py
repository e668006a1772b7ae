"""What a trained wavenet does for its user: speak, go on, fill gaps, score, recognise. Mixed into the recipe.

Shapes: B clips, T samples, F frames of `hop` samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cambrian.audio import mulaw
from cambrian.audio.files import read
from cambrian.audio.pitch import f0 as track
from cambrian.data.split import Batch, Data
from cambrian.engine.recipe import action
from cambrian.engine.samples import Curves, Gallery, Table
from cambrian.engine.sounds import Audio
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.perception.wavenet import _request
from cambrian.systems.perception.wavenet.model import WaveNet, WaveNetRecognizer

if TYPE_CHECKING:
    from cambrian.nn.adversarial.players import MovingAverage
    from cambrian.systems.perception.wavenet._config import Config
    from cambrian.systems.perception.wavenet._sound import Layout


class Actions:
    """Sampling and the actions of `WaveNetRecipe`."""

    config: Config
    data: Data
    layout: Layout
    average: MovingAverage
    device: torch.device
    lead: int

    def sample(self, n: int, generator: torch.Generator) -> Audio:
        """n new clips, told what the first n test clips are told (round and round)."""
        batch = self._clips(n)
        waves = self._generate(batch, generator, samples=self._width())
        return Audio(waves, self._rate(), [f"sampled {i}" for i in range(n)])

    @action
    def speak(
        self, seconds: float = 2.0, speaker: str = "0", phones: str = "", f0: str = "", pitch: float = 0.0, n: int = 1,
        temperature: float = -1.0, seed: int = 0,
    ) -> Gallery:  # fmt: skip
        """Say `phones` ("s i l a", evenly spread over `seconds`) as `speaker` (number or name), at `pitch` Hz or along
        the contour in the CSV file `f0` (rows of seconds,hertz); what is not given comes from the training data.
        """
        batch = _request.utterance(
            self.data, self.layout, seconds=seconds, speaker=speaker, phones=phones, contour=f0, pitch=pitch, n=n
        )
        samples = round(seconds * self._rate())
        waves = self._generate(batch, torch.Generator().manual_seed(seed), samples=samples, temperature=temperature)
        sound = Audio(waves, self._rate(), [f"speaker {speaker}"] * n)
        return Gallery({"sound": sound, "pitch": self._tracks(waves[:1], batch.get("f0"))})

    @action
    def compare(self, n: int = 4, seed: int = 0) -> Gallery:
        """Test clips beside what the model makes of the same speaker, phones and pitch; pitch asked for and made."""
        batch = self._clips(n)
        made = self._generate(batch, torch.Generator().manual_seed(seed), samples=self._width())
        both = torch.stack((batch["audio"][:, : made.shape[1]].cpu(), made), 1).flatten(0, 1)
        titles = [f"{kind} {i}" for i in range(n) for kind in ("real", "sampled")]
        return Gallery({"sound": Audio(both, self._rate(), titles), "pitch": self._tracks(made[:1], batch.get("f0"))})

    @action
    def control(self, n: int = 8, seed: int = 0) -> Table:
        """Whether pitch and speaker do as told, on n test clips: the correlation (over frames that are voiced both ways)
        of the pitch asked for and made, and, with the next speaker and that speaker's pitch, the median pitch made. What
        the pitch tracker hears in the clips themselves is the most that can be reached.
        """
        if not (self.layout.pitch and self.layout.speakers):
            raise CapabilityError(
                "this run is not told pitch and speaker; train with condition=all on data that has them"
            )
        batch = self._clips(n)
        medians = _request.median_pitch(self.data)
        other = (batch["speaker"] + 1) % self.layout.speakers
        ratio = (medians[other] / medians[batch["speaker"]])[:, None]
        swapped = {**batch, "speaker": other, "f0": batch["f0"] * ratio}
        heard = track(batch["audio"].cpu(), self._rate(), self.layout.hop)
        rows = _request.pitch_rows("the clip itself", batch, heard, medians)
        for name, asked in (("as in the clip", batch), ("next speaker", swapped)):
            made = self._generate(asked, torch.Generator().manual_seed(seed), samples=self._width())
            rows += _request.pitch_rows(name, asked, track(made, self._rate(), self.layout.hop), medians)
        return Table(["asked", "speaker", "median asked", "median made", "correlation", "voiced frames"], rows)

    @action
    def complete(self, n: int = 4, keep: float = 0.5, seed: int = 0) -> Audio:
        """Test clips whose first `keep` is given, and the rest made up."""
        if not 0 < keep < 1:
            raise ConfigError(f"keep must lie between 0 and 1, not {keep}")
        batch = self._clips(n)
        given = round(keep * self._width())
        prime = mulaw.encode(batch["audio"][:, :given], self.config.classes)
        generator = torch.Generator().manual_seed(seed)
        waves = self._generate(batch, generator, samples=self._width() - given, prime=prime)
        return Audio(
            torch.cat((self._decode(prime), waves), 1), self._rate(), [f"given {keep:g} s/s, {i}" for i in range(n)]
        )

    @action
    def inpaint(self, clip: int = 0, start: float = 0.5, seconds: float = 0.05, candidates: int = 16, seed: int = 0) -> Gallery:  # fmt: skip
        """Fill a gap of a test clip: of several draws given the left side, the one after which the right is likeliest."""
        self._generating()
        batch = {name: t[clip : clip + 1] for name, t in self._clips(clip + 1).items()}
        rate, wave = self._rate(), batch["audio"]
        a, b = round(start * rate), round((start + seconds) * rate)
        after = b + self.lead + 1
        if not self.lead < a < b or after > wave.shape[1]:
            raise ConfigError(
                f"the gap must leave {(self.lead + 1) / rate:.2f} s of the clip's {wave.shape[1] / rate:.2f} s on both sides"
            )
        idx = mulaw.encode(wave, self.config.classes).expand(candidates, -1)
        many = {name: t.expand(candidates, *t.shape[1:]) for name, t in batch.items()}
        g, y = self.layout.features(many)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            filled = self._wavenet().generate(b - a, g, y, prime=idx[:, :a], generator=generator)
            whole = torch.cat((idx[:, :a], filled, idx[:, b:]), 1)
            begin = b - self._wavenet().receptive_field()
            cost = self._wavenet().bits(whole[:, begin:after], g, y, start=begin).mean(1)
        best = int(cost.argmin())
        hole = wave[0].clone()
        hole[a:b] = 0
        waves = torch.stack((wave[0], hole, self._decode(whole)[best]))
        table = Table(
            ["draw", "bits a sample after the gap"], [[i, float(c)] for i, c in enumerate(cost.sort().values)]
        )
        return Gallery({"sound": Audio(waves.cpu(), rate, ["real", "gap", "filled"]), "draws": table})

    @action
    def score(self, file: str = "", clip: int = 0) -> Gallery:
        """Bits a sample along a sound file (or a test clip): high where the model is surprised."""
        wave, batch = self._heard(file, clip)
        idx = mulaw.encode(wave, self.config.classes)
        g, y = self.layout.features(batch)
        model = self._wavenet()
        if idx.shape[1] <= model.receptive_field():
            raise DataError(
                f"{file or clip}: {idx.shape[1]} samples where more than {model.receptive_field()} are needed"
            )
        with torch.no_grad():
            bits = model.bits(idx, g, y)[0].cpu()
        window = max(1, self._rate() // 50)
        means = [float(part.mean()) for part in bits.split(window)]
        times = [(model.receptive_field() + (i + 0.5) * window) / self._rate() for i in range(len(means))]
        table = Table(
            ["samples", "bits a sample", "perplexity"], [[len(bits), float(bits.mean()), float(2 ** bits.mean())]]
        )
        return Gallery({"total": table, "curve": Curves({"bits": (times, means)}, x="s", y="bits a sample")})

    @action
    def recognise(self, file: str = "", clip: int = 0) -> Table:
        """Phones of a sound file (or a test clip) with their times; needs a run with task=recognise."""
        model = self.average.averaged
        if not isinstance(model, WaveNetRecognizer):
            raise CapabilityError("this run does not recognise phones; train one with task=recognise")
        wave, _ = self._heard(file, clip, told=False)
        with torch.no_grad():
            found = model(mulaw.encode(wave, self.config.classes))[1][0].argmax(0)
        names, seconds = self.data.info["phones"], self.layout.hop / self._rate()
        return Table(["from", "to", "phone"], _request.runs(found.tolist(), names, seconds))

    @action
    def speed(self, seconds: float = 0.25, clips: int = 1) -> Table:
        """Seconds of computation for a second of sound at the run's rate, each way of generating, on this machine."""
        model, batch = self._wavenet(), self._clips(clips)
        g, y = self.layout.features(batch)
        rows = []
        for path, share in (("naive", 0.1), ("cached", 0.5), ("auto", 1.0)):
            model.generate(1, g, y, batch=clips, path=path)
            n = max(1, round(seconds * share * self._rate()))
            begin = time.perf_counter()
            model.generate(n, g, y, batch=clips, path=path)
            spent = time.perf_counter() - begin
            rows.append([path, clips, n, n * clips / spent, spent / n * self._rate() / clips])
        return Table(["path", "clips", "samples", "samples a second", "seconds a second of sound"], rows)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def stream(self, batch: Batch, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Pieces of waveforms [B, <= 1024] as they are made, told what `batch` says; for players and pipes."""
        g, y = self.layout.features(batch)
        made = self._wavenet().generate(
            samples, g, y, batch=len(batch["audio"]), stream=True, generator=generator,
            temperature=self.config.temperature, top_p=self.config.top_p,
        )  # fmt: skip
        return (self._decode(piece) for piece in made)

    @torch.no_grad()
    def _generate(
        self, batch: Batch, generator: torch.Generator, *, samples: int, prime: Tensor | None = None,
        temperature: float = -1.0,
    ) -> Tensor:  # fmt: skip
        """Waveforms [B, samples]; a temperature below 0 is that of the configuration."""
        g, y = self.layout.features(batch)
        made = self._wavenet().generate(
            samples, g, y, prime, temperature if temperature >= 0 else self.config.temperature,
            top_p=self.config.top_p, batch=len(next(iter(batch.values()))), generator=generator,
        )  # fmt: skip
        return self._decode(made)

    def _decode(self, idx: Tensor) -> Tensor:
        return mulaw.decode(idx, self.config.classes).cpu()

    def _wavenet(self) -> WaveNet:
        model = self.average.averaged
        found: Any = model.wavenet if isinstance(model, WaveNetRecognizer) else model
        if not isinstance(found, WaveNet):
            raise CapabilityError("the LSTM baseline only predicts; train with network=wavenet")
        return found.eval()

    def _generating(self) -> None:
        self._wavenet()

    def _rate(self) -> int:
        return int(self.data.info["rate"])

    def _width(self) -> int:
        return self.data.split("test")[torch.tensor([0])]["audio"].shape[1]

    def _clips(self, n: int) -> Batch:
        """The first n test clips, again from the first where there are fewer."""
        if n < 1:
            raise ConfigError(f"the number of clips must be at least 1, not {n}")
        split = self.data.split("test")
        return {name: t.to(self.device) for name, t in split[torch.arange(n) % len(split)].items()}

    def _heard(self, file: str, clip: int, told: bool = True) -> tuple[Tensor, Batch]:
        """A waveform [1, T] and what is known about it."""
        if not file:
            batch = {name: t[clip : clip + 1] for name, t in self._clips(clip + 1).items()}
            return batch["audio"][:, : int(batch["length"][0])], batch
        if told and (self.layout.clip_dim or self.layout.frame_dim):
            raise CapabilityError(
                "this run is told more than a sound file says; train with condition=none to score files"
            )
        wave, _ = read(Path(file), self._rate(), resample=True)
        return wave[None].to(self.device), {}

    def _tracks(self, waves: Tensor, asked: Tensor | None) -> Curves:
        """The first clip's pitch in Hz over time, as made and as asked for."""
        hop = self.layout.hop
        lines = {"made": track(waves, self._rate(), hop)[0]}
        if asked is not None:
            lines["asked"] = asked[0].cpu()
        nothing = float("nan")
        return Curves(
            {
                name: ([i * hop / self._rate() for i in range(len(line))], [v if v > 0 else nothing for v in line.tolist()])
                for name, line in lines.items()
            },
            x="s", y="Hz",
        )  # fmt: skip
