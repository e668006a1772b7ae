import dataclasses

import pytest
import torch
from torch.nn import functional as F

from cambrian.data.source import Source
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.systems.likelihood.srnn import RNN, SRNN, STORN, VRNN
from cambrian.systems.likelihood.srnn._parts import backwards, gru
from cambrian.systems.likelihood.srnn.model import Transition
from cambrian.systems.likelihood.srnn.recipe import Config, SRNNRecipe
from cambrian.worlds import ssm

SMALL = dict(x_dim=3, d=8, embed=6, width=7)


def made(kind, **more):
    torch.manual_seed(0)
    latent = {} if kind is RNN else {"z": 4}
    reader = {"a": 5} if kind in (SRNN, STORN) else {}
    model = kind(**SMALL, **latent, **reader, **more)
    with torch.no_grad():  # the output layers start near zero: enlarge them, so that z matters
        for name, parameter in model.named_parameters():
            if name.startswith(("transition.weight", "output.4", "prior_net.2", "posterior_net.2", "code.2")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def series():
    return torch.randn(6, 9, 3, generator=seeded(1))


def test_linear_model_reaches_the_kalman_likelihood_when_it_smooths_and_not_when_it_filters():
    world = dataclasses.replace(ssm.turning(), first=ssm.turning().process)  # z_0 = 0, as the model has it
    x = world.draw(torch.arange(1024) * 7919, 12)[1]
    test = world.draw(torch.arange(200) * 7919 + 3, 12)[1]
    exact = world.kalman(test).log_likelihood / 12
    gap = {}
    for inference in ("smooth", "filter"):
        torch.manual_seed(0)
        model = SRNN(x_dim=3, z=2, d=0, a=6, embed=8, width=16, inference=inference, linear=True)
        with torch.no_grad():
            model.transition.weight.mul_(100)
        optim = torch.optim.Adam(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 500)
        for i in range(500):
            loss = -model.elbo(x[(torch.arange(128) + 128 * i) % 1024]).value.mean() / 12
            optim.zero_grad()
            loss.backward()
            optim.step()
            schedule.step()
        with torch.no_grad():
            bound = torch.stack([model.elbo(test, generator=seeded(s)).value / 12 for s in range(20)]).mean(0)
        gap[inference] = float((exact - bound).mean())
    assert 0 < gap["smooth"] < 0.06, gap
    assert gap["filter"] > gap["smooth"] + 0.08, gap


@pytest.mark.parametrize("kind", [SRNN, VRNN, STORN])
def test_divergence_is_that_of_torch_and_density_its_own(kind, series):
    found = made(kind).elbo(series, generator=seeded())
    q = torch.distributions.Normal(found.posterior.mean, found.posterior.std)
    p = torch.distributions.Normal(found.prior.mean, found.prior.std)
    assert torch.allclose(found.kl, torch.distributions.kl_divergence(q, p).sum(-1), atol=1e-5)
    assert torch.allclose(found.value, (found.log_px - found.kl).sum(1)) and (found.kl > 0).all()


@pytest.mark.parametrize(
    "kind, more", [(SRNN, {}), (SRNN, {"inference": "filter"}), (VRNN, {}), (STORN, {}), (RNN, {})]
)
def test_padding_changes_nothing(kind, more, series):
    model, lengths = made(kind, **more), torch.tensor([9, 4, 7, 1, 9, 5])
    garbage = torch.where(torch.arange(9)[None, :, None] < lengths[:, None, None], series, torch.full((), 7.0))
    a, b = (model.elbo(x, lengths, generator=seeded()) for x in (series, garbage))
    assert torch.allclose(a.value, b.value, atol=1e-5)
    assert not a.log_px[1, 4:].any() and not a.kl[3, 1:].any()
    alone = model.elbo(series[:1], generator=seeded(3)).value  # full length, so as without lengths
    assert torch.allclose(alone, model.elbo(series[:1], lengths[:1], generator=seeded(3)).value, atol=1e-5)


def test_backwards_reads_each_sequence_from_its_own_end(series):
    layer, lengths = gru(3, 4), torch.tensor([9, 4, 7, 1, 9, 5])
    together = backwards(layer, series, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = layer(series[i : i + 1, :length].flip(1))[0].flip(1)
        assert torch.allclose(together[i : i + 1, :length], alone, atol=1e-6)


def reach(function, x):
    """bool [T, T]: does the output at t depend on x at s?"""
    x = x[:1].clone().requires_grad_()
    out = function(x)
    rows = [
        torch.autograd.grad(out[0, t].square().sum(), x, retain_graph=True)[0][0].abs().sum(1) > 0
        for t in range(out.shape[1])
    ]
    return torch.stack(rows)


def test_who_sees_what(series):
    before = torch.ones(9, 9).tril(-1).bool()
    now = torch.ones(9, 9).tril().bool()
    for inference, expected in (("smooth", torch.ones(9, 9).bool()), ("filter", now)):
        model = made(SRNN, inference=inference)

        def paths(x, model=model):
            u, here = model.embedded(x, x.new_zeros(1, 3))
            d = model._run(u, x.new_zeros(1, 8))
            return d, model._read(torch.cat((d, here), 2), None)

        assert torch.equal(reach(lambda x: paths(x)[0], series), before), "the generative path sees x_{t-1} and earlier"
        assert torch.equal(reach(lambda x: paths(x)[1], series), expected)


@pytest.mark.parametrize("kind, more", [(SRNN, {"inference": "filter"}), (VRNN, {}), (STORN, {}), (RNN, {})])
def test_two_chunks_with_carried_state_are_one(kind, more, series):
    model = made(kind, **more)
    whole = model.elbo(series, generator=seeded())
    generator = seeded()
    first = model.elbo(series[:, :4], generator=generator)
    second = model.elbo(series[:, 4:], state=first.state, generator=generator)
    if kind is STORN:  # its noise is drawn sequence by sequence, so only the means without noise agree
        assert torch.allclose(
            torch.cat((first.posterior.mean, second.posterior.mean), 1), whole.posterior.mean, atol=1e-5
        )
        return
    assert torch.allclose(torch.cat((first.log_px, second.log_px), 1), whole.log_px, atol=1e-4)
    assert torch.allclose(torch.cat((first.kl, second.kl), 1), whole.kl, atol=1e-4)


def test_fused_transition_is_two_nets_and_the_posterior_a_correction():
    torch.manual_seed(0)
    net = Transition(z_dim=4, context=8, inference=5, width=7, residual=True, linear=False)
    with torch.no_grad():
        net.weight.normal_()
        net.bias.normal_()
    d, a, z = torch.randn(6, 8), torch.randn(6, 5), torch.randn(6, 4)

    def hidden(layer, side, rows):
        return F.leaky_relu(layer(side) + z @ net.from_z.weight[rows].T, 1 / 3).clamp(-3, 3)

    p = hidden(net.from_context, d, slice(0, 7)) @ net.weight[0] + net.bias[0]
    q = hidden(net.from_inference, a, slice(7, 14)) @ net.weight[1] + net.bias[1]
    found = net.both(net.project(d, a), z)
    for ours, plain in zip(found, (p[:, :4], p[:, 4:], q[:, :4] + p[:, :4], q[:, 4:])):
        assert torch.allclose(ours, plain, atol=1e-5)
    assert torch.allclose(net.prior(net.project(d, None), z).mean, p[:, :4], atol=1e-5)


@pytest.mark.parametrize("kind", [SRNN, VRNN, STORN])
def test_more_paths_tighten_the_bound(kind, series):
    model = made(kind)
    one = torch.stack([model.iwae(series, 1, seeded(s)) for s in range(60)]).mean(0)
    many = torch.stack([model.iwae(series, 20, seeded(s)) for s in range(10)]).mean(0)
    bound = torch.stack([model.elbo(series, generator=seeded(s)).value for s in range(60)]).mean(0)
    assert (many > one).all() and torch.allclose(one.mean(), bound.mean(), rtol=0.05)


def test_plain_rnn_is_exact_and_free_running_follows_it(series):
    model = made(RNN)
    assert torch.equal(model.iwae(series, 7, seeded()), model.elbo(series).value)
    run = model.sample(2, 5, seeded(), temperature=0.0)
    d, _ = model.deterministic(model.embedded(run, run.new_zeros(2, 3))[0])
    assert torch.allclose(model.head.mean(model.output(d)), run, atol=1e-5)
    with pytest.raises(ShapeError, match="no latent"):
        model.posterior(series)


@pytest.mark.parametrize("kind", [SRNN, VRNN, STORN, RNN])
@pytest.mark.parametrize("likelihood", ["gauss", "gmm", "bernoulli"])
def test_every_output_trains_and_samples(kind, likelihood, series):
    model = made(kind, likelihood=likelihood, mixtures=3)
    x = (series > 0).float() if likelihood == "bernoulli" else series
    model.elbo(x, generator=seeded()).value.sum().backward()
    reader = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not reader
    new = model.sample(6, 4, seeded(), prefix=x)
    assert new.shape == (6, 4, 3) and torch.isfinite(new).all()
    assert torch.equal(new, model.sample(6, 4, seeded(), prefix=x))
    if likelihood == "bernoulli":
        assert set(new.unique().tolist()) <= {0.0, 1.0}


def test_without_the_latent_the_output_ignores_it(series):
    model = made(SRNN, use_latent=False)
    a, b = (model.elbo(series, generator=seeded(s)) for s in (1, 2))
    assert torch.equal(a.log_px, b.log_px) and not torch.equal(a.z, b.z)


def test_bad_input(series):
    model = made(SRNN)
    for bad in (series[0], series[:, :, :2], series.long(), series[:, :0]):
        with pytest.raises(ShapeError, match=r"\[B, T, 3\]"):
            model.elbo(bad)
    with pytest.raises(ShapeError, match="NaN"):
        model.elbo(series / 0 * 0)
    with pytest.raises(ShapeError, match="lengths"):
        model.elbo(series, torch.full((6,), 10))
    with pytest.raises(ConfigError):
        SRNN(**SMALL, inference="both")
    with pytest.raises(ConfigError):
        SRNN(**SMALL, likelihood="poisson")


TINY = dict(steps=2, batch=4, hidden=8, inference_hidden=8, embed=8, width=8, latent=3, clips=16)


def trained(world="phones", **more):
    config = Config(**{**TINY, **more})
    data = SRNNRecipe.load_data(config, Source("world", world))
    recipe = SRNNRecipe(config, data=data)
    for _ in range(2):
        recipe.step(data.train[torch.arange(4)])
    return recipe


@pytest.mark.parametrize("model", ["srnn", "vrnn", "storn", "rnn"])
def test_recipe_on_every_model(model, tmp_path):
    recipe = trained(model=model, seconds=1.0)
    recipe.model.eval()
    with torch.no_grad():
        figures = recipe.evaluate("test", seeded())
    assert figures["bound"] == pytest.approx(figures["log_px"] - figures["kl"])
    assert ("kl_at_changes" in figures) == (model != "rnn")
    assert any(p.suffix == ".wav" for p in recipe.sample(2, seeded()).save(tmp_path, "s"))
    assert recipe.prolong(n=2, steps=5).save(tmp_path, "p")
    if model == "rnn":
        with pytest.raises(CapabilityError):
            recipe.posterior()
    else:
        assert recipe.posterior().save(tmp_path, "q")[0].stat().st_size > 1000
        rows = recipe.importance(k=5, n=4).rows
        assert rows[1][1] >= rows[0][1] - 5


def test_series_rolls_and_sound_files(tmp_path):
    from cambrian.audio.files import write

    assert trained("ssm").evaluate("test", seeded())["kl"] > 0
    for name in "abc":
        write(tmp_path / f"{name}.wav", 0.1 * torch.randn(5000), 4000)
    config = Config(**TINY)
    data = SRNNRecipe.load_data(config, Source("path", str(tmp_path)))
    recipe = SRNNRecipe(config, data=data)
    recipe.step(data.train[torch.arange(len(data.train))])
    assert recipe.evaluate("test", seeded())["bound"] < 0
    rolls = trained("chorales")
    assert rolls.evaluate("test", seeded())["bound"] < 0
    assert rolls.sample(1, seeded()).save(tmp_path, "roll")


def test_bad_options(tmp_path):
    with pytest.raises(ConfigError, match="phones, chorales, ssm"):
        SRNNRecipe.load_data(Config(), Source("world", "digits"))
    with pytest.raises(ConfigError, match="no frame"):
        SRNNRecipe.load_data(Config(frame=4000), Source("world", "phones"))
    with pytest.raises(ConfigError, match="does not fit"):
        trained(likelihood="bernoulli")
    with pytest.raises(DataError):
        SRNNRecipe.load_data(Config(), Source("path", str(tmp_path)))
    with pytest.raises(ConfigError, match="index"):
        trained().posterior(index=-1)
