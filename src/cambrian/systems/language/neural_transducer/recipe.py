"""Training, evaluation and actions of neural-transducer. Shapes: B batch, T frames, N blocks, S symbols, W frames a block."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cambrian.audio.files import read
from cambrian.audio.spectra import log_mel
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Gallery, Plot, Table
from cambrian.errors import CapabilityError, ConfigError
from cambrian.systems.language.neural_transducer import _worlds
from cambrian.systems.language.neural_transducer._attention import ATTENTIONS
from cambrian.systems.language.neural_transducer._decode import Decoded
from cambrian.systems.language.neural_transducer._figures import grids, histogram
from cambrian.systems.language.neural_transducer._judge import Judge, given
from cambrian.systems.language.neural_transducer._steps import scattered
from cambrian.systems.language.neural_transducer.model import ENDS, NeuralTransducer


@config
class Config:
    """Options of neural-transducer."""

    steps: int = option(600, "training steps", low=1)
    batch: int = option(32, "utterances per step", low=1)
    model: str = option("transducer", "what is trained: block by block, or offline attention over all frames", choices=("transducer", "whole"))  # fmt: skip
    block: int | None = option(None, "W, frames a block; none: 8 for sound, 1 for addition", low=1)
    most: int | None = option(None, "M, steps a block with its <e>; none: W / 4 + 2, for addition 8", low=2)
    attention: str = option("lstm", "attention over a block", choices=ATTENTIONS)
    end: str = option("symbol", "what ends a block: a symbol, a logistic unit, or nothing", choices=ENDS)
    hidden: int = option(128, "H, cells of every LSTM layer", low=1)
    encoder_layers: int = option(1, "layers of the encoder", low=1)
    upper_layers: int = option(1, "layers of the transducer above the one that attends", low=1)
    bidirectional: bool = option(False, "the encoder reads both ways: offline only")
    independent: bool = option(False, "forget the transducer's state at every block")
    encoder_reset: bool = option(False, "forget the encoder's state at every block too")
    alignments: str = option("auto", "from the world, or found by the search; auto: given for phones and .lab files", choices=("auto", "given", "search"))  # fmt: skip
    refresh: int = option(300, "a found alignment is used until so many sequences more were trained on", low=0)
    scatter: float = option(
        0.2,
        "share of the steps, the first ones, on alignments drawn at random before any are searched",
        low=0.0,
        high=1.0,
    )
    beam: int = option(1, "hypotheses in evaluation; 1 is greedy", low=1)
    optimiser: str = option("adam", "what minimises", choices=("adam", "sgd"))
    lr: float = option(3e-3, "step size at the start", low=0.0)
    decay: float = option(
        0.5, "share of the steps, the last ones, over which the step size falls to zero", low=0.0, high=1.0
    )
    clip: float = option(1.0, "norm to which gradients are clipped", low=0.0)
    size: int | None = option(None, "training utterances of a world; none: 2,000 for phones, 500,000 sums", low=1)
    rate: int = option(4000, "Hz at which sound is read", low=2000)
    bands: int = option(40, "mel bands a frame", low=1)
    seconds: float = option(1.0, "length of a clip; a folder's longer recordings are left out", low=0.1)
    join: int = option(1, "a folder's recordings are joined to utterances of one to so many", low=1)

    def check(self) -> None:
        """Offline attention has no fixed width and one block."""
        if self.model == "whole" and self.attention in ("lstm", "none"):
            raise ConfigError(f"model=whole attends over all frames with attention=mlp or dot, not {self.attention}")
        if self.model == "whole" and (self.block is not None or self.most is not None or self.end != "symbol"):
            raise ConfigError("model=whole is one block with its end: block, most and end cannot be set")


CLAIM = Claim(
    name="carried-state",
    statement="On phones read in blocks of 8 frames, the state carried from block to block makes the phone error rate at "
    "most 0.75 times that of blocks transduced independently, with the same encoder and the world's alignments.",
    metric="error_rate",
    direction="lower",
    margin=0.75,
    compare="ratio",
    paper="section 4.2, TIMIT, W = 15: 20.6 % phone errors against 34.3 % without recurrence across blocks",
    arms={
        "carried": Arm(),
        "independent": Arm({"independent": True}),
        "encoder-reset": Arm({"independent": True, "encoder_reset": True}),
        "whole-sequence": Arm({"model": "whole", "attention": "mlp", "bidirectional": True}),
    },
    system="carried",
    baselines=("independent",),
    sabotage=Arm({"independent": True}),
)


@recipe("neural-transducer", data="phones")
class NeuralTransducerRecipe(Recipe[Config]):
    """Maximises log p of one alignment of every target: the world's, or the best that the search finds."""

    presets = {
        "smoke": Config(steps=40, batch=16, hidden=32, size=96),
        "laptop": Config(hidden=64, size=1500),
        "paper": Config(
            steps=185_000, batch=1, block=25, hidden=250, encoder_layers=3, upper_layers=2, optimiser="sgd", lr=0.05,
            rate=16_000, seconds=3.0, size=3700, alignments="search", beam=8,
        ),
    }  # fmt: skip
    claims = (CLAIM,)
    headline = ("loss", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """`phones` (default), `addition`, or a folder of recordings with transcripts."""
        reading = _worlds.Reading(config.size, config.rate, config.bands, config.seconds, config.join)
        return _worlds.load(source, reading)

    def build(self, config: Config, data: Data) -> None:
        info = data.info
        width = config.block or int(info["W"])
        most = config.most or (width // 4 + 2 if width > 1 else 8)
        if config.model == "whole":
            width, most = int(info["max_frames"]), int(info["max_symbols"]) + 1
        self.searched = config.alignments == "search" or (config.alignments == "auto" and not info["given"])
        if not info["ends"] and config.alignments == "given":
            raise ConfigError(f"{data.name} does not say when its symbols end; use alignments=search, or .lab files")
        self.searched = self.searched and config.model != "whole"
        if self.searched and config.end == "none":
            raise ConfigError("end=none needs given alignments; the search has no end of block to look for")
        self.model = NeuralTransducer(
            in_dim=int(info["features"]), vocab=len(info["symbols"]), W=width, M=most, attention=config.attention,
            end=config.end, hidden=config.hidden, encoder_layers=config.encoder_layers, upper_layers=config.upper_layers,
            bidirectional=config.bidirectional, independent=config.independent, encoder_reset=config.encoder_reset,
        ).to(self.device)  # fmt: skip
        self._standardise(data)
        made = {"lr": config.lr, **({"momentum": 0.9} if config.optimiser == "sgd" else {})}
        factory = torch.optim.SGD if config.optimiser == "sgd" else torch.optim.Adam
        self.optim = self.optimiser(factory, self.model.parameters(), **made)
        if self.searched:
            size, blocks = len(data.split("train")), -(-int(info["max_frames"]) // width)
            self.extra["counts"] = torch.zeros(size, blocks, dtype=torch.int16)
            self.extra["found"] = torch.full((size,), -1)  # sequences trained on when it was found; -1: never

    def _standardise(self, data: Data) -> None:
        """Features of sound are centred and scaled by what the first training utterances show; characters stay."""
        if not data.info["rate"]:
            return
        train = data.split("train")
        part = train[torch.arange(min(256, len(train)))]
        there = torch.arange(part["x"].shape[1]) < part["frames"][:, None]
        frames = part["x"][there]
        self.model.mean.copy_(frames.mean(0))
        self.model.scale.copy_(frames.std(0).clamp(min=1e-3))

    # -- training --------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        config = self.config
        counts, fresh = self._alignment(batch)
        loss = self.model.loss(batch["x"], batch["y"], counts, batch["frames"])
        left = (1 - self.iteration / config.steps) / max(config.decay, 1e-9)
        for group in self.optim.param_groups:
            group["lr"] = config.lr * min(1.0, left)
        self.minimise(loss, self.optim, clip_norm=config.clip)
        return {"loss": loss.detach(), "searched": fresh}

    def _alignment(self, batch: Batch) -> tuple[Tensor, float]:
        """The alignment [B, N] of a training batch, and the share of it that was searched for now."""
        if not self.searched:
            return self._known(batch), 0.0
        if self.iteration < self.config.scatter * self.config.steps:
            blocks = -(-batch["frames"] // self.model.W)
            return scattered((batch["y"] >= 0).sum(1), blocks, self.model.M, self.rng), 0.0
        index, now = batch["index"].cpu(), self.iteration * self.config.batch
        found = self.extra["found"][index]
        stale = (found < 0) | (now - found >= self.config.refresh)
        if bool(stale.any()):
            rows = stale.to(self.device)
            counts = self.model.align(batch["x"][rows], batch["y"][rows], batch["frames"][rows]).cpu()
            self.extra["counts"][index[stale], : counts.shape[1]] = counts.to(torch.int16)
            self.extra["found"][index[stale]] = now
        n = -(-batch["x"].shape[1] // self.model.W)
        return self.extra["counts"][index].long().to(self.device)[:, :n], float(stale.float().mean())

    def _known(self, batch: Batch) -> Tensor:
        """The world's alignment; the offline model writes everything in its one block."""
        blocks = -(-batch["frames"] // self.model.W)
        if self.config.model == "whole":
            return (batch["y"] >= 0).sum(1, keepdim=True)
        return given(batch["ends"], blocks, self.model.W, self.model.M)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Nats per step of the (given or found) alignment, and the figures of `Judge` on what is written."""
        judge, nats, steps = self._judge(), 0.0, 0
        for batch in self.batches(split, 128):
            x, y, frames = batch["x"], batch["y"], batch["frames"]
            counts = self.model.align(x, y, frames) if self.searched else self._known(batch)
            nats -= float(self.model.log_prob(x, y, counts, frames).double().sum())
            steps += int((y >= 0).sum() + (-(-frames // self.model.W)).sum())
            self._add(judge, batch, self.model.decode(x, frames, beam=self.config.beam))
        return {"loss": nats / steps, **judge.figures()}

    def _judge(self) -> Judge:
        return Judge(self.model.W, float(self.data.info["seconds"]))

    def _add(self, judge: Judge, batch: Batch, found: list[Decoded]) -> None:
        for i, one in enumerate(found):
            n = int((batch["y"][i] >= 0).sum())
            judge.add(batch["y"][i, :n].tolist(), batch["ends"][i, :n].tolist(), int(batch["frames"][i]), one)

    # -- what it writes --------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Table:
        """n test utterances: what was said, and what is written, as a stream where the encoder allows it.

        The times at which symbols came out are seconds of input (for addition: characters) read until then.
        """
        rows = []
        for i in torch.randperm(len(self.data.split("test")), generator=generator)[:n].tolist():
            batch = self._utterance(i)
            found = self.model.decode(batch["x"], batch["frames"])[0]
            times = [min((b + 1) * self.model.W, int(batch["frames"][0])) for b in found.blocks]
            unit = float(self.data.info["seconds"])
            rows.append([self._text(batch["y"][0].tolist()), self._text(found.symbols), " ".join(f"{t * unit:g}" for t in times)])  # fmt: skip
        return Table(["said", "written", "written at"], rows)

    @action
    def stream(self, utterance: int = 0, wav: str = "", piece: int = 1, seed: int = 0) -> Table:
        """Feed a test utterance, or the sound file `wav`, `piece` frames at a time, and list what comes out when:
        each symbol, the input time at which it came, and the milliseconds that its block took to compute.
        """
        self.model.eval()
        x = self._spoken(Path(wav)) if wav else self._utterance(utterance)["x"][0]
        if piece < 1:
            raise ConfigError(f"piece must be at least 1 frame, not {piece}")
        one, rows, unit = self.model.stream(), [], float(self.data.info["seconds"])
        for part in [*x.split(piece), None]:
            for symbol in one.finish() if part is None else one.push(part):
                rows.append([self._text([symbol]), one.read * unit, 1e3 * one.seconds[-1]])
        return Table(["symbol", "written at", "block computed in ms"], rows)

    @action
    def latency(self, n: int = 200) -> Gallery:
        """How long after its end each correct symbol of n test utterances is written, and what a block costs to compute."""
        self.model.eval()
        self._needs_ends()
        judge, spent = self._judge(), []
        for i in range(min(n, len(self.data.split("test")))):
            batch, one = self._utterance(i), self.model.stream()
            one.push(batch["x"][0, : int(batch["frames"][0])])
            one.finish()
            found = Decoded([s for s, _ in one.log], [(t - 1) // self.model.W for _, t in one.log])
            self._add(judge, batch, [found])
            spent += one.seconds
        times = torch.tensor(spent) * 1e3
        figures = {**judge.figures(), "block_compute_ms": float(times.median()), "block_compute_p99_ms": float(times.quantile(0.99))}  # fmt: skip
        unit = "characters" if not self.data.info["rate"] else "s"
        table = Table(["figure", "value"], [[k, v] for k, v in figures.items()])
        return Gallery({"figures": table, "latency": histogram(judge.delays, unit)})

    @action
    def alignment(self, n: int = 3, first: int = 0) -> Plot:
        """Block by block, for n test utterances: the world's alignment where known, the found one, what is written."""
        self.model.eval()
        if self.config.model == "whole":
            raise CapabilityError("the offline model (model=whole) has one block; it has no alignment to show")
        frames, rows, names = [], [], self.data.info["symbols"]
        for i in range(first, first + n):
            batch = self._utterance(i)
            y = batch["y"][:, : int((batch["y"] >= 0).sum())]
            lines = {}
            ways = {"given": self._known(batch)} if self.data.info["ends"] else {}
            if self.config.end != "none":
                ways["found"] = self.model.align(batch["x"], y, batch["frames"])
            for way, counts in ways.items():
                blocks = torch.arange(counts.shape[1]).repeat_interleave(counts[0].cpu()).tolist()
                lines[way] = ([names[s] for s in y[0].tolist()], blocks)
            with torch.no_grad():
                found = self.model.decode(batch["x"], batch["frames"])[0]
            lines["written"] = ([names[s] for s in found.symbols], found.blocks)
            frames.append(batch["x"][0, : int(batch["frames"][0])])
            rows.append(lines)
        return grids(frames, rows, self.model.W)

    # -- parts of the actions ----------------------------------------------------------------------------------------

    def _utterance(self, i: int) -> Batch:
        split = self.data.split("test")
        if not 0 <= i < len(split):
            raise ConfigError(f"utterance must be one of the {len(split)} test utterances, not {i}")
        return {name: value.to(self.device) for name, value in split[torch.tensor([i])].items()}

    def _spoken(self, path: Path) -> Tensor:
        """The log-mel frames [T, F] of a sound file."""
        if not self.data.info["rate"]:
            raise CapabilityError("this run reads characters, not sound")
        wave, rate = read(path, int(self.data.info["rate"]), resample=True)
        return log_mel(wave[None], rate, bands=int(self.data.info["features"]))[0].to(self.device)

    def _text(self, symbols: list[int]) -> str:
        names = self.data.info["symbols"]
        return ("" if all(len(name) == 1 for name in names) else " ").join(names[s] for s in symbols if s >= 0)

    def _needs_ends(self) -> None:
        if not self.data.info["ends"]:
            raise CapabilityError(f"{self.data.name} does not say when its symbols end, so no latency can be measured")
