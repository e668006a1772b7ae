"""The recipe that systems of this family derive from: it loads their worlds, plays their rounds, judges and shows.

A system gives `build` (its model as `self.model`, its optimisers, then `self.watch()`) and `players(x, batch)`, the
players of one round; what its paper adds beyond the game (actions, other figures) stands in the system. Training
methods that disturb what discriminators see find them through `critics()`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cambrian.data import images as pictures
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.recipe import Recipe, Scalars, action
from cambrian.engine.samples import Animation, Gallery, Images, Plot, Sample
from cambrian.errors import CapabilityError
from cambrian.inspect.target import Space, Target, wrap
from cambrian.nn.adversarial import FAKE, REAL, ConnectedNet, DCGANDiscriminator, Player, discriminator_accuracy, play
from cambrian.systems.gans import _worlds
from cambrian.systems.gans._judging import judged
from cambrian.systems.gans._nets import GenerativeModel
from cambrian.systems.gans._strips import FRAMES, POINTS_KEPT, strips

C = TypeVar("C")
SHEET = 16  # samples of the sheets that show training over time


class AdversarialRecipe(Recipe[C]):
    """A game between the players of `self.model`; the configuration has `steps`, `batch`, `samples`, maybe `size`."""

    model: GenerativeModel
    show_z: Tensor

    @classmethod
    def load_data(cls, config: C, source: Source) -> Data:
        return _worlds.load(source, size=getattr(config, "size", None))

    # -- what a system gives ----------------------------------------------------------------------------------------

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        """The players of one round on real samples `x` `[B, *shape]`, in their order of play."""
        raise NotImplementedError

    def critics(self) -> list[nn.Module]:
        """The nets that judge samples, whose first argument a training method may disturb."""
        return [net for net in [getattr(self.model, "discriminator", None)] if isinstance(net, nn.Module)]

    def source_logits(self, x: Tensor, source: int = REAL) -> Tensor | None:
        """Real-or-fake logits `[B]` of samples, normalised as those of `source` in training; None where there are none."""
        critics = self.critics()
        return critics[0](x, (source,)).flatten() if critics else None

    # -- what a system uses -----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Keep sheets of the same latents while training goes on; called at the end of `build`."""
        count = SHEET if self.model.images else POINTS_KEPT
        self.show_z = self.model.prior(count, torch.Generator().manual_seed(0)).cpu()
        self.extra = {**self.extra, "frames": torch.zeros(0, count, *self.model.shape)}

    def adam(self, *nets: nn.Module, lr: float, beta1: float = 0.5) -> Any:
        """Adam as the family uses it, over the parameters of all `nets`."""
        parameters = [parameter for net in nets for parameter in net.parameters()]
        return self.optimiser(torch.optim.Adam, parameters, lr=lr, betas=(beta1, 0.999))

    def real(self, batch: Batch) -> Tensor:
        """The batch's samples in the nets' range: images in [-1, 1], points as they are."""
        return batch["point"] if self.data.kind == "points" else pictures.signed(batch["image"])

    def latent(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[count, Z]` on the device, from the recipe's own generator unless another is given."""
        return self.model.prior(count, generator or self.rng).to(self.device)

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` samples on the CPU as people see them: images in [0, 1]."""
        return self.decoded(self.latent(n, generator))

    @torch.no_grad()
    def decoded(self, z: Tensor) -> Tensor:
        """Samples of latents `[N, Z]`, as `drawn` gives them."""
        return torch.cat([self.model.show(self.model.generate(part)) for part in z.split(250)]).cpu()

    # -- the engine's side ------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Scalars:
        """One round of the game."""
        scalars = play(self.players(self.real(batch), batch), minimise=self.minimise, iteration=self.iteration)
        self.keep_frame()
        return scalars

    @torch.no_grad()
    def keep_frame(self) -> None:
        """A sheet of the watched latents, `FRAMES` times a run."""
        done, total = self.iteration + 1, self.config.steps  # type: ignore[attr-defined]
        if FRAMES * done // total > FRAMES * (done - 1) // total:
            self.model.eval()
            frame = self.decoded(self.show_z.to(self.device))
            self.model.train()
            self.extra["frames"] = torch.cat((self.extra["frames"], frame[None]))

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Figures of `_judging` on `config.samples` samples, and `d_accuracy` (0.5: the discriminator cannot tell)."""
        made = self.drawn(self.config.samples, generator)  # type: ignore[attr-defined]
        held = self.real(next(self.batches(split, min(500, len(made)))))
        fake = self.model.generate(self.latent(len(held), generator))
        on_real, on_fake = self.source_logits(held), self.source_logits(fake, FAKE)
        out = judged(self.data, made)
        if on_real is None or on_fake is None:
            return out
        return {"d_accuracy": float(discriminator_accuracy(on_real, on_fake)), **out}

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """Images: a sheet, and the same latents over time. Points: the cloud over time, and now."""
        made = self.drawn(n, generator)
        if not self.model.images:
            centres = torch.tensor(self.data.info["centres"])
            return Plot(strips({self.slug: (self.extra["frames"], made)}, centres, self.config.steps))  # type: ignore[attr-defined]
        frames = [Images(frame, columns=4) for frame in self.extra["frames"]]
        return Gallery({"samples": Images(made)} | ({"over time": Animation(frames)} if frames else {}))

    def target(self) -> Target:
        """The discriminator, whose features explainers can probe; `CapabilityError` where it judges more than images."""
        self.need_images()
        for net in self.critics():
            if isinstance(net, (ConnectedNet, DCGANDiscriminator)):
                space = Space.image(self.model.shape, -1.0, 1.0)
                return wrap(net, space=space, classes=self.data.info["classes"], data=self.data)
        raise CapabilityError(f"{self.slug} has no discriminator of images alone that could be probed")

    @action
    def interpolate(self, n: int = 9, rows: int = 4, seed: int = 0) -> Images:
        """Walks of `n` steps between random latents, one a row."""
        self.need_images()
        ends = self.latent(2 * rows, torch.Generator().manual_seed(seed)).unflatten(0, (2, rows))
        way = torch.linspace(0, 1, n, device=self.device)[None, :, None]
        return Images(self.decoded(torch.lerp(ends[0][:, None], ends[1][:, None], way).flatten(0, 1)), columns=n)

    @action
    def neighbours(self, n: int = 8, seed: int = 0) -> Images:
        """Samples above their nearest training images: copies would show."""
        self.need_images()
        made = self.decoded(self.latent(n, torch.Generator().manual_seed(seed)))
        train = self.data.split("train")
        real = pictures.unit(train[torch.arange(min(len(train), 10_000))]["image"])
        nearest = torch.cdist(made.flatten(1), real.flatten(1)).argmin(1)
        return Images(torch.cat((made, real[nearest])), columns=n)

    def need_images(self) -> None:
        """Raise `CapabilityError` where the run has no images."""
        if not self.model.images:
            raise CapabilityError(f"this action needs images, the run has {self.data.kind}")
