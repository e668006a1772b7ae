"""Training, evaluation and actions of ptr-net. Shapes: B sets, n points, M positions of an answer."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Supervised, action, recipe
from cambrian.engine.samples import Gallery, Plot, Table
from cambrian.errors import CapabilityError, ConfigError
from cambrian.systems.language.ptr_net import _valid
from cambrian.systems.language.ptr_net._figure import answers_figure
from cambrian.systems.language.ptr_net._scores import SCORES, cut
from cambrian.systems.language.ptr_net.model import OUTPUTS, PointerNet
from cambrian.worlds import point_sets
from cambrian.worlds.tour_heuristics import christofides, insertion, nearest_neighbour


@config
class Config:
    """Options of ptr-net."""

    steps: int = option(3000, "training steps", low=1)
    batch: int = option(128, "point sets per step", low=1)
    task: str = option("hull", "what is asked", choices=point_sets.TASKS)
    output: str = option(
        "pointer",
        "how a number is chosen: pointing, or from a fixed dictionary with or without attention",
        choices=OUTPUTS,
    )
    permute: bool = option(False, "show the scores the states of other positions (a check of the claim)")
    hidden: int = option(128, "H, units of encoder, decoder and scores", low=1)
    lr: float = option(2e-3, "Adam's learning rate", low=0.0)
    clip: float = option(2.0, "norm to which gradients are clipped", low=0.0)
    low: int = option(5, "fewest points of a set", low=3)
    high: int = option(10, "most points of a set", low=3)
    sets: int = option(46_000, "training sets of the embedded world", low=10)
    tested: int = option(3000, "test sets of the embedded world", low=10)
    beam: int = option(1, "hypotheses of the search at evaluation", low=1)
    constrained: bool = option(False, "search valid answers alone at evaluation")

    def check(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"low must not exceed high, not {self.low} > {self.high}")


CLAIM = Claim(
    name="pointing",
    statement="For hulls of 10 points the pointer network finds the exact sequence at least 25 points more often than a network "
    "with attention that chooses from a fixed dictionary, after equally many steps.",
    metric="accuracy_largest",
    direction="higher",
    margin=0.25,
    paper="table 1, n = 50: accuracy 72.6 % (Ptr-Net), 38.9 % (LSTM with attention), 1.9 % (LSTM)",
    arms={"pointer": Arm(), "attention": Arm({"output": "attention"})},
    system="pointer",
    baselines=("attention",),
    sabotage=Arm({"permute": True}),
)


@recipe("ptr-net", data="point-sets")
class PtrNetRecipe(Supervised[Config]):
    """Cross-entropy of the answer's numbers, teacher-forced."""

    presets = {
        "smoke": Config(steps=60, hidden=32, sets=2000, tested=120, high=6, lr=1e-2),
        "laptop": Config(),
        "paper": Config(steps=100_000, hidden=512, low=5, high=50, sets=1_000_000),
    }
    claims = (CLAIM,)
    headline = ("nll", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """`point-sets`, or a CSV file of sets `x1,y1,x2,y2,...`, a set a line."""
        if source.kind == "path":
            return point_sets.read(source.path, config.task)
        if source.value != "point-sets":
            raise ConfigError(f"ptr-net reads point-sets or a CSV file, not {source.value!r}")
        held = max(10, config.tested // 4)
        sizes = {"train": config.sets, "valid": held, "test": config.tested}
        return point_sets.load(config.task, low=config.low, high=config.high, **sizes)

    def build(self, config: Config, data: Data) -> None:
        self.model = PointerNet(
            hidden=config.hidden, output=config.output, largest=int(data.info["high"]), permute=config.permute
        )
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr)
        self.clip_norm = config.clip

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats a number, the stop included."""
        return self._loss(batch), {}

    def _loss(self, batch: Batch) -> Tensor:
        target = batch["target"]
        target = target[:, : int((target >= 0).sum(1).max())]
        logits = self.model(batch["points"], target, batch["count"])
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Nats a number, and the scores of the answers found: over all sets, and over those with the most points."""
        largest = int(self.data.info["high"])
        scores: dict[str, list[float]] = defaultdict(list)
        losses = []
        for batch in self.batches(split, 500):
            losses.append(float(self._loss(batch)) * len(batch["points"]))
            answers = self._answers(batch["points"], batch["count"], self.config.beam, self.config.constrained)
            for points, count, target, answer in zip(
                batch["points"].cpu(), batch["count"].tolist(), batch["target"].cpu(), answers, strict=True
            ):
                for name, value in SCORES[self.data.info["task"]](points[:count], answer, cut(target)).items():
                    scores[name].append(value)
                    if count == largest:
                        scores[f"{name}_largest"].append(value)
        return {"nll": sum(losses) / len(self.data.split(split)), **{n: sum(v) / len(v) for n, v in scores.items()}}

    def _answers(self, points: Tensor, count: Tensor, beam: int, constrained: bool) -> list[list[int]]:
        self.model.eval()
        kind = self.data.info["task"] if constrained else "none"
        steps = _valid.steps(self.data.info["task"], points.shape[1])
        found = self.model.decode(points, count, beam_width=beam, valid=kind, steps=steps)
        return [cut(row) for row in found.symbols[:, 0].cpu()]

    # -- what it shows ------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Plot:
        """n test sets: the answer that a constrained beam of 4 finds over the truth."""
        split = self.data.split("test")
        batch = split[torch.randperm(len(split), generator=generator)[:n]]
        answers = self._answers(batch["points"].to(self.device), batch["count"].to(self.device), 4, True)
        sets = [points[:count] for points, count in zip(batch["points"], batch["count"].tolist(), strict=True)]
        return Plot(answers_figure(self.data.info["task"], sets, answers, [cut(row) for row in batch["target"]]))

    @action
    def solve(self, input: str, beam: int = 4) -> Gallery:
        """Answer the sets of a CSV file (`x1,y1,x2,y2,...`, a set a line): valid answers, drawn and listed, beside the exact
        ones where those can be computed."""
        data = point_sets.read(Path(input), self.data.info["task"])
        parts = [data.split(name) for name in ("valid", "test", "train")]
        batches = [part[torch.arange(len(part))] for part in parts]
        batch = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        answers = self._answers(batch["points"].to(self.device), batch["count"].to(self.device), beam, True)
        truths = [cut(row) for row in batch["target"]]
        sets = [points[:count] for points, count in zip(batch["points"], batch["count"].tolist(), strict=True)]
        rows = [
            {"set": i + 1, "answer": " ".join(map(str, answer)), "exact": " ".join(map(str, truth)),
             **SCORES[self.data.info["task"]](points, answer, truth)}
            for i, (points, answer, truth) in enumerate(zip(sets, answers, truths, strict=True))
        ]  # fmt: skip
        drawing = Plot(answers_figure(self.data.info["task"], sets[:16], answers[:16], truths[:16]))
        return Gallery({"answers": Table.of(rows), "drawing": drawing})

    @action
    def lengths(
        self, low: int = 5, high: int = 20, step: int = 5, n: int = 200, beam: int = 1, constrained: bool = False
    ) -> Table:
        """Scores at set sizes `low`, `low + step`, ... `high`, within and beyond what was trained on; n fresh sets each."""
        if self.config.output != "pointer" and high > self.model.largest:
            raise CapabilityError(f"a fixed dictionary answers for at most {self.model.largest} points")
        task, rows = self.data.info["task"], []
        for size in range(low, high + 1, step):
            points = point_sets.draw(sample_keys(2**31, size, torch.arange(n)), size)
            truths = point_sets.SOLVERS[task](points)
            count = torch.full((n,), size)
            answers = self._answers(points.to(self.device), count.to(self.device), beam, constrained)
            scores = [SCORES[task](p, a, t) for p, a, t in zip(points, answers, truths, strict=True)]
            names = {name for score in scores for name in score}
            means = {k: sum(v) / len(v) for k in sorted(names) if (v := [s[k] for s in scores if k in s])}
            rows.append({"points": size, **means})
        return Table.of(rows)

    @action
    def heuristics(self, n: int = 100, beam: int = 8) -> Table:
        """Tours on n test sets: mean length over the shortest, for the constrained beam and four classical heuristics."""
        if self.data.info["task"] != "tour":
            raise CapabilityError("heuristics are for task=tour")
        split = self.data.split("test")
        batch = split[torch.arange(min(n, len(split)))]
        sets = [p[:c] for p, c in zip(batch["points"], batch["count"].tolist(), strict=True)]
        shortest = [point_sets.tour_length(p.double(), cut(row)) for p, row in zip(sets, batch["target"], strict=True)]
        ours = self._answers(batch["points"].to(self.device), batch["count"].to(self.device), beam, True)
        tours = {
            "ptr-net": ours,
            "nearest neighbour": [nearest_neighbour(p) for p in sets],
            "nearest insertion": [insertion(p) for p in sets],
            "farthest insertion": [insertion(p, farthest=True) for p in sets],
            "christofides": [christofides(p) for p in sets],
        }
        rows = []
        for name, found in tours.items():
            lengths = [point_sets.tour_length(p.double(), tour) for p, tour in zip(sets, found, strict=True)]
            rows.append(
                {"method": name, "ratio": sum(a / b for a, b in zip(lengths, shortest, strict=True)) / len(lengths)}
            )
        return Table.of(rows)
