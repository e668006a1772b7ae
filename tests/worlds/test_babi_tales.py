"""The twenty tasks told at length: every answer is found again from the text, and what supports it suffices."""

from __future__ import annotations

import pytest

from cambrian.data import babi_files
from cambrian.errors import DataError
from cambrian.worlds.babi import oracle, tales


@pytest.mark.parametrize("task", tales.NAMES)
def test_an_independent_reader_of_the_text_finds_every_answer(task: int) -> None:
    told = tales.generate(task, "train", 300, seed=3)
    asked = [(story, question) for story in told for question in story.questions]
    assert len(asked) == 300
    for story, question in asked:
        assert oracle.solve(story.told(question), question.text) == question.answer


@pytest.mark.parametrize("task", [t for t in tales.NAMES if t != 3])
def test_supporting_statements_alone_give_the_answer(task: int) -> None:
    for story in tales.generate(task, "train", 200, seed=4):
        for question in story.questions:
            assert question.support and max(question.support) < question.at
            support = [story.lines[i] for i in sorted(question.support)]
            assert oracle.solve(support, question.text) == question.answer


def test_three_facts_are_the_handling_and_two_arrivals() -> None:
    for story in tales.generate(3, "train", 100):
        for question in story.questions:
            handled, arrived, before = (story.lines[i] for i in question.support)
            thing, place = question.text.split()[3], question.text.split()[-1]
            assert thing in handled.split() and arrived.endswith(place) and before.endswith(question.answer)


@pytest.mark.parametrize("task", tales.NAMES)
def test_splits_share_no_beginning_and_are_reproducible(task: int) -> None:
    parts = {s: tales.generate(task, s, 150) for s in ("train", "valid", "test")}
    starts = {s: {story.told(story.questions[0]) for story in made} for s, made in parts.items()}
    assert not starts["train"] & starts["test"] and not starts["train"] & starts["valid"]
    tales.generate.cache_clear()
    assert tales.generate(task, "train", 150) == parts["train"] != tales.generate(task, "train", 150, seed=1)


def test_lengths_are_those_of_long_tasks() -> None:
    lengths = {t: [q.at for s in tales.generate(t) for q in s.questions] for t in (1, 2, 3)}
    assert max(lengths[1]) == 10 and 30 < max(lengths[2]) < 100 and 80 < max(lengths[3]) < 320


@pytest.mark.parametrize("task", tales.NAMES)
def test_the_release_format_reads_back(task: int) -> None:
    told = tales.generate(task, "test", 60)
    read = babi_files.parse(babi_files.write(told), "file")
    assert [s.lines for s in read] == [s.lines for s in told]
    assert [s.questions for s in read] == [s.questions for s in told]
    assert tales.NAMES[task] in tales.preview(task)


def test_arrays_keep_the_last_statements_and_their_support() -> None:
    told = tales.generate(2, "train", 100)
    words = babi_files.vocabulary(told)
    made = babi_files.arrays(told, words, memory=8)
    asked = [(s, q) for s in told for q in s.questions]
    for i in range(0, 100, 7):
        story, question = asked[i]
        lines = story.told(question)[-8:]
        shown = [" ".join(words[w] for w in row if w) for row in made["story"][i].tolist() if any(row)]
        assert shown == [" ".join(babi_files.words(line)) for line in lines]
        first = max(0, question.at - 8)
        assert made["support"][i].nonzero()[:, 0].tolist() == sorted(
            p - first for p in set(question.support) if p >= first
        )
        assert words[int(made["answer"][i])] == question.answer


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Mary went home.\n", "line 1: must start"),
        ("1 Mary went home.\n", "no question"),
        ("1 Where is Mary?\thome\t1\n", "needs statements"),
        ("1 Mary went home.\n2 Where is Mary? \t\t1\n", "needs statements"),
        ("1 Mary went home.\n2 Where is Mary? \thome\t7\n", "supporting line '7'"),
    ],
)
def test_bad_files_are_typed_errors(text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        babi_files.parse(text, "qa1_train.txt")


def test_unknown_requests_are_typed_errors() -> None:
    for wrong in ((21, "train", 10), (1, "dev", 10), (1, "train", 0)):
        with pytest.raises(DataError):
            tales.generate(*wrong)
    for lines, question in (
        (["Mary sang"], "Where is Mary"),
        ([], "Where is Mary"),
        (["Mary went to the park"], "Who sang"),
    ):
        with pytest.raises(DataError):
            oracle.solve(lines, question)
