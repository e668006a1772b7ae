"""Efficient BPTT: costs against brute force over machine states, gradients against autograd, bytes against hooks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.systems.perception.efficient_bptt import (
    Meter,
    bptt,
    bptt_stream,
    fused_stretch,
    memory_budget,
    memory_of,
    plan,
    plan_for,
)
from cambrian.systems.perception.efficient_bptt import _plan as plans
from cambrian.systems.perception.efficient_bptt import _tables as tables
from cambrian.systems.perception.efficient_bptt.recipe import Config, EfficientBPTTStudy

# -- the least cost over all programmes: shortest path over machine states ------------------------------------------------

Machine = tuple[int, int, int, int, bool]  # steps left, hidden states and internal states (bit sets), position, fresh


def neighbours(s: Machine, m: int, alpha: int) -> Iterator[tuple[int, Machine]]:
    """Step, store hidden, store internal, restore, drop, backpropagate: (cost, next state)."""
    left, hid, internal, at, fresh = s
    used = hid.bit_count() + alpha * internal.bit_count()
    if 0 <= at < left:
        yield 1, (left, hid, internal, at + 1, True)
    if 0 <= at < left and not hid >> at & 1 and used + 1 <= m:
        yield 0, (left, hid | 1 << at, internal, at, fresh)
    if fresh and not internal >> (at - 1) & 1 and used + alpha <= m:
        yield 0, (left, hid, internal | 1 << (at - 1), at, fresh)
    for p in range(left):
        if hid >> p & 1:
            yield 0, (left, hid, internal, p, False)
            yield 0, (left, hid & ~(1 << p), internal, at, fresh)
        if internal >> p & 1:
            yield 0, (left, hid, internal, p + 1, False)
            yield 0, (left, hid, internal & ~(1 << p), at, fresh)
    if internal >> (left - 1) & 1 or (fresh and at == left):
        keep = (1 << (left - 1)) - 1  # what lies at or after the step just done is of no use any more
        yield 0, (left - 1, hid & keep, internal & keep, -1, False)


def shortest(t: int, m: int, alpha: int) -> int:
    """0-1 breadth-first search from the initial state stored to nothing left."""
    start: Machine = (t, 1, 0, 0, False)
    best, queue = {start: 0}, deque([start])
    done: set[Machine] = set()
    while queue:
        s = queue.popleft()
        if s in done:
            continue
        done.add(s)
        if s[0] == 0:
            return best[s]
        for cost, n in neighbours(s, m, alpha):
            if best[s] + cost < best.get(n, 1 << 30):
                best[n] = best[s] + cost
                (queue.append if cost else queue.appendleft)(n)
    raise AssertionError("no programme")


@pytest.mark.parametrize("alpha", [1, 2, 3, 4])
def test_the_mixed_plan_is_the_shortest_path(alpha: int) -> None:
    above = 0
    for t in range(1, 7):
        for m in range(1, 7):
            least = shortest(t, m, alpha)
            assert plan(t, m, alpha).cost == least, (t, m)
            above += plan(t, m, alpha, "mixed-paper").cost > least
    assert above or alpha == 4  # the paper's recursion is not optimal at small budgets


@cache
def hidden(t: int, m: int) -> int:
    if t == 0 or m == 1:
        return t * (t + 1) // 2
    return 1 if t == 1 else min(y + hidden(t - y, m - 1) + hidden(y, m) for y in range(1, t))


@cache
def internal(t: int, m: int) -> float:
    if t == 0 or m == 0:
        return math.inf if t else 0
    return min(y + internal(t - y, m - 1) + internal(y - 1, m) for y in range(1, t + 1))


@cache
def paper(t: int, m: int, alpha: int) -> float:
    if t == 0 or m < 1:
        return math.inf if t else 0
    if m == 1 or t == 1:
        return t * (t + 1) / 2
    if m >= alpha * t:
        return t
    return min(
        min(y + paper(t - y, m - 1, alpha) + paper(y, m, alpha) for y in range(1, t)),
        min(y + paper(t - y, m - alpha, alpha) + paper(y - 1, m, alpha) for y in range(1, t + 1))
        if m >= alpha
        else math.inf,
    )


def test_the_papers_recursions_are_solved() -> None:
    for t in range(1, 25):
        for m in range(1, 10):
            assert plan(t, m, kind="hidden").cost == plans.hidden_cost(t, m) == hidden(t, m)
            assert plan(t, m, kind="internal").cost == internal(t, m)
            assert plan(t, m, 3, "mixed-paper").cost <= paper(t, m, 3)
            assert plan(t, m, 3).cost <= plan(t, m, 3, "mixed-paper").cost


@pytest.mark.parametrize(
    ("kind", "m", "expected"), [("hidden", 20, 3.747), ("internal", 50, 1.95), ("mixed", 50, 1.949)]
)
def test_known_costs_at_a_thousand_steps(kind: str, m: int, expected: float) -> None:
    assert plan(1000, m, 1, kind).forwards_per_step == pytest.approx(expected, abs=1e-9)


def simulate(p: plans.Plan) -> tuple[int, list[int]]:
    """Run the actions on integers: checks that each state used is held; gives the cost and the steps backpropagated."""
    at, cost, stored, taped, done, units, peak = 0, 0, set[int](), set[int](), list[int](), 0, 0
    for op, p_at, n in p.actions:
        if op == "load":
            assert p_at in stored or p_at - 1 in taped
            at = p_at
        if op in ("run", "tape", "last"):
            assert at == p_at
            at, cost = at + n, cost + n
        if op == "store":
            assert at == p_at
            stored.add(p_at)
        if op == "tape":
            taped.add(p_at)
        if op == "free":
            stored.remove(p_at)
        if op == "back":
            taped.remove(p_at)
        if op in ("back", "last"):
            done.append(p_at)
        units = len(stored) + p.alpha * len(taped)
        peak = max(peak, units)
    assert peak == p.peak
    return cost, done


@pytest.mark.parametrize("kind", plans.KINDS)
@pytest.mark.parametrize(("T", "budget", "alpha"), [(1, 1, 1), (7, 1, 2), (40, 9, 1), (40, 13, 4), (97, 40, 5)])
def test_every_plan_is_a_valid_programme_within_its_budget(kind: str, T: int, budget: int, alpha: int) -> None:
    p = plan(T, None if kind in ("sqrt", "full") else budget, alpha, kind)
    cost, done = simulate(p)
    assert cost == p.cost and done == list(range(T))[::-1] and p.peak <= p.budget


def test_long_sequences_are_planned_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = plan(600, 60, 4)
    monkeypatch.setattr(tables, "LIMIT", 2_000_000)
    p = plan(600, 60, 4)
    assert simulate(p)[0] == p.cost and p.peak <= 60
    assert exact.cost < p.cost < plans.hidden_cost(600, 60)
    assert plan(20_000, 100, kind="hidden").forwards_per_step < 4
    with pytest.raises(ConfigError, match="too large"):
        plan(6000, 60, 4, "mixed-paper")


def test_halving_leaves_the_optimum() -> None:
    assert plan(1000, 50).forwards_per_step <= 1.96 < 4 < plan(1000, 50, split="half").forwards_per_step


def test_sqrt_is_matched_and_undercut() -> None:
    root = plan(1000, None, 5, "sqrt")
    assert plan(1000, root.peak, 5).cost <= root.cost
    with pytest.raises(ConfigError, match=f"at least {root.peak}"):
        plan(1000, root.peak - 1, 5, "sqrt")
    assert plan(1000, root.peak // 3, 5).cost < 3 * root.cost


@pytest.mark.parametrize(
    "bad", [dict(T=0), dict(budget=0), dict(budget=None), dict(alpha=0), dict(kind="x"), dict(split="x")]
)
def test_impossible_plans_are_config_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan(**{"T": 5, "budget": 3, **bad})


def test_tables_are_cached_where_asked_and_damage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_KEPT", {})
    cost = plan(30, 8, 3, cache=tmp_path).cost
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(tables, "_KEPT", {})
    monkeypatch.setattr(tables, "compute", lambda *a: pytest.fail("the file was not used"))
    assert plan(30, 8, 3, cache=tmp_path).cost == cost
    monkeypatch.undo()
    monkeypatch.setattr(tables, "_KEPT", {})
    values = np.load(file)
    values[100] += 1
    np.save(file, values)
    assert plan(30, 8, 3, cache=tmp_path).cost == cost


# -- execution ----------------------------------------------------------------------------------------------------------


class Cell(nn.Module):
    """Dropout, two state tensors in a nested tuple, an output that is not the state."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.lstm, self.out, self.p = nn.LSTMCell(3, 5), nn.Linear(5, 4), p

    def forward(self, x: Tensor, state: tuple[Tensor, tuple[Tensor]]) -> tuple[Tensor, tuple[Tensor, tuple[Tensor]]]:
        h, c = self.lstm(F.dropout(x, self.p, self.training and self.p > 0), (state[0], state[1][0]))
        return self.out(h), (h, (c,))


T, B = 23, 2
PLANS = {
    "full": plan(T, kind="full"),
    "mixed": plan(T, 12, 3),
    "one": plan(T, 1),
    "hidden": plan(T, 4, kind="hidden"),
    "internal": plan(T, 4, kind="internal"),
    "sqrt": plan(T, kind="sqrt"),
}


class Problem:
    """A cell, inputs and initial states that require gradients, a loss at every third step."""

    def __init__(self, p: float = 0.3) -> None:
        torch.manual_seed(0)
        self.cell = Cell(p).double()
        self.x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
        self.h = torch.randn(B, 5, dtype=torch.float64, requires_grad=True)
        self.c = torch.randn(B, 5, dtype=torch.float64, requires_grad=True)
        self.tensors = [*self.cell.parameters(), self.x, self.h, self.c]

    @property
    def state(self) -> tuple[Tensor, tuple[Tensor]]:
        return self.h, (self.c,)

    @staticmethod
    def loss(output: Tensor, t: int) -> Tensor | None:
        return (output.square().mean() * (t + 1)) if t % 3 == 0 or t == T - 1 else None

    def plain(self) -> tuple[Tensor, list[Tensor], Tensor]:
        torch.manual_seed(7)
        state: Any = self.state
        losses: list[Tensor] = []
        for t in range(T):
            output, state = self.cell(self.x[t], state)
            loss = self.loss(output, t)
            losses += [] if loss is None else [loss]
        total = torch.stack(losses).sum()
        total.backward()
        return total.detach(), self.take(), torch.rand(1)

    def planned(self, p: plans.Plan, **kwargs: Any) -> tuple[Tensor, list[Tensor], Tensor]:
        torch.manual_seed(7)
        total = bptt(self.cell, self.x, self.state, self.loss, p, **kwargs)
        return total, self.take(), torch.rand(1)

    def take(self) -> list[Tensor]:
        found = [t.grad for t in self.tensors if t.grad is not None]
        assert len(found) == len(self.tensors)
        for t in self.tensors:
            t.grad = None
        return found


@pytest.mark.parametrize("name", PLANS)
def test_gradients_equal_autograd_with_dropout_and_the_generator_ends_alike(name: str) -> None:
    problem = Problem()
    expected, found = problem.plain(), problem.planned(PLANS[name])
    for a, b in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("name", ["mixed", "one", "hidden", "internal", "sqrt"])
def test_all_plans_agree_bit_for_bit(name: str) -> None:
    problem = Problem()
    full, other = problem.planned(PLANS["full"]), problem.planned(PLANS[name])
    assert torch.equal(full[0], other[0]) and all(map(torch.equal, full[1], other[1]))


def test_without_the_generators_state_dropout_differs() -> None:
    problem = Problem()
    full, other = problem.planned(PLANS["full"]), problem.planned(PLANS["hidden"], preserve_rng=False)
    assert not torch.allclose(full[1][0], other[1][0])


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_torch_cells_work_directly_and_with_fused_stretches(kind: Any) -> None:
    torch.manual_seed(0)
    cell = kind(3, 5).double()
    x, h = torch.randn(40, B, 3, dtype=torch.float64), torch.zeros(B, 5, dtype=torch.float64)
    state = (h, h) if kind is nn.LSTMCell else h
    reference = {nn.GRUCell: nn.GRU, nn.LSTMCell: nn.LSTM, nn.RNNCell: nn.RNN}[kind](3, 5).double()
    reference.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    reference(x)[0].square().sum().backward()
    for run in (None, fused_stretch(cell, chunk=4)):
        cell.zero_grad()
        bptt(cell, x, state, lambda out, t: out.square().sum(), plan(40, 5, kind="hidden"), run=run)
        for a, b in zip(cell.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-11)


def test_running_statistics_count_each_step_once() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.cell = nn.BatchNorm1d(3), nn.GRUCell(3, 4)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.cell(self.norm(x), h)
            return h, h

    torch.manual_seed(0)
    x, buffers = torch.randn(T, 6, 3), list[list[Tensor]]()
    for name in ("full", "one"):
        torch.manual_seed(1)
        cell = Normed()
        memory_of(cell, x, torch.zeros(6, 4))
        bptt(cell, x, torch.zeros(6, 4), lambda out, t: out.sum(), PLANS[name])
        buffers.append([b.clone() for b in cell.buffers()])
    assert all(map(torch.equal, *buffers)) and buffers[0][2] == T


def test_a_cell_that_changes_its_own_buffers_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            self.count += 1
            h = self.cell(x, h)
            return h, h

    with pytest.raises(CapabilityError, match="count"):
        bptt(Counting(), torch.zeros(T, 1, 3), torch.zeros(1, 4), lambda out, t: out.sum(), PLANS["one"])


def gru(length: int = 200) -> tuple[nn.GRUCell, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.GRUCell(4, 16), torch.randn(length, 3, 4), torch.zeros(3, 16)


def test_measured_bytes_follow_the_plan_and_nothing_leaks() -> None:
    cell, x, h = gru()
    memory = memory_of(cell, x, h)
    assert memory.state == 3 * 16 * 4 and memory.inputs == 3 * 4 * 4
    peaks = {}
    for budget in (5, 40, None):
        p = plan(200, budget, memory.alpha, "mixed" if budget else "full")
        meter = Meter([*cell.parameters(), x])
        bptt(cell, x, h, lambda out, t: None if t < 199 else out.square().sum(), p, meter=meter)
        units = (
            p.peak * (memory.alpha + 1) / memory.alpha + memory.alpha + 3
        )  # states around kept steps; the step at work
        assert meter.peak <= units * memory.state and meter.live == 0 and not meter.counts
        peaks[budget] = meter.peak
    meter = Meter([*cell.parameters(), x])
    with meter.watch():
        state = h
        for x_t in x:
            state = cell(x_t, state)
        loss = state.square().sum()
    loss.backward()
    assert meter.live == 0 and meter.peak == pytest.approx(peaks[None], rel=0.02)
    assert peaks[5] < peaks[40] < 0.1 * meter.peak


def test_a_checkpoint_that_is_never_freed_shows_in_the_bytes() -> None:
    cell, x, h = gru()
    p = plan(200, 8, memory_of(cell, x, h).alpha)
    leaky = plans.Plan(
        p.length, p.budget, p.alpha, p.kind, p.cost, p.peak, tuple(a for a in p.actions if a.op != "free")
    )
    peaks = []
    for q in (p, leaky):
        meter = Meter([*cell.parameters(), x])
        bptt(cell, x, h, lambda out, t: out.sum(), q, meter=meter)
        peaks.append(meter.peak)
    assert peaks[1] > 1.5 * peaks[0]


def test_a_budget_in_megabytes_makes_the_plan() -> None:
    cell, x, h = gru()
    memory = memory_of(cell, x, h)
    with memory_budget(megabytes=0.02):
        meter = Meter([*cell.parameters(), x])
        bptt(cell, x, h, lambda out, t: out.sum(), meter=meter)
    assert 0.8 * 0.02e6 < meter.peak <= 0.02e6
    assert plan_for(cell, x, h, 0.02).alpha == 8 == memory.alpha + 1
    with pytest.raises(ConfigError, match="the least is"):
        plan_for(cell, x, h, memory.state / 1e6)


@pytest.mark.parametrize("length", [1, 2, 64, 157])
def test_a_stream_of_unknown_length_is_exact(length: int) -> None:
    torch.manual_seed(0)
    cell = Cell().double()
    x, h = torch.randn(length, B, 3, dtype=torch.float64), torch.zeros(B, 5, dtype=torch.float64)
    grads: list[list[Tensor | None]] = []
    for stream in (False, True):
        cell.zero_grad()
        torch.manual_seed(3)
        if stream:
            loss = bptt_stream(cell, iter(x), (h, (h,)), lambda out, t: out.square().sum(), budget=9, alpha=3)
        else:
            loss = bptt(cell, x, (h, (h,)), lambda out, t: out.square().sum())
        grads.append([loss, *(p.grad for p in cell.parameters()), torch.rand(2)])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None)


def test_a_stream_keeps_to_its_budget() -> None:
    cell, x, h = gru(500)
    meter = Meter([*cell.parameters(), x])
    alpha = memory_of(cell, x, h).alpha
    inputs = list(x.unbind())
    bptt_stream(cell, inputs, h, lambda out, t: out.sum(), budget=20, alpha=alpha, meter=meter)
    assert meter.peak <= (20 + 2 * alpha + 2) * h.numel() * 4
    with pytest.raises(ConfigError, match="at least 2"):
        bptt_stream(cell, inputs, h, lambda out, t: out.sum(), budget=1, alpha=alpha)


def test_wrong_states_and_lengths_are_typed_errors() -> None:
    cell, x, h = gru(5)
    with pytest.raises(ShapeError, match="dict"):
        bptt(cell, x, {"h": h}, lambda out, t: out.sum(), plan(5, 2))
    with pytest.raises(ConfigError, match="for 4 steps, not 5"):
        bptt(cell, x, h, lambda out, t: out.sum(), plan(4, 2))
    with pytest.raises(CapabilityError, match="no fused kernel"):
        fused_stretch(nn.Linear(2, 2))


def test_the_timeline_shows_every_action(tmp_path: Path) -> None:
    p = plan(30, 6, 2)
    lines = p.timeline()
    forwards = sum(b[0] - a[0] for name in ("forward", "forward, graph kept") for a, b in lines[name][2])
    assert forwards == p.cost
    p.draw(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5000


def test_the_study_meets_its_conditions_at_smoke_and_its_sabotage_does_not() -> None:
    smoke = EfficientBPTTStudy.presets["smoke"]
    found = EfficientBPTTStudy(smoke).measure(100, Path("."), lambda done, total: None).metrics
    assert found["gradient_error"] <= 1e-12 and found["dropout_gradient_error"] <= 1e-12
    assert found["peak_fraction"] < 0.1 and found["work"] < 2
    half = Config(length=smoke.length, dropout_length=smoke.dropout_length, split="half")
    broken = EfficientBPTTStudy(half).measure(100, Path("."), lambda done, total: None).metrics
    assert broken["forwards_per_step"] > 1.3 * found["forwards_per_step"]
