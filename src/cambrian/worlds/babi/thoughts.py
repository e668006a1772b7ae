"""Relations and reasons: arguments, deduction, induction, positions, size, paths, motivation (tasks 4 and 15 to 20)."""

from __future__ import annotations

import random

from cambrian.data.babi_files import Question, Story
from cambrian.worlds.babi.rooms import MOVES, PLACES

SIDES = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
KINDS = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "cat": "cats"}
NAMES = ("Gertrude", "Winona", "Jessica", "Emily")
BEASTS = ("swan", "lion", "frog", "rhino")
COLOURS = ("white", "yellow", "green", "gray")
MEMBERS = ("Lily", "Bernhard", "Greg", "Julius", "Brian")
FIGURES = ("triangle", "pink rectangle", "blue square", "red square", "red sphere", "yellow square")
RELATIONS = {"above": (0, 1), "below": (0, -1), "to the right of": (1, 0), "to the left of": (-1, 0)}
BOXES = ("container", "suitcase", "box", "chest", "box of chocolates", "chocolate")  # roughly from the biggest down
MOODS = {"tired": ("bedroom", "pajamas"), "hungry": ("kitchen", "apple"), "thirsty": ("kitchen", "milk"),
         "bored": ("garden", "football")}  # fmt: skip
ACTORS = ("Sumit", "Yann", "Antoine", "Jason")


def two_arguments(rng: random.Random) -> Story:
    """4: what is north of, or what is a place north of; both statements share a place."""
    middle, first, second = rng.sample(PLACES, 3)
    sides = rng.sample(list(SIDES), 2)
    facts: list[tuple[str, str, str]] = []
    for other, side in zip((first, second), sides, strict=True):
        facts.append((other, side, middle) if rng.random() < 0.5 else (middle, OPPOSITE[side], other))
    rng.shuffle(facts)
    line = rng.randrange(2)
    subject, side, object_ = facts[line]
    if rng.random() < 0.5:
        asked = Question(f"What is {side} of the {object_}", subject, (line,), 2)
    else:
        asked = Question(f"What is the {subject} {side} of", object_, (line,), 2)
    return Story(tuple(f"The {a} is {s} of the {b}" for a, s, b in facts), (asked,))


def deduction(rng: random.Random) -> Story:
    """15: what is somebody afraid of, from their kind."""
    kinds = list(KINDS)
    fear = {kind: rng.choice([k for k in kinds if k != kind]) for kind in kinds}
    member = {name: rng.choice(kinds) for name in NAMES}
    lines = [f"{KINDS[kind].capitalize()} are afraid of {KINDS[other]}" for kind, other in fear.items()]
    lines += [f"{name} is a {kind}" for name, kind in member.items()]
    order = list(range(8))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    questions: list[Question] = []
    for name in rng.sample(NAMES, 4):
        kind = member[name]
        support = (place[4 + NAMES.index(name)], place[kinds.index(kind)])
        questions.append(Question(f"What is {name} afraid of", fear[kind], support, 8))
    return Story(tuple(lines[i] for i in order), tuple(questions))


def induction(rng: random.Random) -> Story:
    """16: what colour is somebody, from another one of their kind."""
    people = rng.sample(MEMBERS, 5)
    hue = dict(zip(BEASTS, rng.sample(COLOURS, 4), strict=True))
    kind = [rng.choice(BEASTS) for _ in range(4)]
    asked = rng.choice(kind)
    facts = [(i, f"{people[i]} is a {k}") for i, k in enumerate([*kind, asked])]
    facts += [(10 + i, f"{people[i]} is {hue[k]}") for i, k in enumerate(kind)]
    rng.shuffle(facts)
    place = {number: position for position, (number, _) in enumerate(facts)}
    like = next(i for i, k in enumerate(kind) if k == asked)
    support = (place[4], place[like], place[10 + like])
    question = Question(f"What color is {people[4]}", hue[asked], support, 9)
    return Story(tuple(text for _, text in facts), (question,))


def positions(rng: random.Random) -> Story:
    """17: is a figure above, below, left or right of another, from two statements about three figures."""
    names = rng.sample(FIGURES, 3)
    at = {names[0]: (0, 0)}
    lines: list[str] = []
    for i in (1, 2):
        other = rng.choice(names[:i])
        relation = rng.choice(
            [r for r, (x, y) in RELATIONS.items() if (at[other][0] + x, at[other][1] + y) not in at.values()]
        )
        x, y = RELATIONS[relation]
        at[names[i]] = (at[other][0] + x, at[other][1] + y)
        back = next(r for r, step in RELATIONS.items() if step == (-x, -y))
        pair = (names[i], relation, other) if rng.random() < 0.5 else (other, back, names[i])
        lines.append(f"The {pair[0]} is {pair[1]} the {pair[2]}")
    options = [(a, r, b) for a in names for b in names for r in RELATIONS if a != b and _holds(at, a, r, b) is not None]
    yes = [o for o in options if _holds(at, *o)]
    no = [o for o in options if not _holds(at, *o)]
    chosen = rng.sample(yes, min(4, len(yes))) + rng.sample(no, min(4, len(no)))
    rng.shuffle(chosen)
    questions = [
        Question(f"Is the {a} {r} the {b}", "yes" if _holds(at, a, r, b) else "no", (0, 1), 2) for a, r, b in chosen
    ]
    return Story(tuple(lines), tuple(questions))


def _holds(at: dict[str, tuple[int, int]], a: str, relation: str, b: str) -> bool | None:
    """Whether a relation holds on the grid; None where both figures are level in its direction."""
    dx, dy = at[a][0] - at[b][0], at[a][1] - at[b][1]
    along = sum(p * q for p, q in zip(RELATIONS[relation], (dx, dy), strict=True))
    return None if along == 0 else along > 0


def size(rng: random.Random) -> Story:
    """18: does a thing fit in another, or is it bigger, from a chain of comparisons; sizes vary about what is usual."""
    usual = {name: i + 3 * rng.random() for i, name in enumerate(BOXES)}
    chain = sorted(rng.sample(BOXES, 5), key=usual.__getitem__)  # from the biggest down
    pairs = [(i, i + 1) for i in range(4)]
    pairs += [pair for pair in ((0, 2), (1, 3), (2, 4)) if rng.random() < 0.4]
    rng.shuffle(pairs)
    lines = [
        f"The {chain[small]} fits inside the {chain[big]}" if rng.random() < 0.5 else f"The {chain[big]} is bigger than the {chain[small]}"
        for big, small in pairs
    ]  # fmt: skip
    questions: list[Question] = []
    for _ in range(5):
        big = rng.randrange(3)
        small = rng.randrange(big + 2, 5)
        support = tuple(pairs.index((i, i + 1)) for i in range(big, small))
        true = rng.random() < 0.5
        a, b = (small, big) if true else (big, small)
        if rng.random() < 0.5:
            text = f"Does the {chain[a]} fit in the {chain[b]}"
        else:
            text = f"Is the {chain[b]} bigger than the {chain[a]}"
        questions.append(Question(text, "yes" if true else "no", support, len(lines)))
    return Story(tuple(lines), tuple(questions))


def path(rng: random.Random) -> Story:
    """19: which two steps lead from a place to another, on a map told in five statements."""
    names = rng.sample(PLACES, 6)
    at = {names[0]: (0, 0)}
    facts: list[tuple[str, str, str]] = []
    for name in names[1:]:
        free = [
            (other, side, spot)
            for other, (x, y) in at.items()
            for side, (dx, dy) in SIDES.items()
            if (spot := (x + dx, y + dy)) not in at.values()
        ]
        other, side, at[name] = rng.choice(free)
        facts.append((name, side, other) if rng.random() < 0.5 else (other, OPPOSITE[side], name))
    rng.shuffle(facts)
    ways: list[tuple[str, str, str, tuple[int, int]]] = []
    for i, first in enumerate(facts):
        for j, second in enumerate(facts):
            for middle in {first[0], first[2]} & {second[0], second[2]} if i != j else ():
                start, go = _step(first, middle, False)
                end, on = _step(second, middle, True)
                ways.append((start, end, f"{go[0]},{on[0]}", (i, j)))
    start, end, answer, support = rng.choice(ways)
    question = Question(f"How do you go from the {start} to the {end}", answer, support, 5)
    return Story(tuple(f"The {a} is {s} of the {b}" for a, s, b in facts), (question,))


def _step(fact: tuple[str, str, str], middle: str, away: bool) -> tuple[str, str]:
    """The other place of a fact, and the direction to walk from it to `middle`, or `away` from `middle` to it."""
    subject, side, object_ = fact
    other = subject if object_ == middle else object_
    return other, side if subject == (other if away else middle) else OPPOSITE[side]


def motivation(rng: random.Random) -> Story:
    """20: where will somebody go, and why did they go or take something."""
    mood = {name: rng.choice(list(MOODS)) for name in ACTORS}
    stage = dict.fromkeys(ACTORS, 0)
    told: dict[str, int] = {}
    lines: list[str] = []
    questions: list[Question] = []
    while any(s < 3 for s in stage.values()):
        name = rng.choice([n for n, s in stage.items() if s < 3])
        place, thing = MOODS[mood[name]]
        if stage[name] == 0:
            told[name] = len(lines)
            lines.append(f"{name} is {mood[name]}")
            asked, answer = f"Where will {name} go", place
        elif stage[name] == 1:
            lines.append(f"{name} {rng.choice(MOVES)} the {place}")
            asked, answer = f"Why did {name} go to the {place}", mood[name]
        else:
            lines.append(f"{name} {rng.choice(('grabbed', 'got', 'took', 'picked up'))} the {thing} there")
            asked, answer = f"Why did {name} get the {thing}", mood[name]
        stage[name] += 1
        if rng.random() < 0.9:
            questions.append(Question(asked, answer, (told[name],), len(lines)))
    return Story(tuple(lines), tuple(questions)) if questions else motivation(rng)
