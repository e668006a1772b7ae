"""Stories as tensors for several models at once: one group a task (independent training), or one for all tasks (joint).

Fields of a split: `number` int64 [N, G, S], which of a group's different sentences stands there (0: none); `story` int16 [N, G, S, J], `query` [N, G, J], `answer`, `task` (position in `info["tasks"]`) int64 [N, G],
`support` bool [N, G, S], `counted` bool [N, G], False where a shorter group begins again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambrian.data import babi_files
from cambrian.data.babi_files import Story
from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.errors import ConfigError
from cambrian.worlds.babi import tales

Arrays = dict[str, Tensor]


def load(source: Source, tasks: Sequence[int], *, train: int, test: int, memory: int, joint: bool) -> Data:
    """The world `babi` or a folder of the release; a tenth of the training questions validate."""
    if not tasks or not set(tasks) <= set(tales.NAMES):
        raise ConfigError(f"tasks must be some of 1 to 20, not {tuple(tasks)}")
    if source.kind == "world":
        told = {t: (list(tales.generate(t, "train", train)), list(tales.generate(t, "test", test))) for t in tasks}
    else:
        told = babi_files.read_folder(source, tasks)
    numbers = list(told)
    every: dict[int, list[Story]] = {t: [*a, *b] for t, (a, b) in told.items()}
    shared = babi_files.vocabulary(s for stories in every.values() for s in stories)
    words = [shared] if joint else [babi_files.vocabulary(every[t]) for t in numbers]
    known = {t: words[0 if joint else i] for i, t in enumerate(numbers)}
    parts: dict[str, list[Arrays]] = {"train": [], "valid": [], "test": []}
    for place, task in enumerate(numbers):
        learn, judge = (babi_files.arrays(told[task][i], known[task], memory) for i in (0, 1))
        held = max(1, len(learn["answer"]) // 10)
        for name, arrays, rows in (
            ("train", learn, slice(0, -held)),
            ("valid", learn, slice(-held, None)),
            ("test", judge, slice(None)),
        ):
            cut = {field: value[rows] for field, value in arrays.items()}
            parts[name].append({**cut, "task": torch.full_like(cut["answer"], place)})
    info = {"tasks": numbers, "words": words, "vocab": max(map(len, words)), "memory": memory, "joint": joint}
    splits = _numbered({name: _split(found, joint) for name, found in parts.items()})
    origin = "embedded" if source.kind == "world" else str(source)
    return Data("babi", "stories", splits["train"], splits["valid"], splits["test"], info, origin)


def _numbered(splits: dict[str, dict[str, Tensor]]) -> dict[str, TensorSplit]:
    """Add `number`: equal sentences of a group get equal numbers, in all splits."""
    for g in range(splits["train"]["story"].shape[1]):
        rows = [s["story"][:, g].long() for s in splits.values()]
        width = max(r.shape[-1] for r in rows)
        factor = sample_keys(0, 0, torch.arange(width)) | 1
        hashed = [(r * factor[: r.shape[-1]]).sum(-1) for r in rows]  # the empty sentence hashes to 0
        _, number = torch.unique(
            torch.cat([torch.zeros(1, dtype=torch.int64), *(h.flatten() for h in hashed)]), return_inverse=True
        )
        zero = int(number[0])
        number = torch.where(number == zero, 0, number + (number < zero).long())[1:]
        for split, h, part in zip(splits.values(), hashed, number.split([h.numel() for h in hashed]), strict=True):
            split.setdefault("number", torch.zeros(split["story"].shape[:3], dtype=torch.int64))[:, g] = part.view(
                h.shape
            )
    return {name: TensorSplit(**fields) for name, fields in splits.items()}


def dictionary(data: Data) -> Tensor:
    """The different sentences of every group by their numbers: [G, U, J]."""
    splits = [data.split(name) for name in ("train", "valid", "test")]
    fields = [s[torch.arange(len(s))] for s in splits]
    groups, width = fields[0]["story"].shape[1], max(f["story"].shape[-1] for f in fields)
    table = torch.zeros(groups, 1 + max(int(f["number"].max()) for f in fields), width, dtype=torch.int64)
    for f in fields:
        for g in range(groups):
            table[g, f["number"][:, g].flatten(), : f["story"].shape[-1]] = f["story"][:, g].flatten(0, 1).long()
    return table


def _split(found: list[Arrays], joint: bool) -> dict[str, Tensor]:
    """Groups of equal shape, side by side or (joint) one after the other."""
    sentences, width = (max(a["story"].shape[axis] for a in found) for axis in (1, 2))
    width = max(width, max(a["query"].shape[1] for a in found))
    groups = [_padded(a, sentences, width) for a in found]
    if joint:
        groups = [{name: torch.cat([g[name] for g in groups]) for name in groups[0]}]
    most = max(len(g["answer"]) for g in groups)
    for g in groups:
        rows = torch.arange(most) % len(g["answer"])
        counted = torch.arange(most) < len(g["answer"])
        g.update({name: value[rows] for name, value in g.items()}, counted=counted)
    return {name: torch.stack([g[name] for g in groups], 1) for name in groups[0]}


def _padded(arrays: Arrays, sentences: int, width: int) -> Arrays:
    story, query, support = arrays["story"], arrays["query"], arrays["support"]
    more = sentences - story.shape[1]
    pad = torch.nn.functional.pad
    return {
        **arrays,
        "story": pad(story, (0, width - story.shape[2], 0, more)),
        "query": pad(query, (0, width - query.shape[1])),
        "support": pad(support, (0, more)),
    }


def coded(lines: Sequence[str], question: str, vocabulary: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A user's statements [1, S, J] and question [1, J]. `ConfigError` names words that the model has never met."""
    number = {word: i for i, word in enumerate(vocabulary)}
    rows = [babi_files.words(line) for line in lines if babi_files.words(line)]
    asked = babi_files.words(question)
    unknown = sorted({w for row in (*rows, asked) for w in row if w not in number})
    if unknown or not rows or not asked:
        raise ConfigError(
            f"a story and a question of known words are needed; unknown: {', '.join(unknown) or 'none'}; "
            f"known: {', '.join(vocabulary[1:])}"
        )
    width = max(map(len, (*rows, asked)))
    code = [[number[w] for w in row] + [0] * (width - len(row)) for row in (*rows, asked)]
    return torch.tensor(code[:-1])[None], torch.tensor(code[-1:])
