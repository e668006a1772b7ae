"""Tables of what a trained memn2n answers and looks at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cambrian.engine.samples import Table
from cambrian.systems.language.memn2n import _paper, _stories
from cambrian.worlds.babi.tales import NAMES


@torch.no_grad()
def _look(run: Any, group: int, story: Tensor, query: Tensor) -> tuple[str, Tensor]:
    """The answer to one question and the attention [K, S], by the chosen model of a group."""
    model = run.net.member(run.chosen()[group]).eval()
    logits, attention = model(story.to(run.device), query.to(run.device))
    words = run.data.info["words"][group]
    return words[int(logits[0, : len(words)].argmax())], attention[:, 0].cpu()


def _text(row: Tensor, words: tuple[str, ...]) -> str:
    return " ".join(words[int(w)] for w in row if int(w))


def told(run: Any, group: int, i: int) -> str:
    """A test story, its question, the model's answer and the right one."""
    split = run.data.split("test")
    found = split[torch.tensor([i % len(split)])]
    words = run.data.info["words"][group]
    story, query = found["story"][:, group], found["query"][:, group]
    said, _ = _look(run, group, story, query)
    lines = [_text(row, words) for row in story[0] if row.any()]
    return f"{'. '.join(lines)}. {_text(query[0], words)}? {said} (right: {words[int(found['answer'][0, group])]})"


def attention(run: Any, task: int, n: int) -> Table:
    """Sentence by sentence, for the first n test questions of a task."""
    group, split = run.group(task), run.data.split("test")
    words, rows = run.data.info["words"][group], list[list[Any]]()
    place = run.data.info["tasks"].index(task) if task else 0
    fitting = (split[torch.arange(len(split))]["task"][:, group] == place).nonzero()[:n]
    for i in fitting[:, 0]:
        found = split[i[None]]
        story, query = found["story"][:, group], found["query"][:, group]
        said, looked = _look(run, group, story, query)
        for s, row in enumerate(story[0]):
            if row.any():
                mark = "yes" if found["support"][0, group, s] else ""
                rows.append([_text(row, words), mark, *(round(float(p[s]), 2) for p in looked)])
        right = words[int(found["answer"][0, group])]
        rows.append([f"{_text(query[0], words)}? {said} (right: {right})", "", *[""] * len(looked)])
    return Table(["statement", "supports", *(f"hop {k + 1}" for k in range(run.config.hops))], rows)


def ask(run: Any, story: str, question: str, task: int) -> Table:
    """A user's own question: the answer in the last row, attention above it."""
    group = run.group(task)
    words = run.data.info["words"][group]
    lines = [line.strip() for line in story.split(".") if line.strip()]
    said, looked = _look(run, group, *_stories.coded(lines, question, words))
    rows: list[list[Any]] = [[line, *(round(float(p[s]), 2) for p in looked)] for s, line in enumerate(lines)]
    return Table(
        ["statement", *(f"hop {k + 1}" for k in range(len(looked)))],
        [*rows, [f"{question} {said}", *[""] * len(looked)]],
    )


def errors(run: Any, found: dict[str, list[float]]) -> Table:
    """Per cent, per task."""
    rows = [
        [
            t,
            NAMES.get(t, ""),
            round(100 * wrong, 1),
            round(100 * mean, 1),
            round(100 * some, 1),
            _paper.PE_LS_RN[t - 1],
            _paper.LSTM[t - 1],
        ]
        for t, wrong, mean, some in zip(
            run.data.info["tasks"], found["wrong"], found["mean"], found["any_"], strict=True
        )
    ]
    columns = ["task", "name", "error", "mean of restarts", "support seen", "paper, PE LS RN", "paper, LSTM"]
    return Table(columns, rows)
