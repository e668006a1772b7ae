"""The data of the four tasks, as batches of the same form, and the readers of a user's own.

Every batch has `question`, `answer` and `kind` (which type of question, for figures by type), and what is asked about:
`objects` [B, N, D] (with `mask` where scenes differ in size), `image` uint8 [B, 3, S, S], or `story` int64 [B, S, T].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data, TensorSplit, WorldSplit
from cambrian.errors import DataError
from cambrian.worlds import babi, shapes, springs

WORLDS = {"state": "sort-of-clevr", "pixels": "sort-of-clevr", "babi": "babi", "springs": "springs"}
_SPLITS = {"train": 0, "valid": 1, "test": 2}  # seeds of the worlds: a scene of one split is none of another


def scenes(task: str, *, train: int, held_out: int, relational: int, plain: int, size: int) -> Data:
    """Sort-of-CLEVR as object rows (`state`) or pictures (`pixels`); held-out scenes get the paper's ten and ten questions."""

    def make(split: str, index: Tensor) -> Batch:
        key = sample_keys(_SPLITS[split], 0, index)
        shown = shapes.scenes(key)
        asked = shapes.ask(key, shown, *((relational, plain) if split == "train" else (10, 10)))
        seen = {"objects": shapes.state(shown)} if task == "state" else {"image": shapes.render(shown, size)}
        return {**seen, "question": asked.code(), "answer": asked.answer, "kind": asked.kind}

    train_split = WorldSplit(lambda i: make("train", i), train)
    valid, test = (WorldSplit(lambda i, n=name: make(n, i), held_out) for name in ("valid", "test"))
    info = {"kinds": shapes.KINDS, "answers": shapes.ANSWERS, "multi": False}
    return Data("sort-of-clevr", "questions", train_split, valid, test, info)


def stories(tasks: tuple[int, ...], *, train: int, held_out: int) -> Data:
    """bAbI stories: `train` and `held_out` in all, of `tasks` in turn."""
    unknown = [t for t in tasks if t not in babi.TASKS]
    if unknown or not tasks:
        raise DataError(
            f"no generator for bAbI task {unknown or 'of an empty list'}; there are {', '.join(map(str, babi.TASKS))}"
        )
    parts: dict[str, TensorSplit] = {}
    for name, seed in _SPLITS.items():
        index = torch.arange(train if name == "train" else held_out)
        kind = index % len(tasks)
        made = babi.stories(torch.tensor(tasks)[kind], sample_keys(seed, 0, index))
        parts[name] = TensorSplit(
            story=made.story, question=made.question[:, None], answer=made.answer[:, None], kind=kind[:, None]
        )
    info = {
        "kinds": tuple(f"task_{t}" for t in tasks),
        "answers": babi.VOCABULARY,
        "words": babi.VOCABULARY,
        "multi": False,
    }
    return Data("babi", "questions", parts["train"], parts["valid"], parts["test"], info)


def physics(question: str, *, train: int, held_out: int) -> Data:
    """Springs and rods: `connections` (one yes/no for each of 45 pairs of colours) or `count` (of separate systems, 1 to 10)."""
    parts: dict[str, TensorSplit] = {}
    for name, seed in _SPLITS.items():
        states, answers = [], []
        for index in torch.arange(train if name == "train" else held_out).split(1024):
            moved = springs.motion(sample_keys(seed, 0, index))
            states.append(moved.state())
            answers.append(moved.connections() if question == "connections" else moved.systems() - 1)
        answer = torch.cat(answers)[:, None]
        same = torch.ones(len(answer), 1, 1)  # one question, always the same
        parts[name] = TensorSplit(
            objects=torch.cat(states), question=same, answer=answer, kind=torch.zeros_like(same[..., 0]).long()
        )
    names = (
        [f"pair {i}" for i in range(45)] if question == "connections" else [str(i + 1) for i in range(springs.BALLS)]
    )
    info = {"kinds": (question,), "answers": tuple(names), "multi": question == "connections"}
    return Data("springs", "questions", parts["train"], parts["valid"], parts["test"], info)


def read(task: str, source: Source) -> Data:
    """A user's own: for `state` a .jsonl file of objects and questions, for `babi` a folder of qaN_*_train.txt files."""
    if source.kind != "path":
        raise DataError(f"this recipe reads files, not {source}; give a .jsonl file (state) or a bAbI folder (babi)")
    if task == "state" and source.path.is_file():
        return _read_objects(source.path)
    if task == "babi" and source.path.is_dir():
        return _read_stories(source.path)
    raise DataError(
        f"task {task} cannot be trained on {source}; state takes a .jsonl file, babi a folder, pixels and springs their worlds"
    )


def _read_objects(path: Path) -> Data:
    """Lines of {"objects": [[number, ...], ...], "question": [number, ...], "answer": "text"}; a tenth each is valid and test."""
    records: list[tuple[Tensor, Tensor, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            records.append(_record(line, f"{path.name}, line {number}"))
            if any(a.shape[-1] != b.shape[-1] for a, b in zip(records[0][:2], records[-1][:2], strict=True)):
                raise DataError(
                    f"{path.name}, line {number}: objects or question have other lengths than in the first record"
                )
    if len(records) < 10:
        raise DataError(f"{path.name} holds {len(records)} records; at least 10 are needed")
    answers = sorted({a for _, _, a in records})
    most = max(len(o) for o, _, _ in records)
    objects = torch.zeros(len(records), most, records[0][0].shape[1])
    mask = torch.zeros(len(records), most, dtype=torch.bool)
    for i, (rows, _, _) in enumerate(records):
        objects[i, : len(rows)], mask[i, : len(rows)] = rows, True
    question = torch.stack([q for _, q, _ in records])[:, None]
    answer = torch.tensor([[answers.index(a)] for _, _, a in records])
    fields = {
        "objects": objects,
        "mask": mask,
        "question": question,
        "answer": answer,
        "kind": torch.zeros_like(answer),
    }
    info = {"kinds": ("question",), "answers": tuple(answers), "multi": False}
    parts = _tenths(fields)
    return Data(path.stem, "questions", parts["train"], parts["valid"], parts["test"], info, str(path))


def _record(line: str, where: str) -> tuple[Tensor, Tensor, str]:
    try:
        record: Any = json.loads(line)
        objects, question = torch.tensor(record["objects"]).float(), torch.tensor(record["question"]).float()
        answer = str(record["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: needs objects (rows of numbers), question (numbers) and answer; {error!r}") from None
    if objects.dim() != 2 or question.dim() != 1 or not objects.isfinite().all() or not question.isfinite().all():
        raise DataError(f"{where}: objects must be rows of finite numbers and question a list of them")
    return objects, question, answer


def _tenths(fields: dict[str, Tensor]) -> dict[str, TensorSplit]:
    """Every tenth record is test, the one before it valid, the rest train."""
    place = torch.arange(len(fields["answer"])) % 10
    parts = {"test": place == 9, "valid": place == 8, "train": place < 8}
    return {name: TensorSplit(**{k: v[rows] for k, v in fields.items()}) for name, rows in parts.items()}


def _read_stories(folder: Path) -> Data:
    """qaN_name_train.txt and qaN_name_test.txt, in the format of the bAbI release: `number text`, questions with tabs."""
    files = sorted(folder.glob("qa*_*_train.txt"), key=lambda p: int(p.name[2:].split("_")[0]))
    if not files:
        raise DataError(
            f"{folder} holds no qaN_*_train.txt; give a language folder of the bAbI release, such as en-10k"
        )
    found: dict[str, list[tuple[list[list[str]], list[str], str, int]]] = {"train": [], "test": []}
    for kind, path in enumerate(files):
        for split, into in found.items():
            into += [(*item, kind) for item in _parse(path.with_name(path.name.replace("_train", f"_{split}")))]
    everything = found["train"] + found["test"]
    vocabulary = ("", *sorted({w for s, q, a, _ in everything for line in (*s, q, [a]) for w in line}))
    lines = max(len(s) for s, _, _, _ in everything)
    words = max(len(line) for s, q, _, _ in everything for line in (*s, q))
    number = {w: i for i, w in enumerate(vocabulary)}
    parts = {name: _tensors(items, number, lines, words) for name, items in found.items()}
    kinds = tuple(f"task_{p.name[2:].split('_')[0]}" for p in files)
    info = {"kinds": kinds, "answers": vocabulary, "words": vocabulary, "multi": False}
    splits = {"train": TensorSplit(**parts["train"]), "test": TensorSplit(**parts["test"])}
    return Data("babi", "questions", splits["train"], splits["test"], splits["test"], info, str(folder))


def _parse(path: Path, most: int = 20) -> list[tuple[list[list[str]], list[str], str]]:
    """(sentences, question, answer) of every question; at most the 20 sentences before it, as in the paper."""
    if not path.is_file():
        raise DataError(f"{path.name} is missing beside its partner")
    story: list[list[str]] = []
    out: list[tuple[list[list[str]], list[str], str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place, found, body = line.partition(" ")
        if not found or not place.isdigit():
            raise DataError(f"{path.name}, line {number}: must start with the sentence's number, not {line[:40]!r}")
        story = [] if place == "1" else story
        text, tab, rest = body.partition("\t")
        words = text.lower().replace(".", " ").replace("?", " ?").split()
        if tab:
            out.append((story[-most:], words, rest.split("\t")[0].lower()))
        else:
            story = [*story, words]
    if not out or not all(s for s, _, _ in out):
        raise DataError(f"{path.name} holds no question, or one before any sentence")
    return out


def _tensors(
    items: list[tuple[list[list[str]], list[str], str, int]], number: dict[str, int], lines: int, words: int
) -> dict[str, Tensor]:
    story = np.zeros((len(items), lines, words), dtype=np.int32)
    question = np.zeros((len(items), 1, words), dtype=np.int32)
    for i, (sentences, asked, _, _) in enumerate(items):
        for j, line in enumerate(sentences):
            story[i, j, : len(line)] = [number[w] for w in line]
        question[i, 0, : len(asked)] = [number[w] for w in asked]
    answer, kind = torch.tensor([[number[a], k] for _, _, a, k in items]).split(1, 1)
    return {"story": torch.from_numpy(story), "question": torch.from_numpy(question), "answer": answer, "kind": kind}
