"""One recipe for four tasks (object states, pixels, stories, physics) and for the relation network and its baselines."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Scalars, Supervised, action, recipe
from cambrian.engine.samples import Gallery, Sample, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.perception.relation_network import _figures, _show, _tasks
from cambrian.systems.perception.relation_network.model import (
    FlatMLP,
    PixelEncoder,
    QuestionOnly,
    Reasoner,
    RelationNet,
    StackedAttention,
    StoryEncoder,
)

REASONERS = ("rn", "sum", "mlp", "attention", "question")


@config
class Config:
    """Options of the task, the network and its training."""

    steps: int = option(6500, "training updates", low=1)
    batch: int = option(32, "scenes (stories) per update", low=1)
    task: str = option("state", "what objects are", choices=tuple(_tasks.WORLDS))
    reasoner: str = option("rn", "relation network, per-object sum, MLP, stacked attention or question only", choices=REASONERS)  # fmt: skip
    pairs: str = option("all", "pairs that g sees; self: only (o_i, o_i)", choices=("all", "self"))
    g: tuple[int, ...] = option((64, 64), "widths of g", low=1)
    f: tuple[int, ...] = option((64,), "hidden widths of f", low=1)
    dropout: float = option(0.0, "dropout before the last layer of f", low=0.0, high=0.95)
    mlp: tuple[int, ...] = option((256, 256, 256), "hidden widths of the MLP and question-only baselines", low=1)
    lr: float = option(2e-3, "learning rate of Adam", low=0.0)
    decay: bool = option(True, "let the learning rate fall linearly to zero over the second half")
    train: int | None = option(None, "training scenes; None: a fresh one each time, 10,000 per story type, 6,000 of springs", low=1)  # fmt: skip
    held_out: int = option(1000, "scenes or stories of each held-out split", low=1)
    relational: int = option(6, "relational questions about each training scene", low=0)
    plain: int = option(2, "non-relational questions about each training scene", low=0)
    size: int = option(32, "edge of a picture (pixels)", low=8)
    channels: tuple[int, ...] = option((24, 24, 24), "kernels of each convolution (pixels)", low=1)
    stories: tuple[int, ...] = option((1, 4, 6, 12, 15, 16), "bAbI task numbers (babi)", low=1, high=20)
    words: int = option(32, "units of embedding and LSTM (babi)", low=1)
    physics: str = option("connections", "what is asked about springs", choices=("connections", "count"))

    def check(self) -> None:
        """Conditions across fields."""
        if self.relational + self.plain < 1:
            raise ConfigError("relational and plain questions cannot both be 0; a scene needs at least one question")
        if self.size < 2 ** len(self.channels):
            raise ConfigError(
                f"size {self.size} vanishes after {len(self.channels)} convolutions of stride 2; raise size"
            )
        if self.pairs == "self" and self.reasoner not in ("rn", "sum"):
            raise ConfigError(f"pairs=self is about g, which reasoner {self.reasoner} lacks; use reasoner rn")


CLAIM = Claim(
    name="neighbours",
    statement="On states of six objects in random order, a fresh scene at every step, the relation network answers questions about the closest "
    "and the farthest neighbour at least 10 points better than the better of an MLP and a network per object after equally many updates.",
    metric="neighbours",
    direction="higher",
    margin=0.10,
    paper="section 5.2: Sort-of-CLEVR, above 94% on relational questions against 63% for CNN+MLP",
    arms={"rn": Arm(), "mlp": Arm({"reasoner": "mlp"}), "sum": Arm({"reasoner": "sum"})},
    system="rn",
    baselines=("mlp", "sum"),
    sabotage=Arm({"pairs": "self"}),
    conditions=(
        Condition("rn", "neighbours", ">=", 0.80),
        Condition("rn", "nonrelational", ">=", 0.94),
        Condition("mlp", "nonrelational", ">=", 0.94),
        Condition("sum", "nonrelational", ">=", 0.94),
    ),
)


class Answerer(nn.Module):
    """An encoder that the task needs, and a reasoner."""

    def __init__(self, encoder: nn.Module | None, reasoner: Reasoner) -> None:
        super().__init__()
        self.encoder, self.reasoner = encoder, reasoner

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Objects [B, N, D], questions [B, Q, E] and mask [B, N] of a batch."""
        if "story" in batch:
            return self.encoder(batch["story"], batch["question"])  # type: ignore[misc]
        if "image" in batch:
            return self.encoder(batch["image"]), batch["question"], None  # type: ignore[misc]
        return batch["objects"], batch["question"], batch.get("mask")

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, Q, K]."""
        return self.reasoner(*self.seen(batch))


@recipe("relation-network", data="sort-of-clevr")
class RelationNetworkRecipe(Supervised[Config]):
    """Trains a reasoner on one of the four tasks."""

    presets = {
        "smoke": Config(steps=150, held_out=100, g=(32, 32), f=(32,)),
        "laptop": Config(),
        "paper": Config(
            steps=60_000, batch=64, task="pixels", g=(2000,) * 4, f=(2000, 1000, 500, 100), mlp=(2000, 1000, 500, 100), lr=1e-4,
            decay=False, train=9800, held_out=200, relational=10, plain=10, size=75, channels=(32, 64, 128, 256),
        ),
    }  # fmt: skip
    claims = (CLAIM,)
    headline = ("accuracy", "higher")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """The world of the task, or a user's own file or folder."""
        if source.kind != "world":
            return _tasks.read(config.task, source)
        if source.value not in (cls.default_data, _tasks.WORLDS[config.task]):
            raise DataError(
                f"task {config.task} asks about {_tasks.WORLDS[config.task]}, not {source.value}; set task to fit"
            )
        usual = {"babi": 10_000 * len(config.stories), "springs": 6000}.get(config.task, config.steps * config.batch)
        sizes = {"train": config.train or usual, "held_out": config.held_out}
        if config.task == "babi":
            return _tasks.stories(config.stories, **sizes)
        if config.task == "springs":
            return _tasks.physics(config.physics, **sizes)
        asked = {"relational": config.relational, "plain": config.plain}
        return _tasks.scenes(config.task, size=config.size, **asked, **sizes)

    def build(self, config: Config, data: Data) -> None:
        """Encoder, reasoner and Adam."""
        example = data.split("train")[torch.arange(1)]
        encoder, sizes = _encoder(config, example, len(data.info.get("words", ())))
        self.model = Answerer(encoder, _reasoner(config, *sizes, len(data.info["answers"]))).to(self.device)
        if config.reasoner == "question" and encoder is not None:
            _freeze_unused(encoder)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optim = self.optimiser(partial(torch.optim.Adam, fused=True), learned, lr=config.lr)

    def objective(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """Cross-entropy of the answers; for several yes/no answers at once, the binary one."""
        logits = self.model(batch)
        if self.data.info["multi"]:
            return F.binary_cross_entropy_with_logits(logits, batch["answer"]), {}
        return F.cross_entropy(logits.flatten(0, 1), batch["answer"].flatten()), {}

    def step(self, batch: Batch) -> Scalars:
        """One update at the learning rate of this iteration."""
        if self.config.decay:
            left = 1 - self.iteration / self.config.steps
            for group in self.optim.param_groups:
                group["lr"] = self.config.lr * min(1.0, 2 * left)
        return super().step(batch)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Accuracy over all and by type of question; `prior` is that of each type's most frequent training answer.

        `neighbours` is the mean of `closest` and `farthest`; connections of springs add `f1`.
        """
        train = self.data.split("train")
        tally = _figures.Tally(self.data.info, train[torch.arange(min(1000, len(train)))])
        for batch in self.batches(split, 128):
            tally.add(self.model(batch).cpu(), batch["answer"].cpu(), batch["kind"].cpu())
        return tally.figures()

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """`n` test scenes or stories with questions, right answers and the network's."""
        batch = self._batch(torch.randint(len(self.data.split("test")), (n,), generator=generator))
        return _show.answered(batch, self.model(batch), self.data)

    def _batch(self, index: Tensor) -> Batch:
        return {k: v.to(self.device) for k, v in self.data.split("test")[index].items()}

    @action
    def relevance(self, n: int = 2, seed: int = 0) -> Sample:
        """Which pairs of objects each answer rests on: |g_ij|, and what leaving the pair out takes from the answer."""
        if not isinstance(self.model.reasoner, RelationNet) or self.model.reasoner.g.pairs != "all":
            raise CapabilityError("relevance shows pairs; train with reasoner=rn and pairs=all")
        picks = torch.randint(len(self.data.split("test")), (n,), generator=torch.Generator().manual_seed(seed))
        batch = self._batch(picks)
        objects, question, mask = self.model.seen(batch)
        length, drop = self.model.reasoner.relevance(objects, question[:, -4:], mask)
        return Gallery(_show.pictures(batch) | _show.heat(batch, length, drop, self.data))

    @action
    def ask(self, question: str = "What shape is the object closest to the red one?", scene: int = 0) -> Sample:
        """An English question about a test scene of Sort-of-CLEVR."""
        if self.config.task not in ("state", "pixels") or self.data.name != "sort-of-clevr":
            raise CapabilityError("ask is about Sort-of-CLEVR scenes; train with task=state or task=pixels")
        batch = self._batch(torch.tensor([scene]))
        batch["question"] = _show.parse(question).to(self.device)
        with torch.no_grad():
            chance = self.model(batch)[0, 0].softmax(-1)
        rows = [
            [question, self.data.info["answers"][int(i)], float(chance[i])] for i in chance.argsort(descending=True)[:3]
        ]
        return Gallery({**_show.pictures(batch), "answer": Table(["question", "answer", "probability"], rows)})


def _encoder(config: Config, example: Batch, words: int) -> tuple[nn.Module | None, tuple[int, int, int]]:
    """What the task needs to make objects, and the sizes (objects, features of one, features of a question)."""
    if config.task == "babi":
        lines = example["story"].shape[1]
        reader = StoryEncoder(vocabulary=words, sentences=lines, embedding=config.words, hidden=config.words)
        return reader, (lines, reader.obj_dim, reader.q_dim)
    question = example["question"].shape[2]
    if config.task == "pixels":
        eye = PixelEncoder(channels=config.channels)
        edge = math.ceil(config.size / 2 ** len(config.channels))
        return eye, (edge**2, eye.obj_dim, question)
    return None, (*example["objects"].shape[1:], question)


def _reasoner(config: Config, count: int, features: int, question: int, out: int) -> Reasoner:
    """The network that the configuration names, for `count` objects of `features` numbers."""
    if config.reasoner in ("rn", "sum"):
        pairs = "self" if config.reasoner == "sum" else config.pairs
        return RelationNet(
            obj_dim=features, q_dim=question, out=out, g=config.g, f=config.f, dropout=config.dropout, pairs=pairs
        )
    if config.reasoner == "mlp":
        return FlatMLP(
            objects=count, obj_dim=features, q_dim=question, out=out, widths=config.mlp, dropout=config.dropout
        )
    if config.reasoner == "attention":
        return StackedAttention(
            obj_dim=features, q_dim=question, out=out, hidden=config.g[0], f=config.f, dropout=config.dropout
        )
    return QuestionOnly(q_dim=question, out=out, widths=config.mlp)


def _freeze_unused(encoder: nn.Module) -> None:
    """A question-only network leaves what reads the objects without gradient."""
    parts = [encoder.sentence] if isinstance(encoder, StoryEncoder) else [encoder]
    for part in parts:
        part.requires_grad_(False)
