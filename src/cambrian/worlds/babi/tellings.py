"""Ways to tell where somebody is: negation, indefinite knowledge, pronouns, conjunction and time (tasks 9 to 14)."""

from __future__ import annotations

import random
from collections.abc import Callable

from cambrian.data.babi_files import Question, Story
from cambrian.worlds.babi.rooms import MOVES, PEOPLE, PLACES

TOWN = ("cinema", "kitchen", "school", "office", "park", "bedroom")
TOWNSFOLK = ("Bill", "Julie", "Fred", "Mary")
WOMEN = ("Mary", "Sandra", "Julie")
LATER = ("Then", "After that", "Following that", "Afterwards")
TIMES = ("yesterday", "this morning", "this afternoon", "this evening")


def _five(rng: random.Random, tell: Callable[[int], list[str]], ask: Callable[[int], Question]) -> Story:
    """Five times two statements and a question."""
    lines: list[str] = []
    questions: list[Question] = []
    for _ in range(5):
        while len(lines) < 2 * len(questions) + 2:
            lines += tell(len(lines))
        questions.append(ask(len(lines)))
    return Story(tuple(lines), tuple(questions))


def _other(rng: random.Random, places: tuple[str, ...], *without: str) -> str:
    return rng.choice([p for p in places if p not in without])


def negation(rng: random.Random) -> Story:
    """9: is a person in a place; some statements only say where they are not."""
    known: dict[str, tuple[bool, str, int]] = {}

    def tell(at: int) -> list[str]:
        person, place = rng.choice(PEOPLE), rng.choice(PLACES)
        how = rng.random()
        denied = how < 0.3
        if denied and person in known and known[person][0] and rng.random() < 0.5:
            place = known[person][1]
        known[person] = (not denied, place, at)
        if denied:
            return [f"{person} is {rng.choice(('no longer', 'not'))} in the {place}"]
        return [f"{person} is in the {place}" if how < 0.5 else f"{person} {rng.choice(MOVES)} the {place}"]

    def ask(at: int) -> Question:
        person = rng.choice(list(known))
        there, place, line = known[person]
        asked = place if not there or rng.random() < 0.6 else _other(rng, PLACES, place)
        return Question(f"Is {person} in the {asked}", "yes" if there and asked == place else "no", (line,), at)

    return _five(rng, tell, ask)


def indefinite(rng: random.Random) -> Story:
    """10: is a person in a place; some statements leave two places open."""
    known: dict[str, tuple[tuple[str, ...], int]] = {}

    def tell(at: int) -> list[str]:
        person, place = rng.choice(TOWNSFOLK), rng.choice(TOWN)
        how = rng.random()
        if how < 0.45:
            second = _other(rng, TOWN, place)
            known[person] = ((place, second), at)
            return [f"{person} is either in the {place} or the {second}"]
        known[person] = ((place,), at)
        return [f"{person} is in the {place}" if how < 0.6 else f"{person} {rng.choice(MOVES)} the {place}"]

    def ask(at: int) -> Question:
        person = rng.choice(list(known))
        open_, line = known[person]
        asked = rng.choice(open_) if rng.random() < 0.65 else _other(rng, TOWN, *open_)
        answer = "no" if asked not in open_ else "maybe" if len(open_) == 2 else "yes"
        return Question(f"Is {person} in the {asked}", answer, (line,), at)

    return _five(rng, tell, ask)


def coreference(rng: random.Random) -> Story:
    """11: every second statement has a pronoun for the person of the statement before."""
    known: dict[str, tuple[str, int]] = {}

    def tell(at: int) -> list[str]:
        person = rng.choice(PEOPLE)
        first, second = rng.sample(PLACES, 2)
        known[person] = (second, at)
        pronoun = "she" if person in WOMEN else "he"
        return [f"{person} {rng.choice(MOVES)} the {first}",
                f"{rng.choice(LATER)} {pronoun} {rng.choice(MOVES)} the {second}"]  # fmt: skip

    def ask(at: int) -> Question:
        person = rng.choice(list(known))
        place, line = known[person]
        return Question(f"Where is {person}", place, (line + 1, line), at)

    return _five(rng, tell, ask)


def _pairs(rng: random.Random, compound: bool) -> Story:
    known: dict[str, tuple[str, int]] = {}

    def tell(at: int) -> list[str]:
        pair = rng.sample(PEOPLE, 2)
        first, second = rng.sample(PLACES, 2)
        told = [f"{pair[0]} and {pair[1]} {rng.choice(MOVES)} the {first}"]
        if compound:
            told.append(f"{rng.choice(LATER)} they {rng.choice(MOVES)} the {second}")
        known.update(dict.fromkeys(pair, (second if compound else first, at)))
        return told

    def ask(at: int) -> Question:
        person = rng.choice(list(known))
        place, line = known[person]
        return Question(f"Where is {person}", place, (line + 1, line) if compound else (line,), at)

    return _five(rng, tell, ask)


def conjunction(rng: random.Random) -> Story:
    """12: two people go together."""
    return _pairs(rng, compound=False)


def compound(rng: random.Random) -> Story:
    """13: two people go together, then `they` go on."""
    return _pairs(rng, compound=True)


def time(rng: random.Random) -> Story:
    """14: where was a person before a place; days are not told in their order."""
    facts = [(person, t, place) for person in TOWNSFOLK for t, place in enumerate(rng.sample(TOWN, 4))]
    rng.shuffle(facts)
    lines: list[str] = []
    questions: list[Question] = []
    told: dict[str, dict[int, tuple[str, int]]] = {person: {} for person in TOWNSFOLK}
    for person, t, place in facts[:14]:
        told[person][t] = (place, len(lines))
        action = f"{person} {rng.choice(MOVES)} the {place}"
        lines.append(f"{action} {TIMES[t]}" if rng.random() < 0.5 else f"{TIMES[t].capitalize()} {action}")
        ready = [p for p, known in told.items() if len(known) > 1]
        if len(lines) >= 3 and len(lines) % 2 == 0 and ready:
            who = rng.choice(ready)
            order = sorted(told[who])
            i = rng.randrange(1, len(order))
            (here, second), (before, first) = told[who][order[i]], told[who][order[i - 1]]
            questions.append(Question(f"Where was {who} before the {here}", before, (second, first), len(lines)))
    return Story(tuple(lines), tuple(questions))
