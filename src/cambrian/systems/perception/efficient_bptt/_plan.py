"""Where to keep states: exact dynamic programmes, and the list of actions that they lead to.

Unit of memory: one hidden state. An internal state (what one step needs to be backpropagated) takes `alpha` units.
`budget` counts stored states, the initial one included. The internal state of the step being backpropagated is working
memory on top: at most `alpha` units more. Cost: executions of the step function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cambrian.errors import ConfigError
from cambrian.systems.perception.efficient_bptt import _tables as tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = tuple[tuple[int, int], tuple[int, int]]
KINDS = ("mixed", "hidden", "internal", "mixed-paper", "sqrt", "full")
SPLITS = ("optimal", "half")
HID, INT = 0, 1  # what a segment starts from


class Action(NamedTuple):
    """`run` n steps from `at` without a graph; `store` or `free` the hidden state at `at`; `load` the state at `at`;
    `tape` step `at` (keep its graph); `back` through a taped step; `last` = tape and back at once."""

    op: str
    at: int
    n: int = 1


@dataclass(frozen=True)
class Plan:
    """How to backpropagate through `length` steps: `cost` step executions, at most `peak` units stored."""

    length: int
    budget: int
    alpha: int
    kind: str
    cost: int
    peak: int
    actions: tuple[Action, ...]

    @property
    def forwards_per_step(self) -> float:
        """Step executions per step of the sequence; full backpropagation has 1."""
        return self.cost / self.length

    @property
    def work(self) -> float:
        """Work relative to full backpropagation, a backward step counted as two forward steps."""
        return (self.forwards_per_step + 2) / 3

    def timeline(self) -> dict[str, tuple[str, float, list[Line]]]:
        """Lines over (steps executed, position) by what they show, with a colour and a width."""
        moves: dict[str, list[Line]] = {"run": [], "tape": [], "last": []}
        lives: dict[str, list[Line]] = {"store": [], "tape": []}
        born: dict[tuple[str, int], int] = {}
        now = 0
        for op, at, n in self.actions:
            if op in moves:
                moves[op].append(((now, at), (now + n, at + n)))
                now += n
            if op in lives:
                born[(op, at)] = now
            elif op in ("free", "back"):
                kind = "store" if op == "free" else "tape"
                lives[kind].append(((born.pop((kind, at)), at), (now, at)))
        lives["store"] += [((start, at), (now, at)) for (_, at), start in born.items()]
        return {
            "hidden state stored": ("green", 0.6, lives["store"]),
            "internal state stored": ("orange", 0.6, lives["tape"]),
            "forward": ("blue", 1.0, moves["run"]),
            "forward, graph kept": ("red", 1.4, moves["tape"] + moves["last"]),
        }

    def draw(self, path: Path | None = None) -> Figure:
        """The timeline: position over executed steps, with the life of every stored state; written to `path` if given."""
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for label, (color, width, lines) in self.timeline().items():
            axes.add_collection(LineCollection(lines, colors=f"tab:{color}", linewidths=width, label=label))
        axes.autoscale()
        axes.set(
            xlabel="steps executed",
            ylabel="position in the sequence",
            title=f"{self.kind}: {self.length} steps, budget {self.budget} units (alpha {self.alpha}), {self.cost} forwards",
        )
        axes.legend(fontsize=7, loc="upper left")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def plan(
    T: int,
    budget: int | None = None,
    alpha: int = 1,
    kind: str = "mixed",
    *,
    split: str = "optimal",
    cache: Path | None = None,
) -> Plan:
    """The plan for `T` steps within `budget` units.

    `mixed` is the exact optimum over all programmes of step, store, restore and drop; `hidden`, `internal` and
    `mixed-paper` are the paper's recursions (section 3); `sqrt` is Chen et al. (2016, arXiv 1604.06174) at the segment length
    of least memory (budget None) or the first that fits; `full` keeps everything. `split="half"` fixes every split in the
    middle, to show what the optimum is worth. `hidden` has a closed form and takes any T; the others need tables of
    T x budget, kept in memory and, if `cache` names a directory, there. `mixed` for a T beyond the tables cuts the
    sequence into chunks first. Raises `ConfigError` where no plan fits.
    """
    if T < 1 or alpha < 1 or kind not in KINDS or split not in SPLITS:
        raise ConfigError(
            f"a plan needs T >= 1, alpha >= 1, a kind of {', '.join(KINDS)} and a split of {', '.join(SPLITS)}, "
            f"not T={T}, alpha={alpha}, kind={kind!r}, split={split!r}"
        )
    if kind not in ("full", "sqrt") and (budget is None or budget < 1):
        raise ConfigError(f"the budget must hold at least 1 hidden state (the initial one), not {budget}")
    if kind == "full":
        actions: list[Action] = list(framed(_taped(0, T)))
    elif kind == "sqrt":
        actions = list(framed(_segments(T, alpha, budget)))
    else:
        assert budget is not None
        actions = list(framed(_solve(T, min(budget, 1 + alpha * T), alpha, kind, split, cache)))
    cost = sum(a.n for a in actions if a.op in ("run", "tape", "last"))
    peak = _peak(actions, alpha)
    return Plan(T, peak if budget is None else budget, alpha, kind, cost, peak, tuple(actions))


def _solve(T: int, budget: int, alpha: int, kind: str, split: str, cache: Path | None) -> Iterator[Action]:
    if kind == "hidden":
        policy: Policy = Halves() if split == "half" else Hidden()
        return walk(policy, HID, 0, T, budget)
    fits = tables.size(T, budget) <= tables.LIMIT and T <= tables.LONGEST
    if kind == "internal":
        budget = (budget - 1) // alpha + 1
        fits = tables.size(T, budget) <= tables.LIMIT and T <= tables.LONGEST
    if fits:
        return walk(Tabled(tables.get(kind, T, budget, alpha, split, cache)), HID, 0, T, budget)
    if kind != "mixed" or split == "half":
        raise ConfigError(
            f"the table of {kind} for {T} steps and {budget} units is too large; use kind='mixed' or 'hidden'"
        )
    return _chunked(T, budget, alpha, cache)


def segment(at: int, length: int, budget: int, alpha: int) -> Iterator[Action]:
    """The exact mixed programme for `length` steps from the stored state at `at`; `budget` counts that state."""
    budget = min(budget, 1 + alpha * length)
    if length > tables.LONGEST or tables.size(length, budget) > tables.LIMIT:
        return walk(Hidden(), HID, at, length, budget)
    return walk(Tabled(tables.get("mixed", length, budget, alpha)), HID, at, length, budget)


class Policy(Protocol):
    """The decision at each segment."""

    def choose(self, start: int, t: int, m: int) -> tuple[str, int]:
        """`last`, `hidden`, `internal` or `convert`, and the number of steps y up to the split."""
        ...

    def rest(self, start: int, op: str, m: int) -> int:
        """The budget of the part right of the split."""
        ...


class Hidden:
    """Hidden states only: closed form of C(t,m) = min_y y + C(t-y,m-1) + C(y,m) with C(t,1) = t(t+1)/2."""

    def choose(self, start: int, t: int, m: int) -> tuple[str, int]:
        """See `Policy`."""
        return ("last", t) if t == 1 or m == 1 else ("hidden", hidden_split(t, m))

    def rest(self, start: int, op: str, m: int) -> int:
        """See `Policy`."""
        return m - 1


class Halves(Hidden):
    """Hidden states at the middle of every segment."""

    def choose(self, start: int, t: int, m: int) -> tuple[str, int]:
        """See `Policy`."""
        return ("last", t) if t == 1 or m == 1 else ("hidden", (t + 1) // 2)


class Tabled:
    """Decisions from a table of costs: the arg-min is recomputed where it is needed."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def choose(self, start: int, t: int, m: int) -> tuple[str, int]:
        """See `Policy`."""
        return self.table.choose(start, t, m)

    def rest(self, start: int, op: str, m: int) -> int:
        """See `Policy`."""
        return self.table.rest(start, op, m)


def _repetitions(t: int, m: int) -> int:
    r = 0
    while math.comb(m + r, r) < t:
        r += 1
    return r


def hidden_cost(t: int, m: int) -> int:
    """C(t, m) of the hidden-state recursion, from the binomial form of optimal checkpointing (Griewank & Walther 2000)."""
    if t == 0:
        return 0
    r = _repetitions(t, m)
    return t + r * t - (math.comb(m + r, r - 1) if r else 0)


def hidden_split(t: int, m: int) -> int:
    """An arg-min y of that recursion, for t, m >= 2."""
    r = _repetitions(t, m)
    return min(math.comb(m + r - 1, r - 1), t - math.comb(m + r - 2, r - 1))


def walk(policy: Policy, start: int, at: int, length: int, budget: int) -> Iterator[Action]:
    """The actions that solve steps `at` .. `at + length - 1`, whose start state is held. No recursion: T may be large."""
    todo: list[tuple[Any, ...]] = [("solve", start, at, length, budget)]
    while todo:
        name, *rest = todo.pop()
        if name != "solve":
            yield Action(name, rest[0])
            continue
        k, s, t, m = rest
        if t == 0:
            continue
        op, y = policy.choose(k, t, m)
        yield Action("load", s)
        steps = {"last": t - 1, "hidden": y, "internal": y - 1, "convert": 0}[op]
        if steps:
            yield Action("run", s, steps)
        end = s + steps
        if op == "last" or (op == "internal" and y == t):
            yield Action("last", end)
            todo.append(("solve", k, s, t - 1, m))
        elif op == "hidden":
            yield Action("store", end)
            todo += [("solve", k, s, y, m), ("free", end), ("solve", HID, end, t - y, policy.rest(k, op, m))]
        elif op == "internal":
            yield Action("tape", end)
            todo += [("solve", k, s, y - 1, m), ("back", end), ("solve", INT, end + 1, t - y, policy.rest(k, op, m))]
        else:  # the first step's internal state replaces the start; the loaded state is working memory
            yield Action("free", s)
            yield Action("tape", s)
            todo += [("back", s), ("solve", INT, s + 1, t - 1, m)]


def _taped(at: int, length: int) -> Iterator[Action]:
    yield Action("load", at)
    for p in range(at, at + length - 1):
        yield Action("tape", p)
    yield Action("last", at + length - 1)
    for p in range(at + length - 2, at - 1, -1):
        yield Action("back", p)


def _starts(T: int, length: int) -> list[int]:
    return list(range(0, T, length))


def _segments(T: int, alpha: int, budget: int | None) -> Iterator[Action]:
    def memory(length: int) -> int:
        last = len(_starts(T, length)) - 1
        tail = T - last * length  # the last segment, backpropagated while all starts are held
        return max(last + 1 + alpha * (tail - 1), last + alpha * (length - 1) if last else 0)

    best = min(range(1, T + 1), key=memory)
    if budget is not None and memory(best) > budget:
        raise ConfigError(f"sqrt(T) segments need at least {memory(best)} units for {T} steps, not {budget}")
    starts = _starts(T, best)
    for s in starts[1:]:
        yield Action("run", s - best, best)
        yield Action("store", s)
    for s in reversed(starts):
        yield from _taped(s, min(best, T - s))
        yield Action("free", s)


def _chunked(T: int, budget: int, alpha: int, cache: Path | None) -> Iterator[Action]:
    """Chunk starts as hidden states, each chunk by the exact table; hidden states alone where that is cheaper."""
    longest = min(T, tables.LONGEST, math.isqrt(tables.LIMIT // 4 // budget))
    lengths = [n for n in (longest, longest // 2, longest // 4) if n >= 2 and len(_starts(T, n)) <= budget // 2]
    table = tables.get("mixed", longest, budget, alpha, "optimal", cache) if lengths else None

    def cost(length: int) -> int:
        starts = _starts(T, length)
        return starts[-1] + sum(int(table.hid[min(length, T - s), budget - i]) for i, s in enumerate(starts))  # type: ignore[union-attr]

    best = min(lengths, key=cost, default=None)
    if best is None or cost(best) >= hidden_cost(T, budget):
        yield from walk(Hidden(), HID, 0, T, budget)
        return
    starts = _starts(T, best)
    for s in starts[1:]:
        yield Action("run", s - best, best)
        yield Action("store", s)
    for i in range(len(starts) - 1, -1, -1):
        yield from walk(Tabled(table), HID, starts[i], min(best, T - starts[i]), budget - i)
        yield Action("free", starts[i])


def framed(actions: Iterator[Action]) -> Iterator[Action]:
    """Frame a programme: the initial state is stored first; needless loads and double frees are left out."""
    yield Action("store", 0)
    where, held = 0, {0}
    for action in actions:
        op, at, n = action
        if (op == "load" and at == where) or (op == "free" and at not in held):
            continue
        if op == "store":
            held.add(at)
        elif op == "free":
            held.discard(at)
        where = at + n if op in ("run", "tape", "last") else at if op == "load" else where
        yield action


def _peak(actions: list[Action], alpha: int) -> int:
    units = peak = 0
    for op, _, _ in actions:
        units += {"store": 1, "tape": alpha, "free": -1, "back": -alpha}.get(op, 0)
        peak = max(peak, units)
    return peak
