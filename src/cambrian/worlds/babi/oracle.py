"""A reader that answers the twenty kinds of question from the text alone: what the generators are checked against.

It knows English patterns, not how stories are made, and its arithmetic is its own (sets, transitive closure, search on graphs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cambrian.errors import DataError

_GO = r"(?:moved to|went to|went back to|journeyed to|travelled to)"
_TAKE = r"(?:got|grabbed|took|picked up)"
_LEAVE = r"(?:dropped|discarded|put down|left)"
_GIVE = r"(?:gave|handed|passed)"
_TIMES = ("yesterday", "this morning", "this afternoon", "this evening")
_COMPASS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
_BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
_GRID = {"above": (0, 1), "below": (0, -1), "to the right of": (1, 0), "to the left of": (-1, 0)}
_GOAL = {"tired": "bedroom", "hungry": "kitchen", "thirsty": "kitchen", "bored": "garden"}
_SINGULAR = {"mice": "mouse", "wolves": "wolf", "cats": "cat", "sheep": "sheep"}
_NUMBERS = ("none", "one", "two", "three")


@dataclass
class _Mind:
    """What has been read."""

    open_: dict[str, set[str]] = field(default_factory=dict[str, set[str]])  # person -> places they may be in
    denied: dict[str, str] = field(default_factory=dict[str, str])
    bag: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    way: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # thing -> places
    gifts: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    diary: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    facts: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    named: tuple[str, ...] = ()

    def arrive(self, people: Sequence[str], place: str) -> None:
        for person in people:
            self.open_[person] = {place}
            self.denied.pop(person, None)
            for thing in self.bag.get(person, []):
                self.way.setdefault(thing, []).append(place)

    def receive(self, person: str, thing: str) -> None:
        self.bag.setdefault(person, []).append(thing)
        here = next(iter(self.open_.get(person, {""})))
        way = self.way.setdefault(thing, [])
        if here and (not way or way[-1] != here):
            way.append(here)

    def read(self, line: str) -> None:
        """Take in one statement."""
        for pattern, act in _READERS:
            if found := re.fullmatch(pattern, line):
                act(self, *found.groups())
                return
        raise DataError(f"the oracle cannot read {line!r}")


def _go(mind: _Mind, who: str, place: str) -> None:
    mind.named = tuple(who.split(" and "))
    mind.arrive(mind.named, place)


def _then(mind: _Mind, place: str) -> None:
    mind.arrive(mind.named, place)


def _when(mind: _Mind, time: str, person: str, place: str) -> None:
    mind.diary.setdefault(person, {})[_TIMES.index(time)] = place


def _either(mind: _Mind, person: str, first: str, second: str) -> None:
    mind.open_[person] = {first, second}


def _deny(mind: _Mind, person: str, place: str) -> None:
    mind.open_.pop(person, None)
    mind.denied[person] = place


def _give(mind: _Mind, giver: str, thing: str, taker: str) -> None:
    mind.gifts.append((giver, thing, taker))
    if thing in mind.bag.get(giver, []):
        mind.bag[giver].remove(thing)
    mind.bag.setdefault(taker, []).append(thing)


def _leave(mind: _Mind, person: str, thing: str) -> None:
    if thing in mind.bag.get(person, []):
        mind.bag[person].remove(thing)
    else:  # taken before the text begins: it is where the person is
        mind.receive(person, thing)
        mind.bag[person].remove(thing)


def _fact(kind: str) -> Callable[..., None]:
    return lambda mind, a, b: mind.facts.append((a, kind, b))


_READERS: tuple[tuple[str, Callable[..., None]], ...] = (
    (rf"(\w+) {_GIVE} the (\w+) to (\w+)", _give),
    (rf"(\w+) {_TAKE} the (\w+)(?: there)?", lambda m, who, what: m.receive(who, what)),
    (rf"(\w+) {_LEAVE} the (\w+)(?: there)?", _leave),
    (rf"(yesterday|this \w+) (\w+) {_GO} the (\w+)", _when),
    (rf"(\w+) {_GO} the (\w+) (yesterday|this \w+)", lambda m, who, where, time: _when(m, time, who, where)),
    (rf"(?:then|after that|following that|afterwards) (?:he|she|they) {_GO} the (\w+)", _then),
    (rf"(\w+(?: and \w+)?) {_GO} the (\w+)", _go),
    (r"(\w+) is either in the (\w+) or the (\w+)", _either),
    (r"(\w+) is (?:no longer|not) in the (\w+)", _deny),
    (r"(\w+) is in the (\w+)", _go),
    (r"the (.+) is (north|south|east|west) of the (.+)", lambda m, a, s, b: m.facts.append((a, s, b))),
    (r"the (.+) is (above|below|to the \w+ of) the (.+)", lambda m, a, s, b: m.facts.append((a, s, b))),
    (r"the (.+) fits inside the (.+)", _fact("in")),
    (r"the (.+) is bigger than the (.+)", lambda m, a, b: m.facts.append((b, "in", a))),
    (r"(\w+) are afraid of (\w+)", lambda m, a, b: m.facts.append((_SINGULAR[a], "fears", _SINGULAR[b]))),
    (r"(\w+) is a (\w+)", _fact("kind")),
    (r"(\w+) is (\w+)", _fact("is")),
)


def _lookup(mind: _Mind, a: str, kind: str) -> list[str]:
    return [y for x, k, y in mind.facts if x == a and k == kind]


def _sides(mind: _Mind, side: str, of: str) -> str:
    """Which place is on `side` of a place."""
    back = _BACK[side]
    found = [a for a, s, b in mind.facts if (s, b) == (side, of)] + [
        b for a, s, b in mind.facts if (s, a) == (back, of)
    ]
    return found[0]


def _where(mind: _Mind, who: str, place: str) -> str:
    if who in mind.denied:
        return "no"
    open_ = mind.open_[who]
    return "no" if place not in open_ else "maybe" if len(open_) > 1 else "yes"


def _before(mind: _Mind, thing: str, place: str) -> str:
    way = mind.way[thing]
    at = max(i for i, p in enumerate(way) if p == place)
    return way[at - 1]


def _earlier(mind: _Mind, person: str, place: str) -> str:
    diary = mind.diary[person]
    at = next(t for t, p in diary.items() if p == place)
    return diary[max(t for t in diary if t < at)]


def _last_gift(mind: _Mind, wanted: str, giver: str | None, thing: str | None, taker: str | None) -> str:
    fits = [g for g in mind.gifts if all(w in (None, v) for v, w in zip(g, (giver, thing, taker), strict=True))]
    return dict(zip(("giver", "thing", "taker"), fits[-1], strict=True))[wanted]


def _colour(mind: _Mind, who: str) -> str:
    (kind,) = _lookup(mind, who, "kind")
    return next(hue for x, k, y in mind.facts if k == "kind" and y == kind for hue in _lookup(mind, x, "is"))


def _inside(mind: _Mind, small: str, big: str) -> str:
    reached = {small}
    for _ in mind.facts:
        reached |= {b for a, _, b in mind.facts if a in reached}
    return "yes" if big in reached else "no"


def _map(mind: _Mind, steps: dict[str, tuple[int, int]], start: str) -> dict[str, tuple[tuple[int, int], str]]:
    """Offset and letters of the way from `start` to every place that the facts reach."""
    found = {start: ((0, 0), "")}
    queue = [start]
    for here in queue:
        (x, y), way = found[here]
        for a, side, b in mind.facts:
            dx, dy = steps[side]
            for near, far, sign in ((b, a, 1), (a, b, -1)):
                if near == here and far not in found:
                    step = (sign * dx, sign * dy)
                    letter = next(s for s, v in steps.items() if v == step)[0]
                    found[far] = ((x + step[0], y + step[1]), f"{way},{letter}" if way else letter)
                    queue.append(far)
    return found


def _placed(mind: _Mind, a: str, relation: str, b: str) -> str:
    x, y = _map(mind, _GRID, b)[a][0]
    dx, dy = _GRID[relation]
    return "yes" if x * dx + y * dy > 0 else "no"


_ANSWERS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"where is the (\w+)", lambda m, thing: m.way[thing][-1]),
    (r"where is (\w+)", lambda m, who: next(iter(m.open_[who]))),
    (r"where was the (\w+) before the (\w+)", _before),
    (r"where was (\w+) before the (\w+)", _earlier),
    (r"what is (north|south|east|west) of the (\w+)", _sides),
    (r"what is the (\w+) (\w+) of", lambda m, a, s: _sides(m, _BACK[s], a)),
    (rf"who {_GIVE} the (\w+) to (\w+)", lambda m, t, b: _last_gift(m, "giver", None, t, b)),
    (rf"who {_GIVE} the (\w+)", lambda m, t: _last_gift(m, "giver", None, t, None)),
    (r"what did (\w+) give to (\w+)", lambda m, a, b: _last_gift(m, "thing", a, None, b)),
    (r"who did (\w+) give the (\w+) to", lambda m, a, t: _last_gift(m, "taker", a, t, None)),
    (r"who received the (\w+)", lambda m, t: _last_gift(m, "taker", None, t, None)),
    (r"is the (.+) bigger than the (.+)", lambda m, big, small: _inside(m, small, big)),
    (r"does the (.+) fit in the (.+)", _inside),
    (r"is the (.+) (above|below|to the \w+ of) the (.+)", _placed),
    (r"is (\w+) in the (\w+)", _where),
    (r"how many objects is (\w+) carrying", lambda m, who: _NUMBERS[len(m.bag[who])]),
    (r"what is (\w+) carrying", lambda m, who: ",".join(m.bag[who]) or "nothing"),
    (r"what is (\w+) afraid of", lambda m, who: _lookup(m, _lookup(m, who, "kind")[0], "fears")[0]),
    (r"what color is (\w+)", _colour),
    (r"how do you go from the (\w+) to the (\w+)", lambda m, a, b: _map(m, _COMPASS, a)[b][1]),
    (r"where will (\w+) go", lambda m, who: _GOAL[_lookup(m, who, "is")[0]]),
    (r"why did (\w+) .+", lambda m, who: _lookup(m, who, "is")[0]),
)  # fmt: skip


def solve(lines: Sequence[str], question: str) -> str:
    """The answer, from statements and a question in English. `DataError` when a line or the question is not understood."""
    mind = _Mind()
    for line in lines:
        mind.read(line.lower().strip(" ."))
    asked = question.lower().strip(" ?")
    for pattern, answer in _ANSWERS:
        if found := re.fullmatch(pattern, asked):
            try:
                return answer(mind, *found.groups())
            except (KeyError, IndexError, StopIteration, ValueError):
                raise DataError(f"the statements do not settle {question!r}") from None
    raise DataError(f"the oracle cannot read the question {question!r}")
