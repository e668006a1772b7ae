"""Sequence tasks, each sequence a pure function of its place in the split.

    latch       the first of L symbols is one of 8; L - 1 distractors from another alphabet; name the first at the end
    copy        5 symbols of 8, L blanks, then as many marks: at each the next symbol is to be said
    adding      L pairs (number in [0, 1], mark); the sum of the two marked numbers at the end (Hochreiter & Schmidhuber)
    arithmetic  "3e36d9-h1h39." then the sum or difference, a character at a time; letters are distractors
    xml         nested tags with random names: each character from those before it

Classes: `x` int64 [N, L], `y` int64 [N, L] with -1 where nothing is asked. Values: `x` float32 [N, L, 2], `y` [N, 1].
`info`: `loss` (classes, value), `symbols` or `inputs`, `outputs`, `causal` (the answer stands in later input, so the
sequence must be read forwards).

Shapes: N sequences, L length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cambrian.data.random import integers, sample_keys, uniform
from cambrian.data.split import Batch, Data, WorldSplit
from cambrian.errors import ConfigError

MARKED = 8  # symbols to remember
COPIED = 5
SIZES = {"train": 600_000, "valid": 1000, "test": 2000}
SEEDS = {"train": 1, "valid": 2, "test": 3}
LENGTHS = {"latch": 20, "copy": 20, "adding": 50, "arithmetic": 2, "xml": 100}
DISTRACTORS = "abcdefghijk"
ARITHMETIC = " 0123456789+-." + DISTRACTORS
XML = "<>/ " + "abcdefghijklmnopqrstuvwxyz"
Make = Callable[[Tensor, int], Batch]


def load(name: str, length: int | None = None) -> Data:
    """The task `name` as `Data` of kind `sequence`; `length` is L, or the number of digits of `arithmetic`."""
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}; tasks: {', '.join(TASKS)}")
    make, info = TASKS[name]
    asked = length or LENGTHS[name]
    if asked < 2 and name != "arithmetic":
        raise ConfigError(f"length must be at least 2 for {name}, not {asked}")
    splits = {split: WorldSplit(_of(make, SEEDS[split], asked), size) for split, size in SIZES.items()}
    extra = {"length": asked, "task": name}
    return Data(name, "sequence", splits["train"], splits["valid"], splits["test"], {**info, **extra})


def _of(make: Make, seed: int, length: int) -> Callable[[Tensor], Batch]:
    return lambda index: make(sample_keys(seed, 0, index), length)


def latch(key: Tensor, length: int) -> Batch:
    """Symbols 0 to 7 are remembered, 8 to 15 distract."""
    first = integers(key, 1, MARKED)
    x = torch.cat((first, MARKED + integers(key, length - 1, MARKED, stream=1)), 1)
    y = torch.full_like(x, -1)
    y[:, -1] = first[:, 0]
    return {"x": x, "y": y}


def copying(key: Tensor, length: int) -> Batch:
    """Symbol 8 is a blank, 9 the mark that asks."""
    seen = integers(key, COPIED, MARKED)
    blanks, marks = seen.new_full((len(key), length), MARKED), seen.new_full((len(key), COPIED), MARKED + 1)
    return {"x": torch.cat((seen, blanks, marks), 1), "y": torch.cat((-1 - 0 * seen, -1 - 0 * blanks, seen), 1)}


def adding(key: Tensor, length: int) -> Batch:
    """One number of each half is marked; guessing 1 has a mean square error of 1/6."""
    values, marks = uniform(key, length), torch.zeros(len(key), length)
    half = length // 2
    marks.scatter_(1, integers(key, 1, half, stream=1), 1.0)
    marks.scatter_(1, half + integers(key, 1, length - half, stream=2), 1.0)
    return {"x": torch.stack((values, marks), 2), "y": (values * marks).sum(1, keepdim=True)}


def arithmetic(key: Tensor, digits: int) -> Batch:
    """Two numbers of up to `digits` digits with up to as many distractors each, an operator, a point, the answer."""
    longest = 4 * digits + 2 + digits + 3
    draws = uniform(key, 2 + 4 * digits + 1).tolist()
    texts = [_sum(row, digits) for row in draws]
    x = torch.zeros(len(key), longest, dtype=torch.int64)
    y = torch.full_like(x, -1)
    number = {c: i for i, c in enumerate(ARITHMETIC)}
    for row, (question, answer) in enumerate(texts):
        codes = torch.tensor([number[c] for c in question + answer])
        x[row, : len(codes) - 1] = codes[:-1]
        y[row, len(question) - 1 : len(codes) - 1] = codes[len(question) :]
    return {"x": x, "y": y}


def _sum(draws: list[float], digits: int) -> tuple[str, str]:
    first, second = (int(u * 10**digits) for u in draws[:2])
    operator = "+" if draws[2] < 0.5 else "-"
    rest = iter(draws[3:])
    shown = []
    for number in (first, second):
        text = ""
        for digit in str(number):
            u = next(rest)
            text += DISTRACTORS[int(u * 2 * len(DISTRACTORS))] if u < 0.5 else ""
            text += digit
        shown.append(text)
    answer = first + second if operator == "+" else first - second
    return f"{shown[0]}{operator}{shown[1]}.", f"{answer}."


def xml(key: Tensor, length: int) -> Batch:
    """`length` + 1 characters of a document; `closing` [N, L] marks what the names of closing tags make certain."""
    draws = uniform(key, 6 * length).tolist()
    number = {c: i for i, c in enumerate(XML)}
    made = [_document(row, length + 1) for row in draws]
    codes = torch.tensor([[number[c] for c in text] for text, _ in made])
    certain = torch.tensor([marks for _, marks in made])
    return {"x": codes[:, :-1], "y": codes[:, 1:], "closing": certain[:, 1:]}


def _document(draws: list[float], length: int) -> tuple[str, list[bool]]:
    """Text and, for each character, whether it is in a closing tag's name (its > too)."""
    rest = iter(draws)
    text, marks, names = "", [], []
    while len(text) < length:
        if names and (len(names) == 4 or next(rest) < 0.5):
            tag, certain = f"</{names.pop()}> ", True
        else:
            names.append("".join(XML[4 + int(next(rest) * 26)] for _ in range(2 + int(next(rest) * 4))))
            tag, certain = f"<{names[-1]}> ", False
        text += tag
        marks += [certain and 2 <= i < len(tag) - 1 for i in range(len(tag))]
    return text[:length], marks[:length]


def _classes(symbols: int | str, outputs: int, *, causal: bool) -> dict[str, object]:
    shown = list(symbols) if isinstance(symbols, str) else [str(i) for i in range(symbols)]
    return {"loss": "classes", "symbols": shown, "outputs": outputs, "causal": causal}


TASKS: dict[str, tuple[Make, dict[str, object]]] = {
    "latch": (latch, _classes(2 * MARKED, MARKED, causal=False)),
    "copy": (copying, _classes(MARKED + 2, MARKED, causal=False)),
    "adding": (adding, {"loss": "value", "inputs": 2, "outputs": 1, "causal": False}),
    "arithmetic": (arithmetic, _classes(ARITHMETIC, len(ARITHMETIC), causal=True)),
    "xml": (xml, _classes(XML, len(XML), causal=True)),
}
