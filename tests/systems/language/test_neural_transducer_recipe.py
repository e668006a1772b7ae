"""Worlds, training and actions of neural-transducer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cambrian.audio.files import write
from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.loop import Loop, evaluate
from cambrian.engine.samples import Gallery, Plot, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.language.neural_transducer import _worlds
from cambrian.systems.language.neural_transducer._decode import Decoded
from cambrian.systems.language.neural_transducer._judge import Judge, given
from cambrian.systems.language.neural_transducer._steps import scattered
from cambrian.systems.language.neural_transducer.recipe import Config, NeuralTransducerRecipe

SMALL = dict(steps=20, batch=8, hidden=12, size=40)


@pytest.fixture(scope="module")
def sound() -> Data:
    return _worlds.load(Source("world", "phones"), _worlds.Reading(size=40, bands=20, seconds=0.5))


@pytest.fixture(scope="module")
def sums() -> Data:
    return _worlds.load(Source("world", "addition"), _worlds.Reading(size=5000))


def recipe(data: Data, **options: object) -> NeuralTransducerRecipe:
    return NeuralTransducerRecipe(Config(**{**SMALL, **options}), data=data, seed=100)


def batch_of(data: Data, n: int = 8) -> Batch:
    index = torch.arange(n)
    return {**data.train[index], "index": index, "key": sample_keys(0, 0, index)}


# -- worlds ------------------------------------------------------------------------------------------------------------


def test_sums_are_right_and_in_the_order_in_which_they_can_be_known(sums: Data) -> None:
    part = sums.train[torch.arange(500)]
    for x, y, ends in zip(part["x"].argmax(2).tolist(), part["y"].tolist(), part["ends"].tolist(), strict=True):
        text = "".join(_worlds.KEYS[k] for k in x)
        first, second = text[:3], text[4:7]
        assert text[3] + text[7] == "+."
        digits = [d for d in y if d >= 0]
        assert int("".join(map(str, digits[::-1]))) == int(first) + int(second[::-1])
        assert [e for e in ends if e >= 0] == [5, 6, 7, 7][: len(digits)]
    assert set(part["y"][:, 3].tolist()) == {-1, 1}


def test_no_sum_is_in_two_splits(sums: Data) -> None:
    seen = {
        name: {tuple(row) for row in sums.split(name)[torch.arange(1000)]["x"].argmax(2).tolist()}
        for name in ("train", "valid", "test")
    }
    assert all(len(rows) == 1000 for rows in seen.values())
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["valid"] and not seen["valid"] & seen["test"]
    with pytest.raises(ConfigError, match="808000"):
        _worlds.addition(900_000)


def test_phones_end_where_the_labels_change(sound: Data) -> None:
    from cambrian.worlds import phones

    raw = phones.load(train=40, valid=20, test=20, rate=4000, seconds=0.5)
    index = torch.arange(40)
    part, track = sound.train[index], raw.train[index]["phone"]
    for y, ends, labels in zip(part["y"].tolist(), part["ends"].tolist(), track.tolist(), strict=True):
        symbols = [names for names in y if names >= 0]
        expected = [i + 1 for i in range(50) if i == 49 or labels[i + 1] != labels[i]]
        assert ends[: len(symbols)] == expected
        assert [labels[e - 1] for e in expected] == symbols


def test_a_given_alignment_writes_each_symbol_in_the_block_in_which_it_ends() -> None:
    ends = torch.tensor([[4, 8, 9, 20], [3, 5, -1, -1]])
    assert given(ends, torch.tensor([3, 1]), 8, 4).tolist() == [[2, 1, 1], [2, 0, 0]]
    crowded = torch.tensor([[1, 2, 3, 4]])
    assert given(crowded, torch.tensor([3]), 8, 3).tolist() == [[2, 2, 0]]
    with pytest.raises(DataError, match="utterance 0: 2 symbols"):
        given(crowded, torch.tensor([1]), 8, 3)


def test_the_judge_counts_errors_and_delays() -> None:
    judge = Judge(W=8, seconds=0.01)
    judge.add([5, 6, 7], [4, 9, 30], 36, Decoded([5, 7, 7], [0, 2, 4]))
    judge.add([1], [8], 8, Decoded([1], [0]))
    found = judge.figures()
    assert found["error_rate"] == pytest.approx(1 / 4)
    assert found["sequence_error"] == 0.5
    assert found["latency_ms"] == pytest.approx((40 + 60 + 0) / 3)  # 8 - 4, 36 - 30 (the utterance ends), 8 - 8 frames
    assert found["prompt"] == 1.0
    late = Judge(W=1, seconds=1.0)
    late.add([1, 2], [3, 3], 9, Decoded([1, 2], [3, 4]))
    assert late.figures()["prompt"] == 0.5


def folder(path: Path, n: int = 12) -> Path:
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        write(path / f"{i % 10}_anna_{i}.wav", 0.1 * torch.randn(1200 + 40 * i, generator=generator), 4000)
    return path


def test_a_folder_of_recordings_is_spelled_and_joined(tmp_path: Path) -> None:
    path = folder(tmp_path)
    data = _worlds.load(Source("path", str(path)), _worlds.Reading(bands=20))
    names = data.info["symbols"]
    part = data.train[torch.arange(len(data.train))]
    words = {"".join(names[s] for s in row if s >= 0) for row in part["y"].tolist()}
    assert words <= set(_worlds.DIGITS)
    assert not data.info["ends"] and (part["ends"] == -1).all()
    joined = _worlds.load(Source("path", str(path)), _worlds.Reading(bands=20, join=3))
    part = joined.train[torch.arange(20)]
    texts = ["".join(names[s] for s in row if s >= 0).split(" ") for row in part["y"].tolist()]
    assert {len(t) for t in texts} == {1, 2, 3}
    assert all(set(t) <= set(_worlds.DIGITS) for t in texts)
    assert part["x"].shape[1] == int(part["frames"].max()) <= joined.info["max_frames"]
    assert int((part["y"] >= 0).sum(1).max()) <= joined.info["max_symbols"]
    again = joined.train[torch.tensor([7])]
    assert torch.equal(again["x"][0], part["x"][7, : int(again["frames"])])


def test_lab_files_give_alignments(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    lines = ["file,phones"]
    for i in range(4):
        (tmp_path / f"{i}.lab").write_text("0 0.1 a\n0.1 0.2 n\n0.2 0.5 i\n")
        lines.append(f"{i}_anna_{i}.wav,{i}.lab")
    (tmp_path / "meta.csv").write_text("\n".join(lines))
    data = _worlds.load(Source("path", str(tmp_path)), _worlds.Reading(bands=20))
    part = data.train[torch.tensor([0])]
    assert [data.info["symbols"][s] for s in part["y"][0].tolist()] == ["a", "n", "i"]
    assert part["ends"][0, :2].tolist() == [10, 20]
    run = recipe(data)
    assert not run.searched
    assert run._known(part)[0, :3].tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match="join"):
        _worlds.load(Source("path", str(tmp_path)), _worlds.Reading(join=2))


def test_text_is_spelled_out() -> None:
    assert _worlds.spelled("7") == "seven"
    assert _worlds.spelled("Room 42 is open") == "room four two is open"


def test_unusable_sources_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="phones, addition"):
        _worlds.load(Source("world", "faces"), _worlds.Reading())
    with pytest.raises(DataError):
        _worlds.load(Source("path", str(tmp_path)), _worlds.Reading())
    for i in range(4):
        write(tmp_path / f"take{i}.wav", torch.zeros(800), 4000)
    with pytest.raises(DataError, match="no transcripts"):
        _worlds.load(Source("path", str(tmp_path)), _worlds.Reading())
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="raise seconds"):
        _worlds.load(Source("path", str(folder(tmp_path / "x"))), _worlds.Reading(seconds=0.1))


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alignments": "search", "attention": "mlp", "end": "logistic"},
        {"attention": "dot", "end": "none", "upper_layers": 2, "optimiser": "sgd", "lr": 0.05},
        {"attention": "none", "independent": True, "encoder_reset": True},
        {"model": "whole", "attention": "mlp", "bidirectional": True, "encoder_layers": 2},
    ],
)
def test_every_parameter_learns_and_the_loss_falls(sound: Data, options: dict[str, object]) -> None:
    run = recipe(sound, batch=16, **options)
    loop = Loop(run)
    first = evaluate(run, "valid")["loss"]
    for _ in range(12):
        loop.advance()
    for name, parameter in run.model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    assert evaluate(run, "valid")["loss"] < first


def test_scattered_alignments_write_everything_and_reach_every_block() -> None:
    lengths, blocks = torch.tensor([4, 2, 0, 6]), torch.tensor([4, 3, 1, 2])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([scattered(lengths, blocks, 4, generator) for _ in range(400)])
    assert torch.equal(draws.sum(2), lengths.expand(400, -1))
    assert int(draws.max()) == 3
    expected = [[1.0] * 4, [2 / 3] * 3 + [0.0], [0.0] * 4, [3.0, 3.0, 0.0, 0.0]]
    torch.testing.assert_close(draws.double().mean(0), torch.tensor(expected).double(), atol=0.15, rtol=0)


def test_alignments_are_scattered_before_they_are_searched(sums: Data) -> None:
    run = recipe(sums, scatter=0.1)  # of 20 steps
    batch = batch_of(sums)
    searched = []
    for run.iteration in range(3):
        searched.append(run.step(batch)["searched"])
    assert searched == [0.0, 0.0, 1.0]


def test_found_alignments_are_kept_and_searched_again_when_they_are_old(sums: Data) -> None:
    run = recipe(sums, refresh=24, scatter=0.0)
    batch = batch_of(sums)
    searched = []
    for run.iteration in range(6):
        searched.append(run.step(batch)["searched"])
    assert searched == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert (run.extra["found"] >= 0).sum() == 8
    kept = run.extra["counts"][:8].long()
    assert torch.equal(kept.sum(1), (batch["y"] >= 0).sum(1))


def test_addition_is_learned_in_part_with_alignments_it_finds_itself(sums: Data) -> None:
    run = recipe(sums, hidden=32, batch=32, steps=60, lr=1e-2, refresh=5000)
    assert (run.model.W, run.model.M) == (1, 8)
    loop, before = Loop(run), evaluate(run, "valid")
    for _ in range(60):
        loop.advance()
    after = evaluate(run, "valid")
    assert after["loss"] < 0.7 * before["loss"]
    assert after["error_rate"] < 0.95


@pytest.fixture(scope="module")
def trained(sound: Data) -> NeuralTransducerRecipe:
    run = recipe(sound, hidden=24, batch=16, lr=1e-2, steps=40)
    loop = Loop(run)
    for _ in range(40):
        loop.advance()
    run.model.eval()
    return run


def test_actions_show_what_the_model_does(trained: NeuralTransducerRecipe, tmp_path: Path) -> None:
    table = trained.sample(3, torch.Generator().manual_seed(0))
    assert isinstance(table, Table) and len(table.rows) == 3
    streamed = trained.stream(utterance=2, piece=3)
    batch = trained._utterance(2)
    whole = trained.model.decode(batch["x"])[0]
    assert "".join(row[0] for row in streamed.rows) == "".join(trained.data.info["symbols"][s] for s in whole.symbols)
    assert [row[1] for row in streamed.rows] == sorted(row[1] for row in streamed.rows)
    wav = write(tmp_path / "mine.wav", 0.1 * torch.randn(3000, generator=torch.Generator().manual_seed(0)), 8000)
    assert isinstance(trained.stream(wav=str(wav)), Table)
    gallery = trained.latency(n=10)
    assert isinstance(gallery, Gallery)
    figures = dict(gallery.items["figures"].rows)
    whole_figures = evaluate(trained)
    assert figures["block_compute_ms"] > 0 and whole_figures["error_rate"] >= 0
    picture = trained.alignment(n=2)
    assert isinstance(picture, Plot)
    files = picture.save(tmp_path, "grid") + gallery.save(tmp_path, "latency")
    assert {path.suffix for path in files} == {".png", ".csv"}
    assert all(path.stat().st_size > 1000 for path in files if path.suffix == ".png")


def test_bad_requests_are_typed_errors(
    trained: NeuralTransducerRecipe, sound: Data, sums: Data, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="utterance"):
        trained.stream(utterance=1000)
    with pytest.raises(ConfigError, match="piece"):
        trained.stream(piece=0)
    with pytest.raises(DataError):
        trained.stream(wav=str(tmp_path / "none.wav"))
    with pytest.raises(CapabilityError, match="characters"):
        recipe(sums).stream(wav="x.wav")
    whole = recipe(sound, model="whole", attention="mlp", bidirectional=True)
    with pytest.raises(CapabilityError, match="offline"):
        whole.alignment()
    with pytest.raises(CapabilityError, match="stream"):
        whole.stream()
    with pytest.raises(ConfigError, match="no end of block"):
        recipe(sound, end="none", alignments="search")
    for options in ({"model": "whole"}, {"model": "whole", "attention": "mlp", "block": 4}):
        with pytest.raises(ConfigError):
            Config(**options)


def test_data_without_ends_is_searched(tmp_path: Path) -> None:
    data = _worlds.load(Source("path", str(folder(tmp_path))), _worlds.Reading(bands=20))
    run = recipe(data, batch=4, scatter=0.0)
    assert run.searched
    assert run.step(batch_of(data, 4))["searched"] == 1.0
    figures = evaluate(run)
    assert "latency_ms" not in figures and figures["error_rate"] > 0
    with pytest.raises(CapabilityError, match="latency"):
        run.latency()
    with pytest.raises(ConfigError, match="ends"):
        recipe(data, alignments="given")
