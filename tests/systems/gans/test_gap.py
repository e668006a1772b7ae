"""Generative adversarial parallelization: a stack against its members one by one, exchanges, scores, shows, errors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.metrics.gam import fooled
from cambrian.nn.adversarial import FAKE, REAL, discriminator_loss, generator_loss
from cambrian.studies.many import Stacked, StackedAdam
from cambrian.systems.gans import _worlds
from cambrian.systems.gans.gap import GAP, distribute
from cambrian.systems.gans.gap._config import Config
from cambrian.systems.gans.gap._gran import GRAN
from cambrian.systems.gans.gap.model import ClippedAdam, draw_exchange, permute
from cambrian.systems.gans.gap.recipe import GAPRecipe

TINY = Config(steps=8, batch=16, members=("gan",) * 3, pool=1, swap_every=2, hidden=(12, 12), latent=6, samples=32)


def _recipe(world: str = "digits", seed: int = 0, **changes: object) -> GAPRecipe:
    config = dataclasses.replace(TINY, **changes)
    return GAPRecipe(config, data=GAPRecipe.load_data(config, Source("world", world)), seed=seed)


def _trained(world: str = "digits", **changes: object) -> GAPRecipe:
    loop = Loop(_recipe(world, **changes))
    for _ in range(loop.recipe.config.steps):
        loop.advance()
    return loop.recipe


def _fingerprints(stack: Stacked, optimiser: torch.optim.Optimizer) -> list[tuple[float, ...]]:
    """A member's parameters, statistics and Adam moments as exact sums, one tuple a member."""
    parts = [*stack.parameters(), *stack.buffers()]
    parts += [v for s in optimiser.state.values() for v in s.values() if isinstance(v, Tensor)]
    sums = [part.detach().double().flatten(1) @ torch.arange(1.0, part[0].numel() + 1).double() for part in parts]
    return list(zip(*[s.tolist() for s in sums], strict=True))


def _alone(recipe: GAPRecipe, index: int, x: Tensor, z: Tensor) -> tuple[nn.Module, nn.Module]:
    """One ordinary update of a member's pair, with torch's own Adam."""
    g, d = recipe.model.member(index)
    g_optim, d_optim = (torch.optim.Adam(n.parameters(), lr=1e-3, betas=(0.5, 0.999)) for n in (g, d))
    fake = g(z)
    discriminator_loss(*d(torch.cat((x, fake.detach())), (REAL, FAKE)).chunk(2)).backward()
    nn.utils.clip_grad_norm_(d.parameters(), recipe.config.clip)
    d_optim.step()
    loss = generator_loss(d(fake, (FAKE,)))
    g_optim.zero_grad()
    loss.backward(inputs=list(g.parameters()))
    nn.utils.clip_grad_norm_(g.parameters(), recipe.config.clip)
    g_optim.step()
    return g, d


def test_an_update_of_the_population_is_every_pairs_own() -> None:
    # without batch norm: biases before a norm have gradient 0 up to rounding, which Adam blows up to full steps
    recipe = _recipe(noise=0.0, clip=0.05, swap_every=0, norm="none")
    x, state = recipe.own_batches(), recipe.rng.get_state()
    z = recipe.latent(4 * 16).unflatten(0, (4, 16))
    recipe.rng.set_state(state)
    expected = [_alone(recipe, i, x[i], z[i]) for i in range(4)]
    recipe.step({"image": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)})
    for i, (g, d) in enumerate(expected):
        for ours, theirs in zip(recipe.model.member(i), (g, d), strict=True):
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_members_see_data_in_orders_of_their_own() -> None:
    recipe = _recipe()
    first = recipe.own_batches()
    assert first.shape == (4, 16, 1, 8, 8)
    assert all(not torch.equal(first[0], first[i]) for i in range(1, 4))
    assert torch.equal(first, recipe.own_batches())  # a function of the iteration
    recipe.iteration = 1
    assert not torch.equal(first, recipe.own_batches())


def test_an_exchange_is_a_permutation_of_disjoint_pairs() -> None:
    draw = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 6):
        orders = torch.stack([draw_exchange(count, draw) for _ in range(200)])
        assert torch.equal(orders.sort(1).values, torch.arange(count).expand(200, -1))
        assert torch.equal(orders.gather(1, orders), torch.arange(count).expand(200, -1))  # twice is nothing
        stays = (orders == torch.arange(count)).sum(1)
        assert bool((stays == count % 2).all())  # with an odd count one is left unpaired
    partners = {tuple(row.tolist()) for row in torch.stack([draw_exchange(4, draw) for _ in range(100)])}
    assert len(partners) == 3


def test_what_is_exchanged_is_all_of_a_discriminator_and_nothing_else() -> None:
    loop = Loop(_recipe(swap_every=0, batch=8, norm_d="split"))
    for _ in range(3):
        loop.advance()
    recipe = loop.recipe
    before, rest = _fingerprints(recipe.model.discriminators, recipe.d_optim), copy.deepcopy(recipe.state_dict())
    recipe.exchange(torch.tensor([2, 1, 0]))
    after = _fingerprints(recipe.model.discriminators, recipe.d_optim)
    assert len(set(before)) == 4 and after == [before[2], before[1], before[0], before[3]]
    assert any("running" in name for name, _ in recipe.model.discriminators.named_buffers())
    for name, value in recipe.model.generators.state_dict().items():
        assert torch.equal(value, rest["parts"]["model"][f"generators.{name}"])
    assert recipe.extra["pairs"].tolist() == [[0, 0, 1, 2], [4, 2, 1, 0]]


def test_exchanged_moments_go_on_as_if_the_pair_had_always_been_so() -> None:
    def nets() -> list[nn.Module]:
        return [nn.Linear(3, 2) for _ in range(2)]

    torch.manual_seed(0)
    made, x, y = nets(), torch.randn(6, 2, 5, 3), torch.randn(6, 2, 5, 2)
    exchanged, still = Stacked(made), Stacked(made)
    first, second = (StackedAdam(s.parameters(), lr=1e-2) for s in (exchanged, still))
    for i in range(6):
        swapped = i >= 3
        if i == 3:
            permute(exchanged, first, torch.tensor([1, 0]))
        for stack, optimiser, flip in ((exchanged, first, swapped), (still, second, False)):
            xs, ys = (v.flip(0) if flip else v for v in (x[i], y[i]))
            optimiser.zero_grad()
            (stack(xs) - ys).square().sum().backward()
            optimiser.step()
    for a, b in zip(exchanged.parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(a.flip(0), b)


def test_the_pool_is_independent_of_the_exchanges() -> None:
    moving, still = _trained(), _trained(swap_every=0)
    for ours, theirs in zip(moving.model.member(3), still.model.member(3), strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    mine, other = (torch.cat([p.flatten() for p in r.model.member(0)[0].parameters()]) for r in (moving, still))
    assert not torch.allclose(mine, other, atol=1e-5)
    pairs = moving.extra["pairs"]
    assert pairs[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(pairs[:, 1:].sort(1).values, torch.arange(3).expand(5, -1))


def test_each_members_gradient_is_clipped_by_itself() -> None:
    p = nn.Parameter(torch.zeros(2, 3))
    optimiser = ClippedAdam([p], limit=1.0, lr=0.1)
    other = nn.Parameter(torch.zeros(1, 2))
    optimiser.add_param_group({"params": [other]})  # a stack of one member beside a stack of two
    p.grad, other.grad = torch.tensor([[0.3, 0.0, 0.4], [30.0, 0.0, 40.0]]), torch.tensor([[3.0, 4.0]])
    optimiser.step()
    torch.testing.assert_close(other.grad, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(p.grad, torch.tensor([[0.3, 0.0, 0.4], [0.6, 0.0, 0.8]]))


def test_exact_resume_across_an_exchange() -> None:
    straight, stopped = Loop(_recipe()), Loop(_recipe())
    for _ in range(8):
        straight.advance()
    for _ in range(3):
        stopped.advance()
    resumed = Loop(_recipe())
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for _ in range(5):
        resumed.advance()
    ours, theirs = resumed.recipe, straight.recipe
    assert _fingerprints(ours.model.discriminators, ours.d_optim) == _fingerprints(
        theirs.model.discriminators, theirs.d_optim
    )
    assert all(torch.equal(ours.extra[name], theirs.extra[name]) for name in ("pairs", "costs", "frames"))
    assert torch.equal(ours.swaps.get_state(), theirs.swaps.get_state())


def test_errors_of_the_population_are_those_of_its_members_by_hand() -> None:
    recipe = _trained(pool=2)
    with inference(recipe, 0) as generator:
        errors = recipe.errors(generator, count=40)
    with inference(recipe, 0) as generator:
        z = recipe.latent(5 * 40, generator).unflatten(0, (5, 40))
        for i in range(5):
            samples = recipe.model.member(i)[0](z[i])
            for j in range(5):
                share = float(fooled(recipe.model.member(j)[1](samples)[:, 0]))
                assert float(errors[i, j]) == pytest.approx(share, abs=1 / 40 + 1e-6)
        found = recipe.foreign(errors)
    torch.testing.assert_close(found.mean, errors[:3, 3:].mean(1))
    recipe.model.pool, recipe.model.count = 0, 5  # without a pool they judge each other, nobody itself
    torch.testing.assert_close(recipe.foreign(errors).mean, (errors.sum(1) - errors.diagonal()) / 4)


def test_gran_adds_strokes_that_see_the_stroke_before() -> None:
    torch.manual_seed(0)
    net = GRAN(shape=(1, 8, 8), arch="dcgan", latent=4, hidden=(8,), base=4, strokes=3)
    z = torch.randn(5, 4)
    strokes = net.canvas(z)
    h = torch.tanh(net.enter(z))
    second = net.decoder(torch.cat((h, net.encoder(strokes[0])), dim=1))
    torch.testing.assert_close(strokes[1], second)
    torch.testing.assert_close(net(z), 2 * torch.sigmoid(sum(strokes)) - 1)
    points = GRAN(shape=(2,), arch="dcgan", latent=4, hidden=(8,), base=4, strokes=1)
    assert points.encoder is None and points(z).shape == (5, 2)


@pytest.mark.parametrize("world", ["ring8", "digits"])
def test_mixed_members_train_judge_and_show(world: str, tmp_path) -> None:
    members = ("gan:uniform", "gran", "gan", "gran:uniform")
    recipe = _trained(world, members=members, arch="dcgan", base=4, pool=0, steps=3, limit=40)
    figures = evaluate(recipe)
    assert {"gam2", "gam2_worst", "gam2_low", "gam2_high", "cost_gap", "d_accuracy"} <= set(figures)
    assert figures["gam2_low"] <= figures["gam2"] <= figures["gam2_high"]
    assert ("modes_touched_each" in figures) == (world == "ring8")
    for module in recipe.modules().values():
        module.eval()
    model, z = recipe.model, torch.randn(4, 5, 6)
    each = model.generate_all(z)
    for i in range(4):  # members of two kinds come back in their own order
        torch.testing.assert_close(each[i], model.generate(z[i], i), atol=1e-5, rtol=1e-4)
    assert model.sample(3, member="all").shape == (4, 3, *model.shape)
    assert torch.equal(model.sample(3), model.sample(3, member=int(model.best)))
    for shown in (recipe.gam2(), recipe.duel(0, 2), recipe.pairs(), recipe.costs()):
        assert shown.save(tmp_path, "shown")[0].stat().st_size > 20
    if world == "digits":
        assert recipe.every(n=3).tensor.shape == (12, 1, 8, 8)
    else:
        with pytest.raises(CapabilityError, match="needs images"):
            recipe.every()
    model.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(GAP.from_pretrained(tmp_path / "model").eval().sample(3, 1), model.sample(3, 1))


def test_a_uniform_prior_is_uniform() -> None:
    model = GAP(shape=(2,), members=("gan", "gan:uniform"), latent=3, hidden=(4,))
    seen: list[Tensor] = []
    model.generators["gan"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.generate_all(torch.randn(2, 4000, 3, generator=torch.Generator().manual_seed(0)))
    normal, uniform = seen[0]
    assert float(normal.std()) == pytest.approx(1.0, abs=0.05) and float(normal.abs().max()) > 2.5
    assert float(uniform.abs().max()) <= 1.0 and float(uniform.std()) == pytest.approx(3**-0.5, abs=0.02)


def test_processes_that_exchange_ids_end_where_the_stack_ends(tmp_path) -> None:
    config = dataclasses.replace(TINY, steps=6, pool=0, norm="none", members=("gan", "gan:uniform", "gran"))
    apart = distribute(config, world="ring8", steps=6, seed=3, folder=tmp_path, timeout=60.0)
    loop = Loop(_recipe("ring8", seed=3, steps=6, pool=0, norm="none", members=config.members))
    for _ in range(6):
        loop.advance()
    assert not torch.equal(loop.recipe.extra["pairs"][-1, 1:], torch.arange(3))
    for i in range(3):
        for ours, theirs in zip(apart.model.member(i), loop.recipe.model.member(i), strict=True):
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    with pytest.raises(ConfigError, match="set pool=0"):
        distribute(TINY, world="ring8", steps=1, seed=0, folder=tmp_path)


def test_training_on_a_few_samples_only() -> None:
    recipe = _recipe("ring8", limit=20)
    assert len(recipe.data.split("train")) == 20
    assert len(_worlds.load(Source("world", "ring8")).split("train")) > 20


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="member 'vae' must be one of gan, gran"):
        dataclasses.replace(TINY, members=("gan", "vae"))
    with pytest.raises(ConfigError, match="must name at least one"):
        dataclasses.replace(TINY, members=())
    with pytest.raises(ConfigError, match="limit must be 0 or at least the batch"):
        dataclasses.replace(TINY, limit=3)
    model = GAP(shape=(2,), members=("gan",) * 2, hidden=(4,), latent=3)
    with pytest.raises(ConfigError, match="there is no member 2"):
        model.member(2)
    with pytest.raises(ConfigError, match="best, all or a number"):
        model.sample(2, member="worst")
    with pytest.raises(ShapeError, match=r"\[2, batch, 3\]"):
        model.generate_all(torch.zeros(3, 4, 3))
    with pytest.raises(ShapeError, match="batch >= 1, 2"):
        model.judge_same(torch.zeros(4, 5))
    with pytest.raises(ConfigError, match="no foreign discriminator"):
        _recipe("ring8", members=("gan",), pool=0).gam2()
