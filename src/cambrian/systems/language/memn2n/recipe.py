"""Training, evaluation and actions of memn2n. Shapes: M models stacked = G groups x R restarts, B questions, S sentences, K hops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data.random import uniform
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Sample, Table, Texts
from cambrian.errors import CapabilityError, ConfigError
from cambrian.studies.many import Stacked
from cambrian.systems.language.memn2n import _language, _show, _stories
from cambrian.systems.language.memn2n.model import MemN2N, MemN2NLM, ages, with_gaps, word_features


@config
class Config:
    """Options of memn2n."""

    steps: int = option(3360, "training steps", low=1)
    batch: int = option(32, "questions (windows of text) per step; their losses are summed", low=1)
    tasks: tuple[int, ...] = option((2, 3), "bAbI tasks, each with models of its own")
    joint: bool = option(False, "one model for all tasks")
    restarts: int = option(3, "models from other starts; the lowest training loss is kept", low=1)
    hops: int = option(3, "K, looks at the memory", low=1)
    latent: int = option(20, "d, size of embeddings", low=2)
    memory: int = option(50, "sentences (words of text) that are remembered", low=1)
    tying: str = option("adjacent", "which tables are shared", choices=("adjacent", "layerwise"))
    encoding: str = option("position", "sentence as weighted or plain bag of words", choices=("bow", "position"))
    temporal: bool = option(True, "learned vectors for the age of memories")
    linear_start: int = option(20, "LS: at most so many epochs without softmax in the memory; 0: none", low=0)
    noise: float = option(0.1, "RN: empty memories per sentence in training", low=0.0, high=0.9)
    carry: bool = option(True, "hops build on earlier ones; off: each starts at the question (a check of the claim)")
    lr: float = option(0.01, "learning rate; half of it during the linear start", low=0.0)
    period: int = option(700, "steps between halvings of the learning rate", low=1)
    clip: float = option(40.0, "norm to which each model's gradient is clipped", low=0.0)
    stories: int = option(1000, "training questions a task of the embedded world", low=20)
    held_out: int = option(1000, "test questions a task of the embedded world", low=10)
    words: int = option(2000, "vocabulary of text", low=10)
    predict: int = option(32, "words of a window of text that are predicted", low=1)


CLAIM = Claim(
    name="hops",
    statement="On tasks 2 and 3 with 1,000 training questions, three hops make at least 10 points fewer test errors than one "
    "(mean of both tasks, best of three restarts by training loss).",
    metric="error",
    direction="lower",
    margin=10.0,
    paper="table 1, joint training: tasks 2 and 3, one hop 62.0 and 76.9 % errors, three hops 14.0 and 33.1 (unverified)",
    arms={"three-hops": Arm(), "one-hop": Arm({"hops": 1})},
    system="three-hops",
    baselines=("one-hop",),
    sabotage=Arm({"carry": False}),
    seeds=(0, 1, 2, 3, 4),
)


@recipe("memn2n", data="babi")
class MemN2NRecipe(Recipe[Config]):
    """Cross-entropy of answers alone, on several tasks and from several starts at once."""

    presets = {
        "smoke": Config(steps=150, tasks=(1,), restarts=2, stories=400, held_out=200, linear_start=2),
        "laptop": Config(),
        "paper": Config(steps=3360, tasks=tuple(range(1, 21)), restarts=10),
    }
    claims = (CLAIM,)
    headline = ("error", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """`babi` (default), a bAbI folder, `stdlib`, or a text file."""
        if _language.is_text(source):
            return _language.load(source, config.memory, config.predict, config.words)
        return _stories.load(
            source, config.tasks, train=config.stories, test=config.held_out, memory=config.memory, joint=config.joint
        )

    def build(self, config: Config, data: Data) -> None:
        self.text = data.kind == "text"
        if self.text:
            vocab = len(data.info["symbols"])
            self.net = MemN2NLM(vocab=vocab, d=config.latent, hops=config.hops, memory=config.memory)
            self.optim = self.optimiser(torch.optim.SGD, self.net.parameters(), lr=config.lr)
            self.extra = {"lr": config.lr, "best": float("inf")}
            return
        self.groups = 1 if config.joint else len(data.info["tasks"])
        self.models = self.groups * config.restarts
        bags = word_features(_stories.dictionary(data), int(data.info["vocab"]), config.encoding)
        self.sentences = bags.repeat_interleave(config.restarts, 0).to(self.device)
        self.net = Stacked([self._model() for _ in range(self.models)])
        self.optim = self.optimiser(torch.optim.SGD, self.net.parameters(), lr=config.lr)
        self.extra = {
            "linear": torch.full((self.models,), config.linear_start > 0),
            "best": torch.full((self.models,), float("inf")),
            "since": torch.zeros(self.models, dtype=torch.int64),
        }

    def _model(self) -> MemN2N:
        c = self.config
        return MemN2N(
            vocab=self.data.info["vocab"], d=c.latent, hops=c.hops, memory=c.memory, tying=c.tying, encoding=c.encoding,
            temporal=c.temporal, carry=c.carry,
        )  # fmt: skip

    # -- training -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        if self.text:
            return _language.step(self, batch)
        c, linear = self.config, self.extra["linear"].to(self.device)
        number = batch["number"].transpose(0, 1)[..., None]
        gap = uniform(batch["key"], number.shape[2], stream=1) < c.noise
        number, age = with_gaps(number, gap.expand(number.shape[:3]), c.memory)
        losses = self._losses(self._run(number[..., 0], age, batch, linear)[0], batch).sum(1)
        parameters = list(self.net.parameters())
        found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        for p, gradient in zip(parameters, found, strict=True):  # without carry, only the last hop is used
            p.grad = torch.zeros_like(p) if gradient is None else gradient
        self._scale(parameters, linear)
        self.apply_gradients(self.optim, loss=losses.sum())
        per_epoch = len(self.data.split("train")) // c.batch
        if bool(self.extra["linear"].any()) and (self.iteration + 1) % per_epoch == 0:
            self._end_of_epoch((self.iteration + 1) // per_epoch)
        return {"loss": losses.detach().mean() / len(batch["answer"]), "linear": linear.float().mean()}

    def _run(self, number: Tensor, age: Tensor, batch: Batch, linear: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of sentences and their ages [G, B, S] -> logits [M, B, V] and attention [M, K, B, S]."""
        asked = word_features(batch["query"].transpose(0, 1), int(self.data.info["vocab"]), self.config.encoding)
        inputs = [x.repeat_interleave(self.config.restarts, 0) for x in (number, age, asked)]
        return self.net.call("answer_from", self.sentences, *inputs, linear)

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy [M, B]."""
        answer = batch["answer"].T.repeat_interleave(self.config.restarts, 0)
        return F.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none").view(answer.shape)

    def _scale(self, parameters: list[Tensor], linear: Tensor) -> None:
        """Clip each model's gradient, and multiply it by that model's place in the schedule."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        age = (self.iteration - self.extra["since"].to(self.device)) // self.config.period
        factor = torch.where(linear, 0.5, 0.5 ** age.float()) * (self.config.clip / norm.clamp(min=1e-12)).clamp(
            max=1.0
        )
        for g in gradients:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    @torch.no_grad()
    def _end_of_epoch(self, epoch: int) -> None:
        """Linear start ends for the models whose validation loss has stopped falling."""
        loss = self._pass("valid")["loss"].cpu()
        linear = self.extra["linear"]
        ends = linear & ((loss >= self.extra["best"]) | (epoch >= self.config.linear_start))
        self.extra["since"] = torch.where(ends, self.iteration + 1, self.extra["since"])
        self.extra["best"] = torch.where(linear, torch.minimum(loss, self.extra["best"]), self.extra["best"])
        self.extra["linear"] = linear & ~ends

    # -- evaluation -----------------------------------------------------------------------------------------------

    def _pass(self, split: str) -> dict[str, Tensor]:
        """Over a split: `loss` [M] and, per task (T), `wrong`, `last` and `any_` [M, T]: errors, and questions whose strongest
        memory of the last hop, or of some hop, is a supporting statement."""
        tasks = len(self.data.info["tasks"])
        sums = {
            name: torch.zeros(self.models, tasks, device=self.device) for name in ("loss", "wrong", "last", "any_", "n")
        }
        for batch in self.batches(split, max(16, 1500 // self.models)):
            number = batch["number"].transpose(0, 1)
            logits, attention = self._run(number, ages(number[..., None]), batch, self.extra["linear"].to(self.device))
            support, counted, task, answer = (
                batch[k].transpose(0, 1).repeat_interleave(self.config.restarts, 0)
                for k in ("support", "counted", "task", "answer")
            )
            top = attention.argmax(-1, keepdim=True)
            hit = support[:, None].expand(attention.shape).gather(-1, top)[..., 0]
            found = {
                "loss": self._losses(logits, batch), "wrong": (logits.argmax(-1) != answer).float(),
                "last": hit[:, -1].float(), "any_": hit.any(1).float(), "n": torch.ones_like(counted).float(),
            }  # fmt: skip
            for name, value in found.items():
                sums[name].scatter_add_(1, task, value * counted)
        n = sums.pop("n")
        loss = sums.pop("loss").sum(1) / n.sum(1)
        return {"loss": loss, **{name: value / n.clamp(min=1) for name, value in sums.items()}}

    def chosen(self) -> list[int]:
        """For every group, the model (of M) with the lowest training loss."""
        loss = self._pass("train")["loss"].view(self.groups, -1)
        return [g * self.config.restarts + int(r) for g, r in enumerate(loss.nan_to_num(float("inf")).argmin(1))]

    def _per_task(self, split: str) -> dict[str, list[float]]:
        found, chosen = self._pass(split), self.chosen()
        groups = [0] * len(self.data.info["tasks"]) if self.config.joint else range(self.groups)
        rows = {
            name: [float(found[name][chosen[g], t]) for t, g in enumerate(groups)] for name in ("wrong", "last", "any_")
        }
        spread = found["wrong"].view(self.groups, self.config.restarts, -1).mean(1)
        rows["mean"] = [float(spread[g, t]) for t, g in enumerate(groups)]
        return rows

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Errors in per cent: mean over tasks, and of each; failed tasks (more than 5 %); mean over restarts; in how many per
        cent of questions the strongest memory of the last hop (of some hop) is a supporting statement. Text: perplexity."""
        if self.text:
            return _language.evaluate(self, split)
        rows = self._per_task(split)
        found = {
            "error": 100 * sum(rows["wrong"]) / len(rows["wrong"]),
            "failed": float(sum(e > 0.05 for e in rows["wrong"])),
        }
        found["error_of_all_restarts"] = 100 * sum(rows["mean"]) / len(rows["mean"])
        for t, task in enumerate(self.data.info["tasks"]):
            found[f"error_{task}"] = 100 * rows["wrong"][t]
            found[f"support_last_hop_{task}"] = 100 * rows["last"][t]
            found[f"support_some_hop_{task}"] = 100 * rows["any_"][t]
        return found

    # -- what it shows --------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """n test stories with answers; of text, n continuations of 40 words."""
        if self.text:
            return _language.sample(self, n, generator)
        return Texts([_show.told(self, i % self.groups, i) for i in range(n)])

    def _answers(self) -> Any:
        if self.text:
            raise CapabilityError("this run models text and answers no questions; train one on stories")
        return self

    @action
    def attention(self, task: int = 0, n: int = 3) -> Table:
        """n test stories of a task (0: the first one) sentence by sentence: supporting or not, and the attention of each hop."""
        return _show.attention(self._answers(), task, n)

    @action
    def errors(self) -> Table:
        """Test errors per task beside the paper's."""
        return _show.errors(self._answers(), self._per_task("test"))

    @action
    def ask(self, story: str, question: str, task: int = 0) -> Table:
        """Answer a question about statements that are separated by full stops."""
        return _show.ask(self._answers(), story, question, task)

    def group(self, task: int) -> int:
        """The group that answers a task's questions; 0 means the first task."""
        numbers = self.data.info["tasks"]
        if task and task not in numbers:
            raise ConfigError(f"this run has no task {task}; it has {', '.join(map(str, numbers))}")
        return 0 if self.config.joint or not task else numbers.index(task)
