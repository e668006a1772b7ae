"""The attack loop: balls and boxes, success only on clean-correct samples, goals, and a gradient written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.inspect.attack import Goal, ascend, attack_row, direction, finish, join, pgd, project, random_start


def linear_target(lo: float = 0.0, hi: float = 1.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    return wrap(net, space=Space.image((3, 2, 2), lo, hi), classes="abc")


def batch(n: int = 60, lo: float = 0.0, hi: float = 1.0):
    x = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * (hi - lo) + lo
    target = linear_target(lo, hi)
    return target, x, target.logits(x).argmax(1)


def test_one_step_is_the_clipped_sign_of_the_hand_made_gradient():
    target, x, y = batch()
    weight = target.module[1].weight.detach()
    chance = target.logits(x).softmax(1).detach()
    grad = ((chance - nn.functional.one_hot(y, 3)) @ weight).view_as(x)
    result = ascend(target, x, y, eps=0.1)
    expected = torch.clamp(x + 0.1 * grad.sign(), x - 0.1, x + 0.1).clamp(0, 1)
    assert torch.equal(result.x_adv, expected)
    assert result.queries == {"forward": 120, "backward": 60} and len(result.trace) == 1
    assert torch.allclose(result.trace[0], -chance.gather(1, y[:, None]).squeeze(1).log(), atol=1e-6)
    assert target.module[1].weight.grad is None


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("start", ["none", "uniform", "sign"])
def test_the_ball_and_the_box_hold_in_any_space(norm: str, start: str):
    target, x, y = batch(lo=-3.0, hi=5.0)
    settings = {"steps": 5, "step": 0.04, "norm": norm, "start": start}
    result = ascend(target, x, y, eps=0.05, generator=torch.Generator().manual_seed(0), **settings)
    size = result.norms["linf" if norm == "inf" else "l2"]
    assert float(size.max()) <= 0.05 * 8 * (1 + 1e-5) and float(size.min()) > 0
    assert float(result.x_adv.min()) >= -3 and float(result.x_adv.max()) <= 5


def test_success_needs_a_clean_correct_sample_and_the_goal():
    target, x, y = batch()
    wrong = (y + 1) % 3
    result = ascend(target, x, torch.cat([y[:30], wrong[30:]]), eps=0.4, steps=3)
    assert bool(result.success[:30].any()) and not bool(result.success[30:].any())
    aimed = ascend(target, x, y, eps=0.9, step=0.2, steps=10, goal=Goal(2))
    hits = target.logits(aimed.x_adv).argmax(1) == 2
    assert torch.equal(aimed.success, hits & (y != 2)) and bool(aimed.success.any())


def test_stopping_leaves_a_sample_where_it_first_succeeded():
    target, x, y = batch()
    long = ascend(target, x, y, eps=0.5, step=0.05, steps=10)
    short = ascend(target, x, y, eps=0.5, step=0.05, steps=10, stop=True)
    done = short.success & long.success
    assert bool(done.any()) and bool((short.norms["linf"][done] <= long.norms["linf"][done]).all())
    assert float(short.norms["linf"][done].mean()) < float(long.norms["linf"][done].mean())


def test_restarts_never_lose_a_success_and_results_join():
    target, x, y = batch()
    one = pgd(target, x, y, eps=0.06, steps=3, generator=torch.Generator().manual_seed(4))
    four = pgd(target, x, y, eps=0.06, steps=3, restarts=4, generator=torch.Generator().manual_seed(4))
    assert bool((four.success | ~one.success).all()) and four.queries["backward"] == 4 * one.queries["backward"]
    assert torch.equal(target.logits(four.x_adv).argmax(1) != y, four.success)
    halves = join([ascend(target, x[s], y[s], eps=0.1) for s in (slice(0, 25), slice(25, 60))])
    whole = ascend(target, x, y, eps=0.1)
    assert torch.equal(halves.x_adv, whole.x_adv) and halves.queries == whole.queries
    assert torch.equal(halves.success, whole.success) and halves.trace[0].shape == (60,)


def test_post_condition_catches_inputs_outside_the_ball_or_the_box():
    target, x, y = batch()
    with pytest.raises(ArithmeticError, match="ball"):
        finish(target, x, y, (x + 0.2).clamp(0, 1), eps=0.1)
    with pytest.raises(ArithmeticError, match="box"):
        finish(target, x, y, x + 0.2, eps=0.5)


def test_rows_carry_the_common_columns():
    target, x, y = batch()
    row = attack_row(target, x, y, ascend(target, x, y, eps=0.3), method="fgsm", eps=0.3)
    assert row["clean accuracy"] == 1.0 and row["robust accuracy"] == pytest.approx(1 - row["success"])
    assert 0 < row["success after rounding"] <= 1 and row["median Linf"] == pytest.approx(0.3)
    assert 0 < row["median RMSD/255"] <= 0.3 * 255


def test_projection_is_the_nearest_point_and_directions_are_unit():
    space = Space.image((1, 2, 2))
    x = torch.full((2, 1, 2, 2), 0.5)
    moved = project(x + 1.0, x, 0.1, "2", space)
    assert torch.allclose((moved - x).flatten(1).norm(dim=1), torch.tensor(0.1))
    inside = x + 0.01
    assert torch.allclose(project(inside, x, 0.1, "2", space), inside)
    grad = torch.randn(2, 1, 2, 2)
    grad[1] = 0
    assert torch.allclose(direction(grad, "2").flatten(1).norm(dim=1), torch.tensor([1.0, 0.0]))
    starts = random_start(torch.zeros(4000, 1, 1, 2), 1.0, "2", "uniform", torch.Generator().manual_seed(0))
    radius = starts.flatten(1).norm(dim=1)
    assert float(radius.max()) <= 1 and abs(float((radius < 0.5).float().mean()) - 0.25) < 0.03


def test_bad_settings_are_typed_errors():
    target, x, y = batch(4)
    for bad in ({"eps": -0.1}, {"steps": 0}, {"norm": "1"}, {"start": "warm"}, {"goal": Goal(7)}):
        with pytest.raises(ConfigError):
            ascend(target, x, y, **{"eps": 0.1, **bad})
    with pytest.raises(ConfigError, match="restarts"):
        pgd(target, x, y, eps=0.1, restarts=0, generator=torch.Generator())
    with pytest.raises(ShapeError):
        ascend(target, x[:, :1], y, eps=0.1)
    words = wrap(nn.Identity(), space=Space("tokens", (5,), 0, 9), classes="ab")
    with pytest.raises(ConfigError, match="tokens"):
        ascend(words, torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long), eps=0.1)


def test_each_sample_may_want_its_own_class():
    target, x, y = batch()
    wanted = (y + 1 + torch.arange(60) % 2) % 3
    each = ascend(target, x, y, eps=0.9, step=0.2, steps=10, goal=Goal(wanted))
    alone = [ascend(target, x, y, eps=0.9, step=0.2, steps=10, goal=Goal(k)) for k in range(3)]
    for k in range(3):
        chosen = wanted == k
        assert torch.equal(each.x_adv[chosen], alone[k].x_adv[chosen])
        assert torch.equal(each.success[chosen], alone[k].success[chosen])
    row = attack_row(target, x, y, each, method="bim", goal=Goal(wanted))
    assert row["targeted"] and row["success"] == pytest.approx(float(each.success.float().mean()))
    part = Goal(wanted).part(slice(0, 7))
    assert part.wanted(y[:7]).tolist() == wanted[:7].tolist() and Goal(1).part(slice(0, 7)).label == 1


def test_drawn_and_least_likely_classes():
    target, x, y = batch()
    drawn = Goal.drawn(y, 3, torch.Generator().manual_seed(0)).wanted(y)
    assert not bool((drawn == y).any()) and set(((drawn - y) % 3).tolist()) == {1, 2}
    logits = target.logits(x)
    assert torch.equal(Goal.least_likely(logits).wanted(y), logits.argmin(1))
    for bad in (wanted_floats := drawn.float(), drawn[:5], drawn + 3):
        with pytest.raises(ConfigError, match="wanted"):
            ascend(target, x, y, eps=0.1, goal=Goal(bad))
    assert wanted_floats.dtype == torch.float32
    with pytest.raises(ConfigError):
        Goal().wanted(y)
