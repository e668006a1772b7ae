"""The twenty tasks at the original's length: stories of several questions, drawn anew from (task, split, seed, number).

Splits are disjoint: which split a story may belong to is decided by a hash of what is told before its first question.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable

from cambrian.data.babi_files import Story, write
from cambrian.errors import DataError
from cambrian.worlds.babi import rooms, tellings, thoughts

NAMES = {
    1: "single fact", 2: "two facts", 3: "three facts", 4: "two arguments", 5: "three arguments", 6: "yes or no",
    7: "counting", 8: "lists", 9: "negation", 10: "indefinite", 11: "coreference", 12: "conjunction",
    13: "compound coreference", 14: "time", 15: "deduction", 16: "induction", 17: "positions", 18: "size",
    19: "path finding", 20: "motivation",
}  # fmt: skip

MAKERS: dict[int, Callable[[random.Random], Story]] = {
    1: rooms.single_fact, 2: rooms.two_facts, 3: rooms.three_facts, 4: thoughts.two_arguments, 5: rooms.three_arguments,
    6: rooms.yes_no, 7: rooms.counting, 8: rooms.lists, 9: tellings.negation, 10: tellings.indefinite,
    11: tellings.coreference, 12: tellings.conjunction, 13: tellings.compound, 14: tellings.time, 15: thoughts.deduction,
    16: thoughts.induction, 17: thoughts.positions, 18: thoughts.size, 19: thoughts.path, 20: thoughts.motivation,
}  # fmt: skip
_SPLITS = {"train": range(9), "valid": range(9, 11), "test": range(11, 20)}  # of twenty parts of all stories


def split_of(story: Story) -> str:
    """The only split in which this story may stand."""
    told = "\n".join(story.told(story.questions[0]))
    part = hashlib.sha256(told.encode()).digest()[0] % 20
    return next(name for name, parts in _SPLITS.items() if part in parts)


@functools.lru_cache(maxsize=128)
def generate(task: int, split: str = "train", n: int = 1000, seed: int = 0) -> tuple[Story, ...]:
    """Stories of `task` (1 to 20) with `n` questions in all; the same arguments give the same stories."""
    if task not in MAKERS:
        raise DataError(f"no generator for bAbI task {task}; there are {min(MAKERS)} to {max(MAKERS)}")
    if split not in _SPLITS or n < 1:
        raise DataError(f"split must be one of {', '.join(_SPLITS)} and n at least 1, not {split!r} and {n}")
    found: list[Story] = []
    number, left = 0, n
    while left > 0:
        story = MAKERS[task](random.Random(f"{task} {seed} {number}"))
        number += 1
        if split_of(story) == split:
            story = Story(story.lines, story.questions[:left])
            found.append(story)
            left -= len(story.questions)
    return tuple(found)


def preview(task: int, n: int = 5, seed: int = 0) -> str:
    """The first training stories, with `n` questions, as text."""
    return f"{task} {NAMES[task]}\n{write(generate(task, 'train', n, seed))}"
