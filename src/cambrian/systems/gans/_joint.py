"""What systems that infer as well as generate share: rounds of the joint-pair game, and how their encoders are judged.

    reconstruction_ratio   mean |x - G(E(x))| over mean |x - G(E(x'))|, x' another image: 1 where the code tells nothing
    kept_class             share of held-out samples whose reconstruction is, by its nearest real sample, of their class

Shapes: B batch, Z latent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cambrian.data.split import Batch
from cambrian.engine.recipe import action
from cambrian.engine.samples import Gallery, Images, Points, Sample
from cambrian.metrics.neighbours import nearest
from cambrian.nn.adversarial import (
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

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """`[B, Z] -> [B, *shape]` as people see it: images in [0, 1]."""
        return self.show(self.generate(z))


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

    def source_logits(self, x: Tensor) -> None:
        """None: the discriminator judges pairs, so `d_accuracy` is measured on those."""

    def pairs(self, x: Tensor, batch: Batch, generator: torch.Generator) -> JointPairs:
        """The pairs of one round."""
        z = self.prior_for(batch, len(x), generator)
        return JointPairs(x, self.infer(x, batch, generator), self.model.generate(z), z)

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        pairs = self.pairs(x, batch, self.rng)
        pairs = pairs.permuted(self.rng) if self.config.pair == "permuted" else pairs  # type: ignore[attr-defined]
        return self.players_of(pairs)

    def players_of(self, pairs: JointPairs) -> list[Player]:
        """D on pairs cut off from E and G, then E and G together on the very same pairs."""

        def d_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            on_encoder, on_decoder = map(self.source, pairs.detached().logits(self.model.discriminator))
            accuracy = discriminator_accuracy(on_encoder, on_decoder)
            return joint_discriminator_loss(on_encoder, on_decoder), {"d_accuracy": accuracy}

        def eg_loss(turn: int) -> Tensor:
            return joint_opponents_loss(*map(self.source, pairs.logits(self.model.discriminator)))

        return [Player("d", self.d_optim, d_loss), Player("eg", self.eg_optim, eg_loss)]

    # -- what is measured and shown ---------------------------------------------------------------------------------

    def held_out(self, split: str, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
        """The first held-out samples: their batch, `x`, and their reconstructions."""
        batch = next(self.batches(split, HELD))
        x = self.real(batch)
        return batch, x, self.model.generate(self.infer(x, batch, generator))

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The family's figures, `d_accuracy` on pairs, and the two figures of reconstructions above."""
        out = super().evaluate(split, generator)
        batch, x, rebuilt = self.held_out(split, generator)
        pairs = replace(self.pairs(x, batch, generator), x=x)
        logits = map(self.source, self.judged_pairs(pairs).logits(self.model.discriminator))
        return {"d_accuracy": float(discriminator_accuracy(*logits)), **out, **self.rebuilt(batch, x, rebuilt, generator)}

    def judged_pairs(self, pairs: JointPairs) -> JointPairs:
        """Held-out pairs as the discriminator was trained to see them."""
        return pairs

    def rebuilt(self, batch: Batch, x: Tensor, rebuilt: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Figures of reconstructions of held-out samples."""
        out = {"reconstruction_ratio": reconstruction_ratio(x, rebuilt, generator)}
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
        real = self.real(held).to(x)
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
        _, x, rebuilt = self.held_out("test", generator)
        if not self.model.images:
            return Points(rebuilt, x)
        return Images(self.model.show(torch.cat((x[:n], rebuilt[:n]))).cpu(), columns=min(n, len(x)))


def reconstruction_ratio(x: Tensor, rebuilt: Tensor, generator: torch.Generator) -> float:
    """Mean Euclidean distance of `x` `[B, ...]` to its own reconstruction, over that to another row's."""
    turn = torch.randperm(len(x), generator=generator).to(x.device)
    other = torch.empty_like(turn)
    other[turn] = turn.roll(1)  # one cycle through all rows: none is its own partner
    own = (x - rebuilt).flatten(1).norm(dim=1).mean()
    return float(own / (x - rebuilt[other]).flatten(1).norm(dim=1).mean().clamp_min(1e-12))
