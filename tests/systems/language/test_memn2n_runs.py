"""What a user does with memn2n: own folders and texts, actions, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cambrian.data import babi_files
from cambrian.data.source import Source
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.language.memn2n.recipe import Config, MemN2NRecipe
from cambrian.worlds.babi import tales

SMALL = dict(steps=4, batch=8, restarts=2, stories=60, held_out=30, linear_start=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder like the release's, tasks of unequal size."""
    place = tmp_path_factory.mktemp("tasks") / "en"
    place.mkdir()
    for task, n in ((1, 80), (8, 50)):
        for split in ("train", "test"):
            (place / f"qa{task}_some-name_{split}.txt").write_text(babi_files.write(tales.generate(task, split, n)))
    return place


def run(config: Config, source: Source) -> MemN2NRecipe:
    return MemN2NRecipe(config, data=MemN2NRecipe.load_data(config, source), seed=1)


@pytest.mark.parametrize("joint", [False, True])
def test_a_folder_of_the_release_trains_and_is_evaluated_whole(folder: Path, joint: bool) -> None:
    config = Config(**SMALL, tasks=(1, 2, 8), joint=joint)
    recipe = run(config, Source("path", str(folder.parent)))
    assert recipe.data.info["tasks"] == [1, 8]
    test = recipe.data.test[torch.arange(len(recipe.data.test))]
    assert int(test["counted"].sum()) == 130
    loop = Loop(recipe)
    for _ in range(4):
        loop.advance()
    found = evaluate(recipe)
    assert 0 <= found["error"] <= 100 and {"error_1", "error_8"} <= set(found)
    assert len(recipe.errors().rows) == 2
    told = tales.generate(1, "test", 80)
    words = recipe.data.info["words"][0]
    first = " ".join(words[int(w)] for w in test["query"][0, 0] if int(w))
    assert first == told[0].questions[0].text.lower()


def test_actions_show_attention_and_answer_questions() -> None:
    recipe = MemN2NRecipe(Config(**SMALL, tasks=(1, 15)), seed=1)
    with inference(recipe, 0) as generator:
        assert len(recipe.sample(3, generator).lines) == 3
        table = recipe.attention(task=15, n=2)
        assert len(table.rows) == 2 * 9 and sum(r[1] == "yes" for r in table.rows) == 4
        shown = [r for r in table.rows if r[2] != ""][:8]
        assert abs(sum(r[2] for r in shown)) >= 0
        answered = recipe.ask("Mary moved to the garden. John went to the office.", "Where is Mary?")
        assert len(answered.rows) == 3 and answered.rows[-1][0].startswith("Where is Mary?")
        for story, question, task in (
            ("Mary sang.", "Where is Mary?", 1),
            ("", "Where is Mary?", 1),
            ("John went to the office", "Where is John?", 4),
        ):
            with pytest.raises(ConfigError):
                recipe.ask(story, question, task)


def test_text_trains_the_language_model(tmp_path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one two three four five six seven eight nine ten . " * 120)
    config = Config(steps=60, batch=8, latent=16, memory=8, predict=8, words=20, hops=2, lr=0.02)
    loop = Loop(run(config, Source("path", str(file))))
    before = evaluate(loop.recipe)
    for _ in range(60):
        loop.advance()
    after = evaluate(loop.recipe)
    assert after["nats"] < before["nats"] - 0.5 and after["perplexity"] < 12
    with inference(loop.recipe, 0) as generator:
        assert len(loop.recipe.sample(2, generator).lines) == 2
    for action in (loop.recipe.errors, loop.recipe.attention):
        with pytest.raises(CapabilityError):
            action()


def test_bad_sources_are_typed_errors(tmp_path, folder: Path) -> None:
    config = Config(**SMALL, tasks=(1,))
    with pytest.raises(ConfigError, match="babi and stdlib"):
        MemN2NRecipe.load_data(config, Source("world", "ring8"))
    with pytest.raises(DataError, match="none of qaN"):
        MemN2NRecipe.load_data(config, Source("path", str(tmp_path)))
    with pytest.raises(DataError, match="none of qaN"):
        MemN2NRecipe.load_data(Config(**SMALL, tasks=(3,)), Source("path", str(folder)))
    (tmp_path / "qa1_x_train.txt").write_text((folder / "qa1_some-name_train.txt").read_text())
    with pytest.raises(DataError, match="missing beside"):
        MemN2NRecipe.load_data(config, Source("path", str(tmp_path)))
    (tmp_path / "qa1_x_test.txt").write_bytes(b"1 \xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        MemN2NRecipe.load_data(config, Source("path", str(tmp_path)))
