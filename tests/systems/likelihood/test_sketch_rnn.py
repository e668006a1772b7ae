from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data.random import sample_keys
from cambrian.data.split import Batch, Data
from cambrian.data.stroke_formats import polylines_to_svg, stroke3_to_polylines, svg_to_polylines
from cambrian.engine.samples import Drawings
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.systems.likelihood.sketch_rnn.model import SketchRNN, augment, losses
from cambrian.systems.likelihood.sketch_rnn.recipe import Config, SketchRNNRecipe
from cambrian.worlds import sketches

SMALL = dict(latent=4, mixtures=3, encoder=6, decoder=8, max_length=60)


@pytest.fixture(scope="module")
def data() -> Data:
    return sketches.load(train=64, valid=24, test=80)


def recipe(data: Data, **options: object) -> SketchRNNRecipe:
    base = dict(steps=20, batch=8, latent=4, mixtures=3, encoder=8, decoder=12)
    return SketchRNNRecipe(Config(**{**base, **options}), data=data, seed=100)


def batch_of(data: Data, n: int = 8) -> Batch:
    index = torch.arange(n)
    return {**data.train[index], "key": sample_keys(0, 0, index)}


def padded(recipe: SketchRNNRecipe, batch: Batch) -> tuple[Tensor, Tensor]:
    return recipe._stroke5(batch["strokes"].float(), batch["length"]), batch["length"]


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_equal_the_papers_sums_written_out() -> None:
    torch.manual_seed(0)
    model = SketchRNN(**SMALL).double().eval()
    lengths, n = torch.tensor([3, 5]), 7
    pens = torch.tensor([[0, 0, 1, 2, 2, 2, 2], [0, 1, 0, 0, 1, 2, 2]])
    strokes = torch.cat((torch.randn(2, n, 2).double(), F.one_hot(pens, 3).double()), 2)
    with torch.no_grad():
        posterior = model.encode(strokes, lengths)
        params, pen = model(strokes, posterior.mean)
    for counted in (False, True):
        found = losses(model.mixture, params, pen, strokes, lengths, posterior, count_padding=counted)
        for b in range(2):
            offsets = [float(model.mixture.log_prob(params[b, i], strokes[b, i, :2])) for i in range(int(lengths[b]))]
            last = n if counted else int(lengths[b]) + 1  # in evaluation the end is counted once
            states = [float(pen[b, i].log_softmax(0)[pens[b, i]]) for i in range(last)]
            mu, s = posterior.mean[b], posterior.logvar[b]
            kl = float(-(1 + s - mu**2 - s.exp()).sum() / (2 * 4))
            assert float(found.offsets[b]) == pytest.approx(-sum(offsets) / n)
            assert float(found.pen[b]) == pytest.approx(-sum(states) / n)
            assert float(found.kl[b]) == pytest.approx(kl)
            assert float(found.bound[b]) == pytest.approx(-sum(offsets) - sum(states) + 4 * kl)


@pytest.mark.parametrize("cell", ["lstm", "layernorm", "hyper"])
def test_what_padding_holds_changes_neither_loss_nor_gradient_in_evaluation(data: Data, cell: str) -> None:
    run = recipe(data, cell=cell)
    run.model.eval()
    x, lengths = padded(run, batch_of(data, 5))
    beyond = torch.arange(run.n_max)[None, :] >= lengths[:, None]
    garbage = torch.where(beyond[..., None], torch.full_like(x, 7.0), x)
    results = []
    for strokes in (x, garbage):
        posterior = run.model.encode(strokes, lengths)
        params, pen = run.model(strokes, posterior.mean)
        found = losses(run.model.mixture, params, pen, strokes, lengths, posterior, count_padding=False)
        grads = torch.autograd.grad(found.bound.sum(), list(run.model.parameters()))
        results.append((found.bound, found.kl, *grads))
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(clean, dirty, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("conditional", [True, False])
def test_each_point_depends_only_on_those_before_it(conditional: bool) -> None:
    torch.manual_seed(0)
    model = SketchRNN(conditional=conditional, **SMALL).eval()
    strokes = torch.randn(1, 6, 5).requires_grad_()
    z = torch.randn(1, 4) if conditional else None
    params, pen = model(strokes, z)
    for i in range(6):
        (g,) = torch.autograd.grad(params[0, i].sum() + pen[0, i].sum(), strokes, retain_graph=True)
        assert not g[0, i:].any()
        assert i == 0 or g[0, :i].abs().sum(1).gt(0).all()


def test_the_bound_bounds_an_importance_estimate(data: Data) -> None:
    """-ELBO >= -log (1/K sum w_k) on average, since the latter is a tighter bound (Burda et al. 2016)."""
    run = recipe(data)
    run.model.eval()
    with torch.no_grad():
        run.model.posterior.weight.mul_(500)  # a posterior that differs from the prior
        x, lengths = padded(run, batch_of(data, 4))
        generator = torch.Generator().manual_seed(0)
        k = 30
        bounds = torch.stack([run.model.elbo(x, lengths, generator).bound for _ in range(k)])
        posterior = run.model.encode(x, lengths)
        weights = []
        for _ in range(k):
            z = posterior.sample(generator)
            found = losses(run.model.mixture, *run.model(x, z), x, lengths, None, count_padding=False)
            prior = type(posterior).standard(z)
            weights.append(prior.log_prob(z) - posterior.log_prob(z) - found.n_max * found.reconstruction)
        tight = -(torch.logsumexp(torch.stack(weights), 0) - torch.tensor(float(k)).log())
    assert (bounds.mean(0) > tight - 1e-3).all()


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_dropped_points_leave_the_rest_in_place(data: Data) -> None:
    batch = batch_of(data, 32)
    strokes, lengths = batch["strokes"].float(), batch["length"]
    draws = torch.rand(32, strokes.shape[1] + 2, generator=torch.Generator().manual_seed(0))
    out, shorter = augment(strokes, lengths, draws, stretch=0.0, drop=0.3)
    assert int((lengths - shorter).sum()) > 50
    for before, n, after, m in zip(strokes, lengths.tolist(), out, shorter.tolist(), strict=True):
        assert not after[m:].any()
        old, new = (stroke3_to_polylines(s.numpy()) for s in (before[:n], after[:m]))
        assert len(old) == len(new)
        for was, now in zip(old, new, strict=True):
            kept = {tuple(p) for p in was.tolist()}
            assert {tuple(p) for p in now.tolist()} <= kept
            assert now[0].tolist() == was[0].tolist()
            assert now[-1].tolist() == was[-1].tolist()


def test_stretching_scales_both_axes_by_the_draws(data: Data) -> None:
    batch = batch_of(data, 4)
    strokes, lengths = batch["strokes"].float(), batch["length"]
    draws = torch.rand(4, strokes.shape[1] + 2, generator=torch.Generator().manual_seed(0))
    out, same = augment(strokes, lengths, draws, stretch=0.2, drop=0.0)
    assert torch.equal(same, lengths)
    torch.testing.assert_close(out[..., :2], strokes[..., :2] * (0.8 + 0.4 * draws[:, None, :2]))
    nothing, _ = augment(strokes, lengths, draws, stretch=0.0, drop=0.0)
    assert torch.equal(nothing, strokes)


# -- drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "layernorm", "hyper"])
def test_generation_agrees_with_teacher_forcing(cell: str) -> None:
    """At temperature 0 each generated point is the mode of what `forward` predicts from the points before it."""
    torch.manual_seed(0)
    model = SketchRNN(cell=cell, **SMALL).eval()
    z = torch.randn(3, 4)
    made = model.generate(z, temperature=0.0, generator=torch.Generator())
    params, pen = model(made, z)
    log_pi, mu, _, _ = model.mixture.split(params)
    mode = torch.gather(mu, 2, log_pi.argmax(-1)[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    alive = made[..., 4] == 0
    torch.testing.assert_close(made[..., :2][alive], mode[alive], rtol=1e-4, atol=1e-5)
    assert torch.equal(made[..., 2:].argmax(-1)[alive], pen.argmax(-1)[alive])


def test_a_prefix_is_kept_and_changes_what_follows() -> None:
    torch.manual_seed(0)
    model = SketchRNN(conditional=False, **SMALL).eval()
    prefix = torch.cat((torch.randn(2, 4, 2), torch.tensor([1.0, 0.0, 0.0]).expand(2, 4, 3)), 2)
    made = model.generate(None, batch=2, temperature=0.0, generator=torch.Generator(), prefix=prefix)
    assert torch.equal(made[:, :4], prefix)
    assert not torch.equal(made[0, 4], made[1, 4])
    assert made.shape[1] <= 60


def test_nothing_follows_the_end() -> None:
    torch.manual_seed(0)
    model = SketchRNN(**SMALL).eval()
    model.head.bias.data[-1] = 2.0
    made = model.generate(torch.randn(20, 4), temperature=1.0, generator=torch.Generator().manual_seed(0))
    ended = made[..., 4].cumsum(1) > 0
    assert ended.any(1).all()
    assert (made[ended] == torch.tensor([0.0, 0, 0, 0, 1])).all()
    again = model.generate(torch.randn(20, 4), temperature=1.0, generator=torch.Generator().manual_seed(1))
    assert again.shape != made.shape or not torch.equal(again, made)


def test_low_temperature_draws_vary_less() -> None:
    torch.manual_seed(0)
    model = SketchRNN(**SMALL).eval()
    z = torch.randn(1, 4).expand(100, 4)
    spread = [
        model.generate(z, temperature=t, generator=torch.Generator().manual_seed(0))[:, 0, :2].var() for t in (0.1, 1.0)
    ]
    assert spread[0] < 0.5 * spread[1]
    squared = model.generate(z, temperature=0.1, generator=torch.Generator().manual_seed(0), reference_temperature=True)
    assert squared[:, 0, :2].var() < spread[0]


# -- recipe ------------------------------------------------------------------------------------------------------------


def test_shuffled_latents_carry_no_information(data: Data) -> None:
    run = recipe(data, shuffle_z=True)
    x, lengths = padded(run, batch_of(data))
    seen: list[Tensor] = []
    run.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    posterior, _, _ = run._run(x, lengths, torch.Generator().manual_seed(0))
    own = posterior.sample(torch.Generator().manual_seed(0))
    assert not (own == seen[0]).all(1).any()
    assert torch.equal(own.roll(1, 0), seen[0])


def test_the_floor_stops_the_divergences_gradient(data: Data) -> None:
    run = recipe(data, kl_floor=50.0, dropout=0.0)
    run.step(batch_of(data))
    first = run.model.posterior.weight.grad.clone()
    other = recipe(data, kl_floor=50.0, kl_weight=1000.0, dropout=0.0)
    other.step(batch_of(data))
    torch.testing.assert_close(first, other.model.posterior.weight.grad)


def test_every_parameter_learns(data: Data) -> None:
    for options in ({}, {"cell": "hyper"}, {"cell": "layernorm"}, {"conditional": False}):
        run = recipe(data, kl_floor=0.0, **options)
        for run.iteration in range(2):
            run.step(batch_of(data))
        for name, parameter in run.model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


def test_schedules(data: Data) -> None:
    run = recipe(data, steps=500)
    assert run._kl_rate() ** 500 == pytest.approx(1e-4)
    run.iteration = 250
    assert run.step(batch_of(data))["kl_weight"] == pytest.approx(1 - 0.99 * 0.01)
    assert run.optim.param_groups[0]["lr"] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.9999**250)


@pytest.fixture(scope="module")
def trained(data: Data) -> SketchRNNRecipe:
    run = recipe(data)
    for run.iteration in range(10):
        run.step(batch_of(data))
    run.model.eval()
    return run


def test_actions_give_drawings(trained: SketchRNNRecipe, tmp_path: Path) -> None:
    svg = tmp_path / "mine.svg"
    svg.write_text(polylines_to_svg(stroke3_to_polylines(sketches.sketch(9, 0)[1][:12])))
    sheets = {
        3: trained.sample(3, torch.Generator().manual_seed(0)),
        6: trained.interpolate(n=4),
        8: trained.reconstruct(n=4),
        2: trained.complete(n=2),
        1: trained.complete(n=1, drawing=str(svg)),
        4: trained.arithmetic(n=2),
    }
    for count, sheet in sheets.items():
        assert isinstance(sheet, Drawings)
        assert len(sheet.svgs) == count
        assert all(svg_to_polylines(one) for one in sheet.svgs)
    assert len(trained.sheet(n=2).items) == 5
    table = trained.encode(n=5)
    assert len(table.rows) == 5
    assert len(table.columns) == 1 + 4


def test_completion_shows_the_given_part(trained: SketchRNNRecipe) -> None:
    (drawn,) = trained.complete(n=1, keep=0.5, seed=3).svgs
    batch = trained._test_drawings(1, torch.Generator().manual_seed(3))
    rows = batch["strokes"][0, : round(0.5 * int(batch["length"][0]))].numpy()
    marked = re.findall(r'd="([^"]*)" stroke="#4a7ab5"', drawn)
    given = [svg_to_polylines(f'<svg><path d="{d}"/></svg>')[0] for d in marked]
    expected = stroke3_to_polylines(rows)
    assert len(given) == len(expected)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), torch.from_numpy(b), atol=0.02, rtol=0)


def test_bad_requests_are_typed_errors(trained: SketchRNNRecipe, data: Data, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dragon"):
        trained.arithmetic(base="dragon")
    with pytest.raises(ConfigError, match="at most"):
        trained.reconstruct(n=1000)
    with pytest.raises(DataError):
        trained.complete(drawing=str(tmp_path / "none.svg"))
    alone = recipe(data, conditional=False)
    for act in (alone.encode, alone.interpolate, alone.reconstruct, alone.arithmetic):
        with pytest.raises(CapabilityError, match="decoder alone"):
            act()
    assert len(alone.complete(n=1).svgs) == 1
    model = trained.model
    for strokes, z in (
        (torch.zeros(2, 5), None),
        (torch.zeros(2, 3, 3), None),
        (torch.zeros(2, 3, 5), torch.zeros(2, 5)),
    ):
        with pytest.raises(ShapeError):
            model(strokes, z)
    with pytest.raises(ShapeError):
        alone.model.encode(torch.zeros(1, 3, 5), torch.tensor([3]))


def test_weights_round_trip(trained: SketchRNNRecipe, tmp_path: Path) -> None:
    trained.model.save_pretrained(tmp_path)
    again = SketchRNN.from_pretrained(tmp_path).eval()
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    first, second = (m.generate(z, temperature=0.0, generator=torch.Generator()) for m in (trained.model, again))
    assert torch.equal(first, second)
    assert again.scale == pytest.approx(trained.data.info["scale"])
