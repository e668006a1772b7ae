"""What systems that infer as well as generate share: rounds of the joint-pair game, and how their encoders are judged.

    reconstruction_ratio   mean |x - G(E(x))| over mean |x - G(E(x'))|, x' another image: 1 where the code tells nothing
    kept_class             share of held-out samples whose reconstruction is, by its nearest real sample, of their class

Shapes: B batch, Z latent.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cambrian.data.split import Batch
from cambrian.engine.recipe import action
from cambrian.engine.samples import Gallery, Images, Points, Sample
from cambrian.metrics.neighbours import nearest
from cambrian.nn.adversarial import (
    REAL,
    JointPairs,
    Player,
    discriminator_accuracy,
    joint_discriminator_loss,
    joint_opponents_loss,
)
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._nets import GenerativeModel

C = TypeVar("C")
PAIRS = ("kept", "permuted")
HELD = 500  # held-out samples that reconstructions are judged on
NEIGHBOURS = 4000  # real samples among which the nearest is sought


class InferenceModel(GenerativeModel):
    """A generative model with an `encoder` and a `discriminator` of pairs."""

    encoder: nn.Module
    discriminator: nn.Module

    def code(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[B, Z]` that the game pairs with samples `x` `[B, *shape]`; differentiable."""
        raise NotImplementedError

    def seen(self, x: Tensor) -> Tensor:
        """What of samples `x` the discriminator and reconstructions see; all of it, unless a model looks closer."""
        return x


class JointRecipe(AdversarialRecipe[C]):
    """The joint-pair game of `self.model`, with optimisers `d_optim` and `eg_optim`; the configuration has `pair`."""

    model: InferenceModel
    d_optim: Any
    eg_optim: Any

    def infer(self, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Codes `[B, Z]` of the samples `x` of `batch`, as the game sees them."""
        return self.model.code(x, generator)

    def prior_for(self, batch: Batch, count: int, generator: torch.Generator) -> Tensor:
        """Latents `[B, Z]` for the decoder's pairs."""
        return self.latent(count, generator)

    def source(self, logits: Tensor) -> Tensor:
        """Real-or-fake logits `[B]` of the discriminator's output."""
        return logits.flatten()

    def source_logits(self, x: Tensor, source: int = REAL) -> None:
        """None: the discriminator judges pairs, so `d_accuracy` is measured on those."""

    def pairs(self, x: Tensor, batch: Batch, generator: torch.Generator) -> JointPairs:
        """The pairs of one round."""
        z = self.prior_for(batch, len(x), generator)
        return JointPairs(self.model.seen(x), self.infer(x, batch, generator), self.model.generate(z), z)

    def judge_pairs(self, pairs: JointPairs) -> tuple[Tensor, Tensor] | None:
        """The discriminator's logits `[B]` of encoder and decoder pairs; None where a game has no discriminator."""
        on_encoder, on_decoder = pairs.logits(self.model.discriminator)
        return self.source(on_encoder), self.source(on_decoder)

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        pairs = self.pairs(x, batch, self.rng)
        pairs = pairs.permuted(self.rng) if self.config.pair == "permuted" else pairs  # type: ignore[attr-defined]

        def eg_loss(turn: int) -> Tensor:
            logits = self.judge_pairs(pairs)
            assert logits is not None
            return joint_opponents_loss(*logits)

        return [self.d_player(pairs), Player("eg", self.eg_optim, eg_loss)]

    def d_player(self, pairs: JointPairs) -> Player:
        """The discriminator on pairs cut off from E and G, which are the very same that E and G then play with."""

        def loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            logits = self.judge_pairs(pairs.detached())
            assert logits is not None
            return joint_discriminator_loss(*logits), {"d_accuracy": discriminator_accuracy(*logits)}

        return Player("d", self.d_optim, loss)

    # -- what is measured and shown ---------------------------------------------------------------------------------

    def held_out(self, split: str, generator: torch.Generator) -> tuple[Batch, JointPairs, Tensor]:
        """The first held-out samples: their batch, pairs with prior draws, and their reconstructions."""
        batch = next(self.batches(split, HELD))
        pairs = self.pairs(self.real(batch), batch, generator)
        return batch, pairs, self.model.generate(pairs.z_hat)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The family's figures, `d_accuracy` on pairs, and the two figures of reconstructions above."""
        out = super().evaluate(split, generator)
        batch, pairs, rebuilt = self.held_out(split, generator)
        logits = self.judge_pairs(pairs)
        accuracy = {} if logits is None else {"d_accuracy": float(discriminator_accuracy(*logits))}
        out |= accuracy | {"reconstruction_ratio": reconstruction_ratio(pairs.x, rebuilt, generator)}
        if len(self.data.info["classes"]) > 1:
            out["kept_class"] = float((self.nearest_class(rebuilt) == batch["label"]).double().mean())
        return out

    def nearest_class(self, x: Tensor) -> Tensor:
        """Labels `[B]` of the nearest training samples; of points, the nearest centre, -1 beyond 3 deviations."""
        if self.data.kind == "points":
            centres = torch.tensor(self.data.info["centres"]).to(x)
            label = nearest(x, centres)
            near = (x - centres[label]).norm(dim=1) <= 3 * self.data.info["deviation"]
            return label.where(near, -torch.ones_like(label))
        train = self.data.split("train")
        held = train[torch.arange(min(NEIGHBOURS, len(train)))]
        real = self.model.seen(self.real(held).to(x))
        return held["label"].to(x.device)[nearest(x.flatten(1), real.flatten(1))]

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """What the family shows, and held-out samples with their reconstructions."""
        shown = super().sample(n, generator)
        items = dict(shown.items) if isinstance(shown, Gallery) else {"samples": shown}
        return Gallery({**items, "reconstructions": self.side_by_side(min(n, 10), generator)})

    @action
    def reconstruct(self, n: int = 8, seed: int = 0) -> Sample:
        """Test samples above their reconstructions."""
        return self.side_by_side(n, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def side_by_side(self, n: int, generator: torch.Generator) -> Sample:
        """`n` test images above their reconstructions; of points, all reconstructions over the originals."""
        _, pairs, rebuilt = self.held_out("test", generator)
        if not self.model.images:
            return Points(rebuilt, pairs.x)
        return Images(self.model.show(torch.cat((pairs.x[:n], rebuilt[:n]))).cpu(), columns=min(n, len(rebuilt)))


def reconstruction_ratio(x: Tensor, rebuilt: Tensor, generator: torch.Generator) -> float:
    """Mean Euclidean distance of `x` `[B, ...]` to its own reconstruction, over that to another row's."""
    turn = torch.randperm(len(x), generator=generator).to(x.device)
    other = torch.empty_like(turn)
    other[turn] = turn.roll(1)  # one cycle through all rows: none is its own partner
    own = (x - rebuilt).flatten(1).norm(dim=1).mean()
    return float(own / (x - rebuilt[other]).flatten(1).norm(dim=1).mean().clamp_min(1e-12))
