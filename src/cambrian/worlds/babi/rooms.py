"""People who walk, take, leave and give: tasks 1, 2, 3, 5, 6, 7 and 8.

A simulation tells every action. What a listener may conclude, and from which statements, is kept beside it: where a person went
last, who took a thing last, and the places a thing has been to.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cambrian.data.babi_files import Question, Story

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
GIVERS = ("Mary", "Jeff", "Bill", "Fred")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("football", "milk", "apple")
MOVES = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
TAKES = (
    "got the {} there", "grabbed the {} there", "took the {} there", "picked up the {} there", "got the {}", "took the {}",
)  # fmt: skip
LEAVES = (
    "dropped the {}",
    "discarded the {}",
    "put down the {}",
    "left the {}",
    "dropped the {} there",
    "left the {} there",
)
GIVES = ("gave the {} to", "handed the {} to", "passed the {} to")
COUNTS = ("none", "one", "two", "three")


@dataclass
class House:
    """The state of the simulation and of the listener's knowledge; numbers are positions in `lines`."""

    rng: random.Random
    people: tuple[str, ...] = PEOPLE
    lines: list[str] = field(default_factory=list[str])
    where: dict[str, str] = field(default_factory=dict[str, str])  # person -> place
    moved: dict[str, int] = field(default_factory=dict[str, int])  # person -> last journey
    held: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # person -> things in order of taking
    spot: dict[str, str] = field(default_factory=dict[str, str])  # thing that nobody holds -> place
    handled: dict[str, int] = field(default_factory=dict[str, int])  # thing -> last taking or leaving
    trail: dict[str, list[tuple[str, int]]] = field(
        default_factory=dict[str, list[tuple[str, int]]]
    )  # places, journeys
    hands: dict[str, list[int]] = field(
        default_factory=dict[str, list[int]]
    )  # person -> all statements on what they hold
    gifts: list[tuple[int, str, str, str]] = field(default_factory=list[tuple[int, str, str, str]])

    def __post_init__(self) -> None:
        self.spot = {thing: self.rng.choice(PLACES) for thing in THINGS}
        self.held = {person: [] for person in self.people}
        self.hands = {person: [] for person in self.people}

    def holder(self, thing: str) -> str | None:
        """Who has a thing."""
        return next((person for person, things in self.held.items() if thing in things), None)

    def carrier(self) -> str | None:
        """Somebody who has handled things; how many they hold now is drawn first, so that large numbers are not rare."""
        active = [person for person, hands in self.hands.items() if hands]
        if not active:
            return None
        count = self.rng.choice(sorted({len(self.held[person]) for person in active}))
        return self.rng.choice([person for person in active if len(self.held[person]) == count])

    def move(self, person: str) -> None:
        place = self.rng.choice([p for p in PLACES if p != self.where.get(person)])
        self.where[person], self.moved[person] = place, len(self.lines)
        for thing in self.held[person]:
            self.trail[thing].append((place, len(self.lines)))
        self.lines.append(f"{person} {self.rng.choice(MOVES)} the {place}")

    def take(self, person: str, thing: str) -> None:
        place = self.spot.pop(thing)
        self.held[person].append(thing)
        here = (place, self.moved[person])
        past = self.trail.setdefault(thing, [])
        if past and past[-1][0] == place:
            past[-1] = here
        else:
            past.append(here)
        self._note(thing, person)
        self.lines.append(f"{person} {self.rng.choice(TAKES).format(thing)}")

    def leave(self, person: str, thing: str) -> None:
        self.held[person].remove(thing)
        self.spot[thing] = self.where[person]
        self._note(thing, person)
        self.lines.append(f"{person} {self.rng.choice(LEAVES).format(thing)}")

    def give(self, person: str, thing: str, other: str) -> None:
        self.held[person].remove(thing)
        self.held[other].append(thing)
        self.trail[thing][-1] = (self.where[other], self.moved[other])
        self.gifts.append((len(self.lines), person, thing, other))
        self._note(thing, person, other)
        self.lines.append(f"{person} {self.rng.choice(GIVES).format(thing)} {other}")

    def _note(self, thing: str, *people: str) -> None:
        self.handled[thing] = len(self.lines)
        for person in people:
            self.hands[person].append(len(self.lines))

    def act(self, handling: float = 0.0, giving: float = 0.0, leaving: float = 0.5) -> None:
        """One statement: somebody walks, or with probability `handling` takes or (in a share `leaving`) leaves a thing."""
        person = self.rng.choice(self.people)
        here = self.where.get(person)
        others = [p for p in self.people if p != person and self.where.get(p) == here]
        if here and self.held[person] and others and self.rng.random() < giving:
            return self.give(person, self.rng.choice(self.held[person]), self.rng.choice(others))
        near = [thing for thing, place in self.spot.items() if place == here]
        if here and (near or self.held[person]) and self.rng.random() < handling:
            leaves = bool(self.held[person]) and self.rng.random() < leaving
            if near and not leaves:
                return self.take(person, self.rng.choice(near))
            if leaves:
                return self.leave(person, self.rng.choice(self.held[person]))
        return self.move(person)


def _story(house: House, gap: Callable[[], int], act: Callable[[], None], ask: Callable[[], Question | None]) -> Story:
    """Five questions, each after `gap()` more statements, or as many as it takes until there is something to ask."""
    questions: list[Question] = []
    while len(questions) < 5:
        for _ in range(gap()):
            act()
        asked = ask()
        while asked is None:
            act()
            asked = ask()
        questions.append(asked)
    return Story(tuple(house.lines), tuple(questions))


def single_fact(rng: random.Random) -> Story:
    """1: where is a person."""
    house = House(rng)

    def ask() -> Question:
        person = rng.choice(list(house.where))
        return Question(f"Where is {person}", house.where[person], (house.moved[person],), len(house.lines))

    return _story(house, lambda: 2, house.act, ask)


def two_facts(rng: random.Random) -> Story:
    """2: where is a thing that somebody took, and perhaps left."""
    house = House(rng)

    def ask() -> Question | None:
        if not house.handled:
            return None
        thing = rng.choice(list(house.handled))
        place, journey = house.trail[thing][-1]
        return Question(f"Where is the {thing}", place, (house.handled[thing], journey), len(house.lines))

    return _story(house, lambda: 2 + int(rng.expovariate(0.4)), lambda: house.act(0.5), ask)


def three_facts(rng: random.Random) -> Story:
    """3: where was a thing before it came to one of the last places on its way."""
    house = House(rng)

    def ask() -> Question | None:
        options: list[Question] = []
        for thing, trail in house.trail.items():
            for i in range(max(1, len(trail) - 2), len(trail)):
                (before, first), (place, second) = trail[i - 1 : i + 1]
                if place not in [p for p, _ in trail[i + 1 :]]:
                    support = (house.handled[thing], second, first)
                    options.append(
                        Question(f"Where was the {thing} before the {place}", before, support, len(house.lines))
                    )
        return rng.choice(options) if options else None

    return _story(house, lambda: 4 + int(rng.expovariate(0.13)), lambda: house.act(0.5), ask)


def three_arguments(rng: random.Random) -> Story:
    """5: who gave what to whom; about the last gift that fits."""
    house = House(rng, GIVERS)
    seen = 0

    def ask() -> Question | None:
        nonlocal seen
        if not house.gifts or (len(house.gifts) == seen and rng.random() < 0.5):
            return None
        seen = len(house.gifts)
        _, giver, thing, taker = rng.choice(house.gifts[-2:])
        # each form of question leaves one of (giver, thing, taker) open and may leave out another
        text, answer, known = rng.choice((
            (f"Who gave the {thing} to {taker}", 1, (2, 3)), (f"What did {giver} give to {taker}", 2, (1, 3)),
            (f"Who did {giver} give the {thing} to", 3, (1, 2)), (f"Who gave the {thing}", 1, (2,)),
            (f"Who received the {thing}", 3, (2,)),
        ))  # fmt: skip
        wanted = (0, giver, thing, taker)
        fits = [g for g in house.gifts if all(g[i] == wanted[i] for i in known)]
        return Question(text, str(fits[-1][answer]).lower(), (fits[-1][0],), len(house.lines))

    return _story(house, lambda: 1, lambda: house.act(0.8, 0.9, 0.1), ask)


def yes_no(rng: random.Random) -> Story:
    """6: is a person in a place."""
    house = House(rng)

    def ask() -> Question:
        person = rng.choice(list(house.where))
        here = house.where[person]
        place = here if rng.random() < 0.5 else rng.choice([p for p in PLACES if p != here])
        answer = "yes" if place == here else "no"
        return Question(f"Is {person} in the {place}", answer, (house.moved[person],), len(house.lines))

    return _story(house, lambda: 2 + int(rng.expovariate(0.8)), lambda: house.act(0.4), ask)


def counting(rng: random.Random) -> Story:
    """7: how many things does a person carry."""
    house = House(rng)

    def ask() -> Question | None:
        person = house.carrier()
        if person is None:
            return None
        count = COUNTS[len(house.held[person])]
        support = tuple(house.hands[person])
        return Question(f"How many objects is {person} carrying", count, support, len(house.lines))

    return _story(house, lambda: 1 + int(rng.expovariate(0.5)), lambda: house.act(0.8, 0.2, 0.3), ask)


def lists(rng: random.Random) -> Story:
    """8: what does a person carry, in the order of taking."""
    house = House(rng)

    def ask() -> Question | None:
        person = house.carrier()
        if person is None:
            return None
        held = ",".join(house.held[person]) or "nothing"
        return Question(f"What is {person} carrying", held, tuple(house.hands[person]), len(house.lines))

    return _story(house, lambda: 1 + int(rng.expovariate(0.5)), lambda: house.act(0.8, 0.0, 0.3), ask)
