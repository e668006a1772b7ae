"""Stories with questions: as text in the format of the bAbI release, and as padded arrays.

A line of the format is `number statement.` or `number question? <tab> answer <tab> numbers of the supporting lines`; the numbers
begin again at 1 with every story. A folder holds `qaN_name_train.txt` and `qaN_name_test.txt`.

Shapes: N questions, S sentences, J words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.data.source import Source
from cambrian.errors import DataError


@dataclass(frozen=True)
class Question:
    """Asked after the first `at` statements; `support` are positions (from 0) of the statements from which the answer follows."""

    text: str
    answer: str
    support: tuple[int, ...]
    at: int


@dataclass(frozen=True)
class Story:
    """Statements without full stops, and the questions between them."""

    lines: tuple[str, ...]
    questions: tuple[Question, ...]

    def told(self, question: Question) -> tuple[str, ...]:
        """The statements before a question."""
        return self.lines[: question.at]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; a list of things (`apple,milk`) stays one word."""
    return text.lower().replace(".", " ").replace("?", " ").split()


def write(stories: Iterable[Story]) -> str:
    """Stories in the release's format."""
    out: list[str] = []
    for story in stories:
        number, place = 0, list[int]()
        for position in range(len(story.lines) + 1):
            for asked in (q for q in story.questions if q.at == position):
                number += 1
                support = " ".join(str(place[i]) for i in asked.support)
                out.append(f"{number} {asked.text}? \t{asked.answer}\t{support}")
            if position < len(story.lines):
                number += 1
                place.append(number)
                out.append(f"{number} {story.lines[position]}.")
    return "\n".join(out) + "\n"


def parse(text: str, name: str) -> list[Story]:
    """The stories of a text in the release's format. `DataError` names the line that cannot be read."""
    found: list[Story] = []
    lines: list[str] = []
    questions: list[Question] = []
    place: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        head, space, body = line.strip().partition(" ")
        if not space or not head.isdigit():
            raise DataError(f"{name}, line {number}: must start with the line's number, not {line[:40]!r}")
        if head == "1" and lines:
            found.append(Story(tuple(lines), tuple(questions)))
            lines, questions, place = [], [], {}
        if "\t" in body:
            questions.append(_question(body, len(lines), place, f"{name}, line {number}"))
        else:
            place[head] = len(lines)
            lines.append(body.strip().rstrip("."))
    found.append(Story(tuple(lines), tuple(questions)))
    if not any(story.questions for story in found):
        raise DataError(f"{name} holds no question; a question has a tab before its answer")
    return found


def _question(body: str, at: int, place: dict[str, int], where: str) -> Question:
    text, answer, *rest = [part.strip() for part in body.split("\t")]
    if not answer or not at:
        raise DataError(f"{where}: a question needs statements before it and an answer after a tab, not {body[:60]!r}")
    support = rest[0].split() if rest else []
    unknown = [s for s in support if s not in place]
    if unknown:
        raise DataError(f"{where}: supporting line {unknown[0]!r} is no statement of this story")
    return Question(text.rstrip("?").strip(), answer.lower(), tuple(place[s] for s in support), at)


def read_folder(source: Source, tasks: Sequence[int]) -> dict[int, tuple[list[Story], list[Story]]]:
    """Training and test stories of the tasks that the folder has, by number.

    The folder is a language folder of the release (`en`, `en-10k`), or the one above, of which `en` is read.
    """
    if source.kind != "path" or not source.path.is_dir():
        raise DataError(f"{source} is no folder; give a language folder of the bAbI release, such as en or en-10k")
    folder = source.path / "en" if (source.path / "en").is_dir() else source.path
    found: dict[int, tuple[list[Story], list[Story]]] = {}
    for path in sorted(folder.glob("qa*_train.txt")):
        head = path.name[2:].split("_")[0]
        if head.isdigit() and int(head) in tasks:
            test = path.with_name(path.name.replace("_train.txt", "_test.txt"))
            found[int(head)] = (_read(path), _read(test))
    if not found:
        raise DataError(f"{folder} holds none of qaN_*_train.txt for N in {', '.join(map(str, tasks))}")
    return dict(sorted(found.items()))


def _read(path: Path) -> list[Story]:
    if not path.is_file():
        raise DataError(f"{path.name} is missing beside its partner")
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start})") from None


def vocabulary(stories: Iterable[Story]) -> tuple[str, ...]:
    """All words, questions' and answers' included, in alphabetical order after the null word at 0."""
    found: set[str] = set()
    for story in stories:
        for line in story.lines:
            found.update(words(line))
        for asked in story.questions:
            found.update((*words(asked.text), asked.answer))
    return ("", *sorted(found))


def arrays(stories: Sequence[Story], vocabulary: Sequence[str], memory: int) -> dict[str, Tensor]:
    """One row a question: `story` int16 [N, S, J] with the last `memory` statements in order of telling, `query` [N, J],
    `answer` int64 [N], `support` bool [N, S]. 0 pads words; rows of 0 after the last statement pad stories.
    """
    number = {word: i for i, word in enumerate(vocabulary)}
    coded = [[[number[w] for w in words(line)] for line in story.lines] for story in stories]
    rows = [(i, asked, [number[w] for w in words(asked.text)]) for i, s in enumerate(stories) for asked in s.questions]
    length = max(min(asked.at, memory) for _, asked, _ in rows)
    width = max(*(len(line) for lines in coded for line in lines), *(len(asked) for _, _, asked in rows))
    story = np.zeros((len(rows), length, width), dtype=np.int16)
    query = np.zeros((len(rows), width), dtype=np.int16)
    support = np.zeros((len(rows), length), dtype=bool)
    for row, (i, asked, text) in enumerate(rows):
        first = max(0, asked.at - memory)
        for s, line in enumerate(coded[i][first : asked.at]):
            story[row, s, : len(line)] = line
        query[row, : len(text)] = text
        support[row, [p - first for p in asked.support if p >= first]] = True
    answer = torch.tensor([number[asked.answer] for _, asked, _ in rows])
    found = {"story": story, "query": query, "support": support}
    return {**{name: torch.from_numpy(value) for name, value in found.items()}, "answer": answer}
