"""Training, evaluation and actions of recurrent. Shapes: T time, B batch, O outputs, H hidden."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.data import text_files
from cambrian.data.music_files import SUFFIXES
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Curves, Gallery, Images, Sample, Table, Texts
from cambrian.engine.sounds import Audio
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.nn.cells import detached
from cambrian.systems.perception.recurrent import _look, _play, _search, _tasks
from cambrian.systems.perception.recurrent.model import (
    SequenceModel,
    class_loss,
    draw_keys,
    draw_symbols,
    key_loss,
    matched_width,
    value_loss,
)
from cambrian.worlds import chorales, stdlib

HIDDEN = {"sequence": 32, "text": 128, "music": 100}
WINDOW = 64  # characters or words a training window, where the user does not say
LANES = 16  # of evaluation over a text
RECENT = 10  # batches over which the accuracy is averaged
RATED = {"lstm": "forget_bias", "lstm-peephole": "forget_bias", "lstm-i": "forget_bias", "lstm-o": "forget_bias",
         "gru": "update_bias", "gru-after": "update_bias"}  # fmt: skip


@config
class Config:
    """Options of recurrent."""

    steps: int = option(1500, "updates", low=1)
    batch: int = option(32, "sequences per update", low=1)
    cell: str = option("lstm", "a name (tanh, lstm, gru, gru-after, mut1 ... lstm-f ...) or equations with an =")
    hidden: int | None = option(None, "cells a layer; none: 32 for tasks, 128 for text, 100 for music", low=1)
    parameters: int = option(0, "choose `hidden` so that the model has about this many parameters; 0: do not", low=0)
    layers: int = option(1, "layers", low=1)
    bidirectional: bool = option(False, "read both ways; only where the answer stands in no later input")
    residual: bool = option(False, "add a layer's input to its output where the sizes agree")
    embed: int = option(0, "size of a trained table of symbols; 0: one-hot", low=0)
    length: int | None = option(
        None, "steps a sequence, digits of arithmetic, symbols a window; none: by the data", low=1
    )
    forget_bias: float | None = option(None, "where LSTM's forget bias starts; none: 1")
    update_bias: float | None = option(None, "where the bias of GRU's z starts, negative keeps; none: 0")
    init: str = option(
        "orthogonal", "recurrent weights: orthogonal, or uniform in +-1/sqrt(H)", choices=("orthogonal", "uniform")
    )
    reinitialise: bool = option(False, "let the generic initialiser write all biases once more, to 0 (a classic bug)")
    lr: float = option(3e-3, "Adam's step size", low=0.0)
    clip: float = option(5.0, "gradients are clipped to this norm", low=0.0)
    dropout: float = option(0.0, "between layers and before the head", low=0.0, high=0.9)
    variational: float = option(
        0.0, "dropout with one mask a sequence, on inputs and h of each cell", low=0.0, high=0.9
    )
    zoneout: float = option(0.0, "share of states that stay as they are", low=0.0, high=0.9)
    truncate: int = option(0, "cut the gradient every so many steps; 0: never within a sequence", low=0)
    carry: bool = option(True, "text: read it in order and carry the state from window to window")
    until: float = option(
        0.0, "classes: stop learning when the last 10 batches' accuracy reaches this; 0: never", low=0.0, high=1.0
    )
    grid: str = option("quarter", "music: time between two steps", choices=tuple(chorales.STEPS))
    level: str = option("characters", "text: what a symbol is", choices=text_files.LEVELS)
    vocabulary: int = option(10_000, "text: most frequent symbols kept", low=2)
    characters: int = option(400_000, "stdlib: training characters", low=2000)
    chunk: int = option(0, "compile so many steps of the cell at once; 0: do not", low=0)
    temperature: float = option(0.8, "of `sample`", low=0.0)

    def check(self) -> None:
        """Options that exclude each other."""
        if self.parameters and self.hidden is not None:
            raise ConfigError("parameters chooses hidden: give one of the two")
        if self.forget_bias is not None and RATED.get(self.cell) != "forget_bias":
            raise ConfigError(f"forget_bias is for cells with a free forget gate, not {self.cell!r}")
        if self.update_bias is not None and RATED.get(self.cell) != "update_bias":
            raise ConfigError(f"update_bias is for gru and gru-after, not {self.cell!r}")


CLAIM = Claim(
    name="forget-bias",
    statement="On the latch task (name the first of 20 symbols; embedding and LSTM of 32) an LSTM whose forget bias starts "
    "at 1 needs at most a fifth of the updates to 97 % that it needs with 0, as geometric mean over seeds; a run that never "
    "gets there counts as 8,000.",
    metric="updates",
    direction="lower",
    margin=0.2,
    compare="ratio",
    paper="section 3.2 and tables 1-3: a forget bias of 1 closes the gap between LSTM and GRU (XML 0.425 -> 0.444, GRU 0.460; "
    "unverified)",
    arms={"bias-1": Arm({"forget_bias": 1.0}), "bias-0": Arm({"forget_bias": 0.0})},
    system="bias-1",
    baselines=("bias-0",),
    sabotage=Arm({"forget_bias": 1.0, "reinitialise": True}),
    seeds=(0, 1, 2, 3, 4),
)


@recipe("recurrent", data="latch")
class RecurrentRecipe(Recipe[Config]):
    """Trains any cell on tasks, text and music, and looks into it."""

    presets = {
        "smoke": Config(steps=100, length=6),
        "laptop": Config(steps=8000, batch=64, embed=32, until=0.97),
        "paper": Config(steps=200_000, batch=20, hidden=256),
    }
    claims = (CLAIM,)
    headline = ("loss", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """A task, `chorales`, `stdlib`, a text file, or a folder of texts or scores."""
        text = {"length": config.length or WINDOW, "level": config.level, "vocabulary": config.vocabulary}
        if source.kind == "path":
            inside = [source.path] if source.path.is_file() else list(source.path.rglob("*"))
            if any(p.suffix.lower() in SUFFIXES for p in inside) and source.path.is_dir():
                return chorales.load_folder(source.path, config.grid, max_length=config.length or 0)
            return text_files.load(source, **text)
        if source.value == "chorales":
            return chorales.load(config.grid, max_length=config.length or 0)
        if source.value == "stdlib":
            return stdlib.load(characters=config.characters, **text)
        if source.kind == "world" and source.value in _tasks.TASKS:
            return _tasks.load(source.value, config.length)
        known = (*_tasks.TASKS, "chorales", "stdlib")
        raise ConfigError(f"recurrent does not train on {source.value!r}; use one of {', '.join(known)}, or a file")

    def build(self, config: Config, data: Data) -> None:
        """One network and one optimiser; `hidden` by the data, or by the number of parameters."""
        if data.kind not in HIDDEN:
            raise DataError(f"recurrent reads sequences, text and music, not {data.kind}")
        if config.bidirectional and data.info.get("causal", True):
            raise ConfigError(f"with {data.name} a bidirectional network would read what it is to predict")
        self.task = {"text": "classes", "music": "keys"}.get(data.kind) or str(data.info["loss"])
        hidden = config.hidden or HIDDEN[data.kind]
        if config.parameters:
            hidden = matched_width(config.parameters, lambda h: _size(self._model(h)))
        self.model = self._model(hidden)
        if config.reinitialise:
            for name, parameter in self.model.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr)

    def _model(self, hidden: int) -> SequenceModel:
        config, info = self.config, self.data.info
        symbols = len(info.get("symbols", ()))
        rated = getattr(config, RATED[config.cell]) if config.cell in RATED else None
        return SequenceModel(
            outputs=int(info.get("outputs", symbols or 88)),
            symbols=symbols,
            inputs=0 if symbols else int(info.get("inputs", 88)),
            embed=config.embed if symbols else 0,
            cell=config.cell,
            hidden=hidden,
            layers=config.layers,
            bidirectional=config.bidirectional,
            residual=config.residual,
            dropout=config.dropout,
            variational=config.variational,
            zoneout=config.zoneout,
            chunk=config.chunk,
            options={"init": config.init, **({} if rated is None else {RATED[config.cell]: rated})},
        )

    # -- training -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One update; nothing once `until` is reached."""
        if "last" in self.extra:
            return dict(self.extra["last"])
        x, y, lengths, state = self._arranged(batch)
        outputs, state = self.model(x, state, lengths=lengths, detach_every=self.config.truncate or None)
        if self._carries():
            self.extra["state"] = detached(state)
        total, count = self._loss(outputs, y, lengths)
        loss = total / count
        self.minimise(loss, self.optim, clip_norm=self.config.clip)
        scalars: dict[str, Tensor | float] = {"loss": loss.detach()}
        if self.task == "classes":
            scalars["accuracy"] = float((outputs.detach().argmax(-1) == y)[y >= 0].float().mean())
            self._note_accuracy(scalars)
        return scalars

    def _note_accuracy(self, scalars: dict[str, Tensor | float]) -> None:
        recent = [*self.extra.get("recent", []), float(scalars["accuracy"])][-RECENT:]
        self.extra["recent"] = recent
        if self.config.until and len(recent) == RECENT and sum(recent) >= self.config.until * RECENT:
            self.extra["reached"] = self.iteration + 1
            self.extra["last"] = {name: float(value) for name, value in scalars.items()}

    def _loss(self, outputs: Tensor, y: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum over what is asked, and how much is asked."""
        if self.task == "keys":
            assert lengths is not None
            return key_loss(outputs, y, lengths)
        return class_loss(outputs, y) if self.task == "classes" else value_loss(outputs, y)

    def _arranged(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Inputs and targets with time first, lengths where they differ, and the state that the batch begins with."""
        if self._carries():
            return self._next_window(len(batch["tokens"]))
        return *self._time_first(batch), None

    def _time_first(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        if "tokens" in batch:
            tokens = batch["tokens"].t()
            return tokens[:-1], tokens[1:], None
        if self.task == "keys":
            longest = int(batch["length"].max())
            roll = batch["roll"][:, :longest].transpose(0, 1).float()
            return torch.cat((torch.zeros_like(roll[:1]), roll[:-1])), roll, batch["length"]
        y = batch["y"] if self.task == "value" else batch["y"].t()
        return batch["x"].transpose(0, 1), y, None

    def _carries(self) -> bool:
        return self.data.kind == "text" and self.config.carry and self._turns(self.config.batch) > 0

    def _turns(self, lanes: int) -> int:
        """Windows in each of `lanes` parallel streams of the training text."""
        return (len(self.data.train.tokens) - 1) // lanes // self.data.train.length

    def _next_window(self, mine: int) -> tuple[Tensor, Tensor, None, Any]:
        """The next window of each stream: of this process's streams where several train together."""
        tokens, length, lanes = self.data.train.tokens, self.data.train.length, mine * self.world.size
        per_lane, turn = (len(tokens) - 1) // lanes, self.iteration % self._turns(self.config.batch)
        first = (self.world.rank * mine + torch.arange(mine)) * per_lane + turn * length
        at = first[None] + torch.arange(length + 1)[:, None]
        window = tokens[at].to(self.device)
        held = self.extra.get("state") if turn else None
        state = None if held is None else tuple(tuple(s.to(self.device) for s in layer) for layer in held)
        return window[:-1], window[1:], None, state

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """`loss` in nats a symbol, nats a step of all 88 keys, or squared error; with it what the task is known by."""
        if self.data.kind == "text":
            return self._evaluate_text(split)
        total = count = hits = closed = closing = 0.0
        for batch in self.batches(split, 500):
            x, y, lengths = self._time_first(batch)
            outputs, _ = self.model(x, lengths=lengths)
            part, number = self._loss(outputs, y, lengths)
            total, count = total + float(part), count + float(number)
            if self.task == "classes":
                right = (outputs.argmax(-1) == y) & (y >= 0)
                hits += float(right.sum())
                if "closing" in batch:
                    marks = batch["closing"].t()
                    closed, closing = closed + float((right & marks).sum()), closing + float(marks.sum())
        found = {"loss": total / count}
        if self.task == "classes":
            found["accuracy"] = hits / count
            found["updates"] = float(self.extra.get("reached", self.config.steps))
        return {**found, "closing_accuracy": closed / closing} if closing else found

    def _evaluate_text(self, split: str) -> dict[str, float]:
        """The whole split in a few parallel streams, the state carried from piece to piece."""
        tokens = self.data.split(split).tokens
        lanes = max(1, min(LANES, (len(tokens) - 1) // WINDOW))
        per_lane = (len(tokens) - 1) // lanes
        at = torch.arange(lanes)[None] * per_lane + torch.arange(per_lane + 1)[:, None]
        stream, state, total = tokens[at].to(self.device), None, 0.0
        hits = 0
        for start in range(0, per_lane, 256):
            x, y = stream[start : start + 256], stream[start + 1 : start + 257]
            outputs, state = self.model(x[: len(y)], state)
            total += float(class_loss(outputs, y)[0])
            hits += int((outputs.argmax(-1) == y).sum())
        loss = total / (lanes * per_lane)
        unit = {"characters": ("bits", loss / math.log(2))}.get(
            self.data.info["level"], ("perplexity", math.exp(min(loss, 50.0)))
        )
        return {"loss": loss, unit[0]: unit[1], "accuracy": hits / (lanes * per_lane)}

    # -- what it shows --------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """Text; music as piano rolls (low notes below); or answers to test questions."""
        if self.data.kind == "text":
            return Texts(self._written(["\n"] * n, 300, self.config.temperature, generator))
        if self.task == "keys":
            rolls = self._played(n, 64, generator)
            return Images(rolls.permute(1, 2, 0).flip(1)[:, None], columns=1, scale=3)
        if self.data.name == "xml":
            opening = torch.tensor([[self.data.info["symbols"].index("<")] * n], device=self.device)
            made = self.model.generate(opening, 80, draw_symbols(self.config.temperature, generator))
            return Texts([self._text(row) for row in torch.cat((opening, made)).t()])
        return self._answers(n)

    @action
    def complete(
        self, prompt: str = "", characters: int = 400, temperature: float = 0.8, n: int = 1, seed: int = 0
    ) -> Texts:
        """Go on from a text; a run on characters or words."""
        if self.data.kind != "text":
            raise CapabilityError(f"complete continues text, but this run was trained on {self.data.name}")
        generator = torch.Generator().manual_seed(seed)
        return Texts(self._written([prompt or "\n"] * n, characters, temperature, generator))

    @action
    def listen(self, n: int = 2, steps: int = 48, seed: int = 0) -> Audio:
        """Music from silence, as sound; a run on music."""
        if self.task != "keys":
            raise CapabilityError(f"listen plays music, but this run was trained on {self.data.name}")
        self.model.eval()
        rolls = self._played(n, steps, torch.Generator().manual_seed(seed))
        return Audio(torch.stack([_play.render(roll) for roll in rolls.unbind(1)]), 8000)

    @action
    def gates(self, n: int = 16) -> Gallery:
        """Histograms of the gates over test sequences, and how often each is nearly shut or open (Karpathy et al. 2015)."""
        x, _, lengths = self._test(n)
        return _look.gates(self.model, x, lengths)

    @action
    def gradients(self, n: int = 16, lags: int = 60) -> Curves:
        """How the gradient of the loss at the last step shrinks with the lag: log10 |dL / dh| by steps back."""
        x, y, _ = self._test(n)
        return _look.gradients(self.model, x, y, self.task, lags)

    @action
    def table(
        self, cells: str = "tanh,lstm,gru,mut1,mut2,mut3", updates: int = 300, tasks: str = "", seed: int = 100
    ) -> Table:
        """Cells by name, each trained for `updates` on this run's data (or on `tasks`) with as many parameters as here."""
        return _search.table(self, cells.split(","), [t for t in tasks.split(",") if t], updates, seed)

    @action
    def search(self, candidates: int = 12, updates: int = 150, seed: int = 100) -> Table:
        """Change GRU's and LSTM's equations at random, as Jozefowicz et al. do, and train what can memorise at all."""
        return _search.search(self, candidates, updates, seed)

    # -- parts of these -------------------------------------------------------------------------------------------

    def _test(self, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        split = self.data.split("test")
        batch = split[torch.arange(min(n, len(split)))]
        return self._time_first({name: value.to(self.device) for name, value in batch.items()})

    def _text(self, row: Tensor) -> str:
        level = str(self.data.info.get("level", "characters"))
        return text_files.joined(row.tolist(), self.data.info["symbols"], level)

    def _written(self, prompts: list[str], steps: int, temperature: float, generator: torch.Generator) -> list[str]:
        info = self.data.info
        number = {symbol: i for i, symbol in enumerate(info["symbols"])}
        tokens = [[number.get(s, 0) for s in text_files.symbols_of(p, info["level"])] or [0] for p in prompts]
        self.model.eval()
        made = self.model.generate(
            torch.tensor(tokens, device=self.device).t(), steps, draw_symbols(temperature, generator)
        )
        return [prompt.lstrip("\n") + self._text(row) for prompt, row in zip(prompts, made.t(), strict=True)]

    @torch.no_grad()
    def _played(self, n: int, steps: int, generator: torch.Generator) -> Tensor:
        """Rolls [steps, n, 88] from silence."""
        silence = torch.zeros(1, n, 88, device=self.device)
        return self.model.generate(silence, steps, draw_keys(1.0, generator)).cpu()

    @torch.no_grad()
    def _answers(self, n: int) -> Table:
        x, y, _ = self._test(n)
        outputs, _ = self.model(x)
        if self.task == "value":
            rows = [[f"{a:.3f}", f"{b:.3f}"] for a, b in zip(outputs[-1, :, 0].tolist(), y[:, 0].tolist(), strict=True)]
            return Table(["answer", "true"], rows)
        symbols, spaced = self.data.info["symbols"], "" if self.data.name == "arithmetic" else " "
        rows = []
        for question, answer, true in zip(x.t(), outputs.argmax(-1).t(), y.t(), strict=True):
            asked = true >= 0
            shown = (question, answer[asked], true[asked])
            rows.append([spaced.join(symbols[i] for i in part.tolist()).strip() for part in shown])
        return Table(["read", "answer", "true"], rows)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
