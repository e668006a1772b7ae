import math

import pytest
import torch

from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.systems.language.ptr_net import PointerNet
from cambrian.systems.language.ptr_net._scores import (
    cut,
    delaunay_scores,
    hull_scores,
    is_simple,
    polygon_area,
    tour_scores,
)
from cambrian.systems.language.ptr_net.recipe import Config, PtrNetRecipe
from cambrian.worlds import point_sets

POINTS = point_sets.draw(sample_keys(3, 0, torch.arange(12)), 7)
COUNT = torch.tensor([7, 5, 6, 7, 3, 4, 7, 5, 6, 7, 3, 7])


def net(output="pointer", **more):
    torch.manual_seed(0)
    return PointerNet(hidden=16, output=output, largest=7, init=0.5, **more).eval()


@pytest.mark.parametrize("output", ["pointer", "attention", "dictionary"])
def test_one_pass_equals_the_steps(output):
    model = net(output)
    target = torch.tensor([[3, 1, 2, 0, -1]] * 12)
    together = model(POINTS, target, COUNT)
    state, last = model.memory(POINTS, COUNT), torch.full((12,), -1)
    for t in range(4):
        logits, state = model.step(last, state)
        assert torch.allclose(together[:, t], logits, atol=1e-5)
        last = target[:, t]


def test_only_real_points_are_pointed_at_and_padding_changes_nothing():
    model = net()
    target = torch.tensor([[1, 2, 0]] * 12)
    probability = model(POINTS, target, COUNT).softmax(2)
    assert torch.allclose(probability.sum(2), torch.ones(12, 3), atol=1e-5)
    for b, count in enumerate(COUNT.tolist()):
        assert not probability[b, :, count + 1 :].any() and (probability[b, :, : count + 1] > 0).all()
        alone = model(POINTS[b : b + 1, :count], target[:1]).softmax(2)
        assert torch.allclose(alone[0], probability[b, :, : count + 1], atol=1e-5)
    only = model(POINTS[:, :1], torch.tensor([[1]] * 12))
    assert torch.allclose(only.softmax(2).sum(2), torch.ones(12, 1))  # one point and the stop


def test_permuting_points_permutes_the_pointer_of_an_encoder_that_does_not_care():
    model = net()

    def memory(points):
        flat = torch.tanh(points @ torch.ones(2, 16))  # each state from its own point alone
        keys = torch.cat((model.stop.expand(12, 1, -1), flat), 1)
        inputs = torch.cat((model.begin.expand(12, 1, -1), points), 1)
        zero, mask = torch.zeros(12, 16), torch.ones(12, 8, dtype=torch.bool)
        return zero, zero, inputs, keys, model.scorer.prepare(keys), mask

    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    a, _ = model.step(torch.full((12,), -1), memory(POINTS))
    b, _ = model.step(torch.full((12,), -1), memory(POINTS[:, order]))
    assert torch.allclose(a[:, 1:][:, order], b[:, 1:], atol=1e-6) and torch.allclose(a[:, 0], b[:, 0], atol=1e-6)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", ["hull", "tour", "delaunay"])
def test_constrained_answers_are_valid_even_of_an_untrained_net(task, seed, width):
    torch.manual_seed(seed)
    model = PointerNet(hidden=8, largest=7, init=2.0).eval()
    found = model.decode(POINTS, COUNT, beam_width=width, valid=task)
    for row in range(12):
        points = POINTS[row, : COUNT[row]]
        for k in range(width):
            if found.log_prob[row, k] == -math.inf:
                continue
            answer = cut(found.symbols[row, k])
            if task == "hull":
                assert is_simple(points, answer) and polygon_area(points, answer) > 0
            elif task == "tour":
                assert answer[0] == 1 and sorted(answer) == list(range(1, len(points) + 1))
            else:
                triangles = [tuple(answer[i : i + 3]) for i in range(0, len(answer), 3)]
                assert triangles and all(a < b < c for a, b, c in triangles) and len(set(triangles)) == len(triangles)


@pytest.mark.parametrize("task", ["hull", "tour", "delaunay"])
def test_the_true_answer_satisfies_the_constraint(task):
    from cambrian.systems.language.ptr_net._valid import constraint

    answers = point_sets.solve(task, POINTS, COUNT)
    allowed = constraint(task, POINTS, COUNT)
    for row, answer in enumerate(answers):
        for t, number in enumerate([*answer, 0]):
            open_ = allowed(torch.tensor([answer[:t]], dtype=torch.int64).view(1, t), torch.tensor([row]))
            assert open_[0, number], (answer, t)


def test_a_wider_beam_finds_likelier_answers():
    model = net()
    narrow, wide = (model.decode(POINTS, COUNT, beam_width=w, valid="tour").log_prob[:, 0] for w in (1, 8))
    assert (wide >= narrow - 1e-5).all() and (wide > narrow + 1e-4).any()


def test_areas_and_crossings():
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.4]])
    assert polygon_area(square, [1, 2, 3, 4]) == pytest.approx(1.0) and polygon_area(
        square, [4, 3, 2, 1]
    ) == pytest.approx(-1.0)
    assert is_simple(square, [1, 2, 3, 4]) and not is_simple(square, [1, 3, 2, 4]) and not is_simple(square, [1, 2])
    assert not is_simple(square, [1, 2, 3, 3])
    assert hull_scores(square, [2, 3, 4, 1], [1, 2, 3, 4]) == {
        "accuracy": 0.0,
        "invalid": 0.0,
        "area": pytest.approx(1.0),
    }
    assert hull_scores(square, [1, 3, 2, 4], [1, 2, 3, 4])["invalid"] == 1.0
    inside = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0))
    corner = (inside.sum(1) < 1).float().mean()  # Monte Carlo of the triangle 1, 2, 4
    assert hull_scores(square, [1, 2, 4], [1, 2, 3, 4])["area"] == pytest.approx(float(corner), abs=0.02)


def test_scores_of_triangles_and_tours():
    truth = [1, 2, 3, 2, 3, 4]
    assert delaunay_scores(POINTS[0], [2, 3, 4, 1, 2, 3], truth) == {"accuracy": 1.0, "coverage": 1.0, "invalid": 0.0}
    assert delaunay_scores(POINTS[0], [1, 2, 3, 4], truth)["invalid"] == 1.0
    assert delaunay_scores(POINTS[0], [1, 2, 3], truth)["coverage"] == 0.5
    best = point_sets.tour(POINTS[:1])[0]
    assert tour_scores(POINTS[0], best[:1] + best[:0:-1], best)["accuracy"] == 1.0  # the same tour, backwards
    assert tour_scores(POINTS[0], [1, 1, 2], best) == {"accuracy": 0.0, "invalid": 1.0}


@pytest.mark.parametrize("output", ["pointer", "attention", "dictionary"])
def test_it_fits_a_handful_of_sets(output):
    recipe = PtrNetRecipe(Config(steps=200, hidden=32, low=5, high=5, sets=24, tested=10, lr=5e-3, output=output))
    batch = recipe.data.train[torch.arange(24)]
    first = float(recipe.step(batch)["loss"])
    for _ in range(200):
        last = float(recipe.step(batch)["loss"])
    assert last < 0.75 * first


@pytest.fixture(scope="module", params=["hull", "delaunay", "tour"])
def trained(request):
    config = Config(
        steps=3, hidden=8, low=4, high=5, sets=40, tested=20, batch=8, task=request.param, beam=2, constrained=True
    )
    recipe = PtrNetRecipe(config)
    recipe.step(recipe.data.train[torch.arange(8)])
    return recipe


def test_actions(trained, tmp_path):
    task = trained.config.task
    with torch.no_grad():
        assert trained.evaluate("test", torch.Generator())["invalid"] == 0.0
    assert trained.sample(3, torch.Generator()).save(tmp_path, "s")[0].stat().st_size > 1000
    path = tmp_path / "sets.csv"
    path.write_text("0,0,10,0,10,10,0,10,4,5\n0,0,5,1,2,6,1,3\n1,1,9,2,3,8,4,4\n")
    saved = trained.solve(path).save(tmp_path, "solved")
    assert {p.suffix for p in saved} == {".csv", ".png"}
    rows = trained.lengths(low=4, high=6, step=2, n=5, constrained=True).rows
    assert [row[0] for row in rows] == [4, 6]
    if task == "tour":
        ratios = dict(trained.heuristics(n=10, beam=2).rows)
        assert len(ratios) == 5 and all(ratio >= 1 - 1e-6 for ratio in ratios.values())
    else:
        with pytest.raises(CapabilityError):
            trained.heuristics()


def test_bad_input():
    model = net()
    for points, count in (
        (POINTS[0], None), (POINTS[:, :, :1], None), (POINTS / 0, None), (POINTS, COUNT[:3]), (POINTS, COUNT + 1),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            model.decode(points, count)
    with pytest.raises(ShapeError, match="numbers up to 7"):
        model(POINTS, torch.full((12, 2), 8))
    with pytest.raises(ShapeError, match="cannot answer for 9"):
        net("attention").decode(torch.rand(2, 9, 2))
    with pytest.raises(ConfigError):
        PointerNet(output="copy")
    with pytest.raises(ConfigError):
        model.decode(POINTS, valid="maze")
    with pytest.raises(ConfigError):
        Config(low=7, high=6)
    with pytest.raises(ConfigError, match="point-sets"):
        PtrNetRecipe.load_data(Config(), Source("world", "digits"))
    with pytest.raises(CapabilityError):
        PtrNetRecipe(Config(output="attention", low=4, high=5, sets=20, tested=10)).lengths(high=9)
