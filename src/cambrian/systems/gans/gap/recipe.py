"""The recipe: one update of every pair at once, and now and then an exchange."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data, TensorSplit
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.order import SampleOrder
from cambrian.engine.recipe import Scalars, recipe
from cambrian.metrics.gam import fooled
from cambrian.nn.adversarial import FAKE, REAL, Player, discriminator_accuracy, discriminator_loss, generator_loss
from cambrian.systems.gans._judging import judged
from cambrian.systems.gans.gap._config import Config
from cambrian.systems.gans.gap._show import Showing
from cambrian.systems.gans.gap.model import GAP, ClippedAdam, draw_exchange, permute

LOOKS = 40  # at the discriminators' costs and at GAM-II, during a run
LOOKED_AT = 256  # samples of each

CLAIM = Claim(
    name="foreign-discriminators",
    statement="Four GANs that exchange discriminators fool those of four further, independent GANs at least 5 points more "
    "often (mean GAM-II of the generators) than four that do not, after equally many updates.",
    metric="gam2",
    direction="higher",
    margin=0.05,
    paper="tables 2 and 3, averages of GAM-II: MNIST DCGAN .352 to .395, GAP .430 to .476; CIFAR-10 .333 to .368, .526 to .565",
    arms={"exchanging": Arm(), "independent": Arm({"swap_every": 0})},
    system="exchanging",
    baselines=("independent",),
    sabotage=Arm({"swap_every": 0}),
)


@recipe("gap", data="digits")
class GAPRecipe(Showing):
    """Trains `config.members` and the pool; only the former exchange."""

    presets = {
        "smoke": Config(steps=250, batch=64, hidden=(64,), latent=16, pool=1, swap_every=50, samples=300),
        "laptop": Config(steps=1500, swap_every=5),
        "paper": Config(
            steps=100_000,
            members=("gan", "gan:uniform") * 2,
            arch="dcgan",
            latent=100,
            base=64,
            lr=2e-4,
            swap_every=1000,
        ),
    }
    claims = (CLAIM,)
    headline = ("classifier_score_each", "higher")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        data = super().load_data(config, source)
        if not config.limit:
            return data
        train = data.split("train")
        return dataclasses.replace(data, train=TensorSplit(**train[torch.arange(min(config.limit, len(train)))]))

    def build(self, config: Config, data: Data) -> None:
        self.model = GAP(
            shape=data.info["shape"],
            members=config.members,
            pool=config.pool,
            arch=config.arch,
            latent=config.latent,
            hidden=config.hidden,
            base=config.base,
            norm=config.norm,
            norm_d=config.norm_d,
            strokes=config.strokes,
        )
        settings = {"betas": (config.beta1, 0.999), "limit": config.clip}
        stacks = [{"params": list(stack.parameters())} for stack in self.model.generators.values()]
        self.g_optim = self.optimiser(ClippedAdam, stacks, lr=config.lr, **settings)
        discriminators = self.model.discriminators.parameters()
        self.d_optim = self.optimiser(ClippedAdam, discriminators, lr=config.lr_d or config.lr, **settings)
        self.swaps = torch.Generator().manual_seed(self.seed * 7919 + 2)  # arms that differ in K draw the same latents
        seeds = [self.seed + 100_003 * i for i in range(self.model.members)]
        self.orders = [SampleOrder(len(data.split("train")), config.batch, seed) for seed in seeds]
        start = torch.cat((torch.zeros(1, dtype=torch.int64), torch.arange(self.model.count)))
        self.extra = {"pairs": start[None], "costs": torch.zeros(0, 5 if config.pool else 3)}  # step, then the rest
        self.watch()

    def critics(self) -> list[nn.Module]:
        return [self.model.discriminators]

    def source_logits(self, x: Tensor, source: int = REAL) -> Tensor:
        return self.model.judge_same(x)[int(self.model.best)]

    # -- one round --------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Scalars:
        """An update of every pair, then the exchange that is due and the look that is due."""
        scalars = super().step(batch)
        done, config = self.iteration + 1, self.config
        if config.swap_every and done % config.swap_every == 0:
            self.exchange(draw_exchange(self.model.count, self.swaps))
        if LOOKS * done // config.steps > LOOKS * (done - 1) // config.steps:
            self.look(done)
        return scalars

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        model, members = self.model, self.model.members
        x = self.own_batches()
        z = self.latent(members * x.shape[1]).unflatten(0, (members, x.shape[1]))
        fake = model.generate_all(z)
        sigma = self.sigma()

        def blurred(samples: Tensor) -> Tensor:
            if not sigma:
                return samples
            return samples + sigma * torch.randn(samples.shape, generator=self.rng).to(samples)

        def d_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            both = blurred(torch.cat((x, fake.detach()), dim=1))
            on_real, on_fake = model.judge_all(both, (REAL, FAKE)).chunk(2, dim=1)
            loss = discriminator_loss(on_real, on_fake)
            accuracy = discriminator_accuracy(on_real, on_fake)
            return loss * members, {"d_loss": loss.detach(), "d_accuracy": accuracy}  # the sum: each one's own gradient

        def g_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss = generator_loss(model.judge_all(blurred(fake), (FAKE,)))
            return loss * members, {"g_loss": loss.detach()}

        return [Player("d", self.d_optim, d_loss), Player("g", self.g_optim, g_loss)]

    def sigma(self) -> float:
        """The present noise on the discriminators' input."""
        return self.config.noise * (1.0 - self.iteration / self.config.steps)

    def own_batches(self) -> Tensor:
        """Every member's real samples `[M, B, *shape]` of this round, from an order of its own."""
        train = self.data.split("train")
        index = torch.stack([order.take(self.iteration)[0] for order in self.orders])
        index = index[:, self.world.share(index.shape[1])]
        batch = {name: tensor.to(self.device) for name, tensor in train[index.flatten()].items()}
        return self.real(batch).unflatten(0, index.shape)

    def exchange(self, order: Tensor) -> None:
        """Give generator i the discriminator of `order[i]` `[N]`; the pool keeps its own."""
        rest = torch.arange(self.model.count, self.model.members)
        permute(self.model.discriminators, self.d_optim, torch.cat((order, rest)).to(self.device))
        last = self.extra["pairs"][-1, 1:]
        row = torch.cat((torch.tensor([self.iteration + 1]), last[order]))
        self.extra["pairs"] = torch.cat((self.extra["pairs"], row[None]))

    @torch.no_grad()
    def look(self, done: int) -> None:
        """Note the discriminators' costs on training and held-out data, and which member is the best now."""
        self.model.eval()
        draw, row = torch.Generator().manual_seed(done), [float(done)]
        costs = [self.d_costs(self.real(next(self.batches(s, LOOKED_AT))), draw) for s in ("train", "valid")]
        count = self.model.count
        row += [float(cost[:count].mean()) for cost in costs]
        row += [float(cost[count:].mean()) for cost in costs] if self.model.pool else []
        self.extra["costs"] = torch.cat((self.extra["costs"], torch.tensor([row])))
        found = self.foreign(self.errors(draw, LOOKED_AT))
        self.model.best.fill_(found.best if found else 0)
        self.model.train()

    # -- judging ----------------------------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The family's figures of the best member; over all members, GAM-II (`gam2` and the mean of the worst errors),
        its spread, the pool's error on data, and the gap of D's cost between held-out and training data.

        `..._each` are the family's figures of one member by itself, mean over members: of points the modes that it
        touches, of labelled images its classifier score and Frechet distance.
        """
        out, count = super().evaluate(split, generator), self.model.count
        found = self.foreign(self.errors(generator))
        held, seen = (self.real(next(self.batches(s, LOOKED_AT))) for s in (split, "train"))
        if found is not None:
            out |= {"gam2": float(found.mean.mean()), "gam2_worst": float(found.worst.mean())}
            out |= {"gam2_low": float(found.mean.min()), "gam2_high": float(found.mean.max())}
        if self.model.pool:
            out["pool_error_on_data"] = float(1.0 - fooled(self.model.judge_same(held)[count:]).mean())
        gap = self.d_costs(held, generator)[:count] - self.d_costs(seen, generator)[:count]
        out["cost_gap"] = float(gap.mean())
        z = self.latent(self.config.samples, generator)
        each = [judged(self.data, self.model.show(self.model.generate(z, i)).cpu()) for i in range(count)]
        told = [name for name in ("modes_touched", "classifier_score", "frechet") if name in each[0]]
        return out | {f"{name}_each": sum(figures[name] for figures in each) / count for name in told}
