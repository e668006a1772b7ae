"""Short stories with a question, in the manner of the bAbI tasks, made on demand and with the supporting facts known.

Weston et al. (2015, arXiv 1502.05698) define twenty question types. Here are procedural versions of twelve, by their numbers:
1 single fact, 4 two-argument relations, 5 three-argument relations, 6 yes/no, 9 negation, 10 indefinite knowledge, 11 coreference,
12 conjunction, 15 deduction, 16 induction, 18 size, 20 motivation. Missing: 2 and 3 (two and three supporting facts), 7 (counting),
8 (lists), 13 (compound coreference), 14 (time), 17 (positions), 19 (path finding). Wording follows the original's style, not its text.

Every story is a pure function of its key, and a batch is written with tensor operations only: a sentence is a template whose slots are filled by word.

Shapes: B stories, S sentences (10), T words (10), K slots of a template (3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.data.random import integers, uniform
from cambrian.errors import DataError

SENTENCES = 10
WORDS = 10
TASKS = {
    1: "single fact", 4: "two arguments", 5: "three arguments", 6: "yes or no", 9: "negation", 10: "indefinite",
    11: "coreference", 12: "conjunction", 15: "deduction", 16: "induction", 18: "size", 20: "motivation",
}  # fmt: skip

_PEOPLE = ("mary", "daniel", "sandra", "john", "julie", "bill")  # women at even positions
_PLACES = ("kitchen", "office", "garden", "hallway", "bathroom", "bedroom")
_THINGS = ("milk", "apple", "football", "box")
_BEASTS = ("mouse", "sheep", "wolf", "cat")
_SWANS = ("swan", "lion", "frog", "rhino")
_COLOURS = ("white", "yellow", "green", "grey")
_SIZES = ("chocolate", "suitcase", "chest", "container", "crate")
_MOODS = ("hungry", "thirsty", "tired", "bored")
_SIDES = ("north", "south", "east", "west")
_NUMBERS = ("yes", "no", "maybe")

_TEMPLATES = (
    "", "@ moved to the @", "@ went to the @", "@ journeyed to the @", "@ travelled to the @", "@ is no longer in the @",
    "@ is either in the @ or the @", "then she went to the @", "then he went to the @", "@ and @ went to the @",
    "the @ is @ of the @", "@ gave the @ to @", "a @ is afraid of a @", "@ is a @", "@ is @", "the @ is bigger than the @",
    "where is @ ?", "is @ in the @ ?", "what is @ of the @ ?", "what is the @ @ of ?", "who gave the @ ?", "who received the @ ?",
    "what is @ afraid of ?", "what colour is @ ?", "does the @ fit in the @ ?", "where will @ go ?", "why did @ go to the @ ?",
)  # fmt: skip


def _vocabulary() -> tuple[str, ...]:
    groups = (_PEOPLE, _PLACES, _THINGS, _BEASTS, _SWANS, _COLOURS, _SIZES, _MOODS, _SIDES, _NUMBERS)
    words = [word for group in groups for word in group]
    words += [word for line in _TEMPLATES for word in line.split() if word != "@"]
    return ("", *dict.fromkeys(words))


VOCABULARY = _vocabulary()
_INDEX = {word: i for i, word in enumerate(VOCABULARY)}


def _compile() -> Tensor:
    """[templates, T]: word indices, with -1, -2, -3 for the slots."""
    table = torch.zeros(len(_TEMPLATES), WORDS, dtype=torch.int64)
    for row, line in enumerate(_TEMPLATES):
        slot = 0
        for column, word in enumerate(line.split()):
            slot -= word == "@"
            table[row, column] = slot if word == "@" else _INDEX[word]
    return table


_TABLE = _compile()


def _line(text: str) -> int:
    return _TEMPLATES.index(text)


def _word(group: Sequence[str], which: Tensor) -> Tensor:
    """Vocabulary positions of words of a group (the groups lie contiguously)."""
    return which + _INDEX[group[0]]


def _write(template: Tensor, *slots: Tensor) -> Tensor:
    """Words [..., T] of templates [...] whose slots are filled with the words `slots` [...]."""
    rows = _TABLE.to(template.device)[template]
    filled = torch.stack([*slots, *(torch.zeros_like(template),) * (3 - len(slots))], -1)
    return torch.where(rows < 0, filled.gather(-1, (-rows - 1).clamp(min=0)), rows)


@dataclass(frozen=True)
class Stories:
    """`story` int64 [B, S, T] (0 pads words and sentences), `question` [B, T], `answer` [B] (position in VOCABULARY).

    `support` bool [B, S] marks the sentences from which the answer follows.
    """

    story: Tensor
    question: Tensor
    answer: Tensor
    support: Tensor


def stories(task: Tensor, key: Tensor) -> Stories:
    """One story per key [B], of the task numbers `task` [B]. `DataError` for a number that has no generator."""
    unknown = sorted(set(task.tolist()) - set(TASKS))
    if unknown:
        raise DataError(f"no generator for bAbI task {unknown[0]}; there are {', '.join(map(str, TASKS))}")
    shape = (len(key), SENTENCES)
    story = torch.zeros(*shape, WORDS, dtype=torch.int64, device=key.device)
    question, support = torch.zeros_like(story[:, 0]), torch.zeros(shape, dtype=torch.bool, device=key.device)
    answer = torch.zeros_like(story[:, 0, 0])
    for number in sorted(set(task.tolist())):
        rows = (task == number).nonzero()[:, 0]
        made = _MAKERS[number](key[rows])
        lines = made.story.shape[1]
        story[rows, :lines], support[rows, :lines] = made.story, made.support
        question[rows], answer[rows] = made.question, made.answer
    return Stories(story, question, answer, support)


def text(words: Tensor) -> str:
    """A row of words [T] as English."""
    return " ".join(VOCABULARY[int(w)] for w in words if int(w))


def _order(key: Tensor, n: int, stream: int) -> Tensor:
    """A random permutation of n per key: int64 [B, n]."""
    return uniform(key, n, stream=stream).argsort(1)


def _at(values: Tensor, column: Tensor) -> Tensor:
    """values[b, column[b]] for every b."""
    return values.gather(1, column[:, None])[:, 0]


def _mark(column: Tensor, lines: int) -> Tensor:
    """bool [B, lines], True at `column` [B]."""
    return torch.arange(lines, device=column.device) == column[:, None]


def _last(hit: Tensor) -> Tensor:
    """The last True column of `hit` [B, S] in each row."""
    return (hit * torch.arange(1, hit.shape[1] + 1, device=hit.device)).argmax(1)


@dataclass(frozen=True)
class _Moves:
    """Who goes where in each sentence, and the last journey of a person whom the question is about."""

    actor: Tensor  # [B, S]
    place: Tensor  # [B, S]
    verb: Tensor  # [B, S], template of the sentence
    asked: Tensor  # [B], person
    last: Tensor  # [B], sentence

    @classmethod
    def draw(cls, key: Tensor, lines: int = 8, repeat: int = 1) -> _Moves:
        """`repeat` sentences in a row have the same actor."""
        actor = integers(key, lines // repeat, 4, stream=0).repeat_interleave(repeat, 1)
        place, verb = integers(key, lines, len(_PLACES), stream=1), 1 + integers(key, lines, 4, stream=2)
        asked = _at(actor, integers(key, 1, lines, stream=3)[:, 0])
        return cls(actor, place, verb, asked, _last(actor == asked[:, None]))

    def write(self) -> Tensor:
        return _write(self.verb, _word(_PEOPLE, self.actor), _word(_PLACES, self.place))

    @property
    def here(self) -> Tensor:
        return _at(self.place, self.last)

    def ask_where(self) -> Tensor:
        return _write(torch.full_like(self.asked, _line("where is @ ?")), _word(_PEOPLE, self.asked))

    def ask_whether(self, place: Tensor) -> Tensor:
        template = torch.full_like(self.asked, _line("is @ in the @ ?"))
        return _write(template, _word(_PEOPLE, self.asked), _word(_PLACES, place))


def _guess(key: Tensor, truth: Tensor) -> Tensor:
    """`truth` for half of the keys, another place for the rest: [B]."""
    other = (truth + 1 + integers(key, 1, len(_PLACES) - 1, stream=8)[:, 0]) % len(_PLACES)
    return torch.where(integers(key, 1, 2, stream=9)[:, 0] == 0, truth, other)


def _single_fact(key: Tensor) -> Stories:
    moves = _Moves.draw(key)
    return Stories(moves.write(), moves.ask_where(), _word(_PLACES, moves.here), _mark(moves.last, 8))


def _yes_no(key: Tensor) -> Stories:
    moves = _Moves.draw(key)
    place = _guess(key, moves.here)
    return Stories(
        moves.write(), moves.ask_whether(place), _word(_NUMBERS, (place != moves.here).long()), _mark(moves.last, 8)
    )


def _negation(key: Tensor) -> Stories:
    """`X is no longer in the P` settles only P, so after it the question is about P."""
    moves = _Moves.draw(key)
    negated = uniform(key, 8, stream=4) < 0.3
    verb = torch.where(negated, _line("@ is no longer in the @"), moves.verb)
    moves = _Moves(moves.actor, moves.place, verb, moves.asked, moves.last)
    denied = _at(negated, moves.last)
    place = torch.where(denied, moves.here, _guess(key, moves.here))
    answer = _word(_NUMBERS, (denied | (place != moves.here)).long())
    return Stories(moves.write(), moves.ask_whether(place), answer, _mark(moves.last, 8))


def _indefinite(key: Tensor) -> Stories:
    moves = _Moves.draw(key)
    vague = uniform(key, 8, stream=4) < 0.5
    second = (moves.place + 1 + integers(key, 8, len(_PLACES) - 1, stream=5)) % len(_PLACES)
    verb = torch.where(vague, _line("@ is either in the @ or the @"), moves.verb)
    story = _write(verb, _word(_PEOPLE, moves.actor), _word(_PLACES, moves.place), _word(_PLACES, second))
    place, unsure = _guess(key, moves.here), _at(vague, moves.last)
    possible = (place == moves.here) | (unsure & (place == _at(second, moves.last)))
    answer = torch.where(possible & unsure, 2, (~possible).long())
    return Stories(story, moves.ask_whether(place), _word(_NUMBERS, answer), _mark(moves.last, 8))


def _coreference(key: Tensor) -> Stories:
    """Every second sentence has a pronoun, which means the person of the sentence before."""
    moves = _Moves.draw(key, repeat=2)
    pronoun = (torch.arange(8, device=key.device) % 2 == 1).expand_as(moves.verb)
    template = torch.where(moves.actor % 2 == 0, _line("then she went to the @"), _line("then he went to the @"))
    story = torch.where(pronoun[..., None], _write(template, _word(_PLACES, moves.place)), moves.write())
    support = _mark(moves.last, 8) | _mark(moves.last - 1, 8)
    return Stories(story, moves.ask_where(), _word(_PLACES, moves.here), support)


def _conjunction(key: Tensor) -> Stories:
    moves = _Moves.draw(key)
    partner = (moves.actor + 1 + integers(key, 8, 3, stream=4)) % 4
    last = _last((moves.actor == moves.asked[:, None]) | (partner == moves.asked[:, None]))
    template = torch.full_like(moves.verb, _line("@ and @ went to the @"))
    story = _write(template, _word(_PEOPLE, moves.actor), _word(_PEOPLE, partner), _word(_PLACES, moves.place))
    moves = _Moves(moves.actor, moves.place, moves.verb, moves.asked, last)
    return Stories(story, moves.ask_where(), _word(_PLACES, moves.here), _mark(last, 8))


def _two_arguments(key: Tensor) -> Stories:
    """A chain of two relations over three places; the question names either side of one of them."""
    place, side = _order(key, len(_PLACES), 0), integers(key, 2, 4, stream=1)
    template = torch.full_like(side, _line("the @ is @ of the @"))
    story = _write(template, _word(_PLACES, place[:, :2]), _word(_SIDES, side), _word(_PLACES, place[:, 1:3]))
    line, forward = integers(key, 2, 2, stream=2).unbind(1)
    first, second = _at(place, line), _at(place, line + 1)
    asked_side = _word(_SIDES, _at(side, line))
    what = _write(torch.full_like(line, _line("what is @ of the @ ?")), asked_side, _word(_PLACES, second))
    of = _write(torch.full_like(line, _line("what is the @ @ of ?")), _word(_PLACES, first), asked_side)
    question = torch.where(forward[:, None] == 0, what, of)
    answer = _word(_PLACES, torch.where(forward == 0, first, second))
    return Stories(story, question, answer, _mark(line, 2))


def _three_arguments(key: Tensor) -> Stories:
    """Gifts; the question is about the last gift of a thing."""
    giver, thing = integers(key, 5, 4, stream=0), integers(key, 5, len(_THINGS), stream=1)
    taker = (giver + 1 + integers(key, 5, 3, stream=2)) % 4
    story = _write(
        torch.full_like(giver, _line("@ gave the @ to @")),
        _word(_PEOPLE, giver),
        _word(_THINGS, thing),
        _word(_PEOPLE, taker),
    )
    asked = _at(thing, integers(key, 1, 5, stream=3)[:, 0])
    last, gave = _last(thing == asked[:, None]), integers(key, 1, 2, stream=4)[:, 0] == 0
    template = torch.where(gave, _line("who gave the @ ?"), _line("who received the @ ?"))
    answer = torch.where(gave, _at(giver, last), _at(taker, last))
    return Stories(story, _write(template, _word(_THINGS, asked)), _word(_PEOPLE, answer), _mark(last, 5))


def _shuffled(key: Tensor, made: Stories) -> Stories:
    """The same story with its sentences in random order."""
    order = _order(key, made.story.shape[1], 15)
    story = made.story.gather(1, order[..., None].expand_as(made.story))
    return Stories(story, made.question, made.answer, made.support.gather(1, order))


def _deduction(key: Tensor) -> Stories:
    """Four kinds of beast, each afraid of another, and four individuals."""
    kind = torch.arange(4, device=key.device).expand(len(key), 4)
    feared, member = (kind + 1 + integers(key, 4, 3, stream=0)) % 4, integers(key, 4, 4, stream=1)
    fear = _write(torch.full_like(kind, _line("a @ is afraid of a @")), _word(_BEASTS, kind), _word(_BEASTS, feared))
    isa = _write(torch.full_like(kind, _line("@ is a @")), _word(_PEOPLE, kind), _word(_BEASTS, member))
    asked = integers(key, 1, 4, stream=2)[:, 0]
    beast = _at(member, asked)
    question = _write(torch.full_like(asked, _line("what is @ afraid of ?")), _word(_PEOPLE, asked))
    support = torch.cat([_mark(beast, 4), _mark(asked, 4)], 1)
    return _shuffled(key, Stories(torch.cat([fear, isa], 1), question, _word(_BEASTS, _at(feared, beast)), support))


def _induction(key: Tensor) -> Stories:
    """Four individuals of known kind and colour, and a fifth of one of these kinds, whose colour follows from its kind."""
    person, hue = _order(key, 5, 0), _order(key, 4, 1)
    kind = integers(key, 4, 4, stream=2)
    asked = _at(kind, integers(key, 1, 4, stream=3)[:, 0])
    kinds = torch.cat([kind, asked[:, None]], 1)
    isa = _write(torch.full_like(person, _line("@ is a @")), _word(_PEOPLE, person), _word(_SWANS, kinds))
    colour = hue.gather(1, kind)
    looks = _write(torch.full_like(kind, _line("@ is @")), _word(_PEOPLE, person[:, :4]), _word(_COLOURS, colour))
    question = _write(torch.full_like(asked, _line("what colour is @ ?")), _word(_PEOPLE, person[:, 4]))
    same = kind == asked[:, None]
    support = torch.cat([same, torch.ones_like(same[:, :1]), same], 1)
    return _shuffled(key, Stories(torch.cat([isa, looks], 1), question, _word(_COLOURS, _at(hue, asked)), support))


def _size(key: Tensor) -> Stories:
    """A chain of five things from the biggest down; the question compares two of them."""
    rank = _order(key, 5, 0)
    template = torch.full_like(rank[:, :4], _line("the @ is bigger than the @"))
    story = _write(template, _word(_SIZES, rank[:, :4]), _word(_SIZES, rank[:, 1:]))
    big, small = _order(key, 5, 1)[:, :2].sort(1).values.unbind(1)
    fits = integers(key, 1, 2, stream=2)[:, 0] == 0
    inner = _word(_SIZES, _at(rank, torch.where(fits, small, big)))
    outer = _word(_SIZES, _at(rank, torch.where(fits, big, small)))
    question = _write(torch.full_like(big, _line("does the @ fit in the @ ?")), inner, outer)
    line = torch.arange(4, device=key.device)
    support = (line >= big[:, None]) & (line < small[:, None])
    return _shuffled(key, Stories(story, question, _word(_NUMBERS, (~fits).long()), support))


def _motivation(key: Tensor) -> Stories:
    """Moods lead to places (hungry: kitchen, ...): where will they go, or why did they."""
    person, mood = _order(key, 4, 0), integers(key, 4, len(_MOODS), stream=1)
    story = _write(torch.full_like(person, _line("@ is @")), _word(_PEOPLE, person), _word(_MOODS, mood))
    line, why = integers(key, 2, 4, stream=2).unbind(1)
    who, place = _word(_PEOPLE, _at(person, line)), _word(_PLACES, _at(mood, line))
    template = torch.where(why % 2 == 0, _line("where will @ go ?"), _line("why did @ go to the @ ?"))
    answer = torch.where(why % 2 == 0, place, _word(_MOODS, _at(mood, line)))
    return Stories(story, _write(template, who, place), answer, _mark(line, 4))


_MAKERS: dict[int, Callable[[Tensor], Stories]] = {
    1: _single_fact, 4: _two_arguments, 5: _three_arguments, 6: _yes_no, 9: _negation, 10: _indefinite, 11: _coreference,
    12: _conjunction, 15: _deduction, 16: _induction, 18: _size, 20: _motivation,
}  # fmt: skip
