from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cambrian.data import text_files
from cambrian.data.source import Source
from cambrian.data.split import Data
from cambrian.engine.loop import Loop, evaluate, fit
from cambrian.engine.samples import Curves, Gallery, Images, Table, Texts
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.systems.perception.recurrent import _look, _play, _search, _tasks
from cambrian.systems.perception.recurrent.model import (
    SequenceModel,
    class_loss,
    draw_keys,
    draw_symbols,
    key_loss,
    matched_width,
    value_loss,
)
from cambrian.systems.perception.recurrent.recipe import CLAIM, Config, RecurrentRecipe
from cambrian.worlds import chorales

TEXT = "".join(f"{i} green bottles hanging on the wall\n" for i in range(120))


def run(data: str | Data = "latch", *, seed: int = 100, updates: int = 0, **options: object) -> RecurrentRecipe:
    config = Config(**{"hidden": 8, "batch": 4, "steps": max(1, updates), **options})
    found = RecurrentRecipe.load_data(config, Source("world", data)) if isinstance(data, str) else data
    loop = Loop(RecurrentRecipe(config, data=found, seed=seed))
    fit(loop, updates)
    return loop.recipe


def text(length: int = 8) -> Data:
    return text_files.from_parts("text", text_files.cut(TEXT, "text"), length=length)


def music() -> Data:
    """Scales of a common triad in place of the chorales, so that no extra is needed."""
    pieces = []
    for start in range(12):
        notes = [(0, 24 * t, 24, 48 + start + t) for t in range(6 + start % 3)]
        pieces.append(torch.tensor(notes + [(1, 24 * t, 24, 55 + start + t) for t in range(6)]).numpy())
    splits = {
        name: chorales.pack(part, "quarter", parts=2)
        for name, part in zip(("train", "valid", "test"), (pieces[:8], pieces[8:10], pieces[10:]))
    }
    return Data("scales", "music", splits["train"], splits["valid"], splits["test"], {"shape": (88,)})


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _tasks.TASKS)
def test_tasks_are_pure_functions_of_the_index(name: str) -> None:
    data = _tasks.load(name)
    index = torch.tensor([5, 0, 9])
    batch, alone = data.train[index], data.train[torch.tensor([9])]
    for field, value in batch.items():
        assert torch.equal(value[2:], alone[field])
        assert not torch.equal(value, data.test[index][field]) or field == "closing"
    if name != "adding":
        assert int(batch["x"].min()) >= 0
        assert int(batch["x"].max()) < len(data.info["symbols"])
        assert int(batch["y"].max()) < data.info["outputs"]


def test_latch_and_copy_ask_for_what_was_shown() -> None:
    batch = _tasks.load("latch", 20).train[torch.arange(300)]
    assert batch["x"].shape == (300, 20)
    assert torch.equal(batch["y"][:, -1], batch["x"][:, 0])
    assert (batch["y"][:, :-1] == -1).all()
    assert set(batch["x"][:, 0].tolist()) == set(range(8))
    assert set(batch["x"][:, 1:].flatten().tolist()) == set(range(8, 16))
    copied = _tasks.load("copy", 7).train[torch.arange(50)]
    assert torch.equal(copied["y"][:, -5:], copied["x"][:, :5])
    assert (copied["y"][:, :-5] == -1).all()


def test_adding_marks_one_number_of_each_half() -> None:
    batch = _tasks.load("adding", 11).train[torch.arange(2000)]
    values, marks = batch["x"].unbind(2)
    assert (marks[:, :5].sum(1) == 1).all()
    assert (marks[:, 5:].sum(1) == 1).all()
    torch.testing.assert_close((values * marks).sum(1, keepdim=True), batch["y"])
    assert float((batch["y"] - 1).square().mean()) == pytest.approx(1 / 6, abs=0.02)


def test_arithmetic_is_right() -> None:
    batch, symbols = _tasks.load("arithmetic", 2).train[torch.arange(200)], _tasks.ARITHMETIC
    operators = set()
    for x, y in zip(batch["x"], batch["y"], strict=True):
        read = "".join(symbols[i] for i in x)
        asked = y >= 0
        question, _, given = read.partition(".")
        answer = "".join(symbols[i] for i in y[asked])
        assert answer[-1] == "."
        assert (given.strip() + ".").startswith(answer[:-1])
        plain = "".join(c for c in question if c not in _tasks.DISTRACTORS)
        operator = "+" if "+" in plain else "-"
        operators.add(operator)
        a, b = map(int, plain.split(operator))
        assert int(answer[:-1]) == (a + b if operator == "+" else a - b)
        assert int(asked.nonzero()[0]) == len(question)  # the first character is asked for at the point
        assert asked.sum() == len(answer)
    assert operators == {"+", "-"}


def test_xml_closes_what_it_opens() -> None:
    batch = _tasks.load("xml", 120).train[torch.arange(30)]
    for x, y, closing in zip(batch["x"], batch["y"], batch["closing"], strict=True):
        assert torch.equal(x[1:], y[:-1])
        document, names = "".join(_tasks.XML[i] for i in x), []
        for tag in document.split(" ")[:-1]:
            if tag.startswith("</"):
                assert names.pop() == tag[2:-1]
            else:
                names.append(tag[1:-1])
            assert len(names) <= 4
        certain = "".join(_tasks.XML[i] for i in y[closing])
        assert set(certain) <= set("abcdefghijklmnopqrstuvwxyz>")
        assert bool(closing.any())


def test_tasks_refuse_what_they_cannot_make() -> None:
    with pytest.raises(ConfigError, match="latch"):
        _tasks.load("latc")
    with pytest.raises(ConfigError, match="at least 2"):
        _tasks.load("latch", 1)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_written_out() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(4, 2, 3), torch.tensor([[0, -1], [2, 1], [-1, -1], [1, 0]])
    expected = [
        float(logits[t, b].log_softmax(0)[target[t, b]]) for t in range(4) for b in range(2) if target[t, b] >= 0
    ]
    total, count = class_loss(logits, target)
    assert float(total) == pytest.approx(-sum(expected), rel=1e-5)
    assert int(count) == 5
    keys, roll, lengths = torch.randn(4, 2, 3), torch.randint(0, 2, (4, 2, 3)).float(), torch.tensor([4, 2])
    p = torch.sigmoid(keys)
    each = -(roll * p.log() + (1 - roll) * (1 - p).log()).sum(2)
    total, count = key_loss(keys, roll, lengths)
    assert float(total) == pytest.approx(float(each[:, 0].sum() + each[:2, 1].sum()), rel=1e-5)
    assert int(count) == 6
    total, count = value_loss(torch.tensor([[[9.0]], [[1.0]]]), torch.tensor([[3.0]]))
    assert (float(total), int(count)) == (4.0, 1)


def test_an_untrained_model_knows_nothing() -> None:
    """The loss before training is that of guessing: log 8 for the latch, 88 log 2 for rolls."""
    assert evaluate(run("latch"))["loss"] == pytest.approx(2.08, abs=0.1)
    assert evaluate(run(music()))["loss"] == pytest.approx(61.0, abs=2.5)


def test_widths_match_parameters() -> None:
    for cell in ("tanh", "gru", "lstm", "mut1"):
        model = run("latch", hidden=None, parameters=3000, cell=cell).model
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(3000, rel=0.05)
    assert matched_width(50, lambda h: h * h) == 7


# -- reading text in order -----------------------------------------------------------------------------------------


def test_windows_follow_each_other_and_carry_the_state() -> None:
    recipe = run(text(), batch=4)
    seen, states = [], []
    for turn in range(recipe._turns(4) + 1):
        recipe.iteration = turn
        x, y, _, state = recipe._next_window(4)
        seen.append(x)
        states.append(state)
        assert torch.equal(x[1:], y[:-1])
        recipe.extra["state"] = recipe.model(x)[1]
    stream = torch.cat(seen[:-1])
    tokens, per_lane = recipe.data.train.tokens, (len(recipe.data.train.tokens) - 1) // 4
    for lane in range(4):
        assert torch.equal(stream[:, lane], tokens[lane * per_lane : lane * per_lane + len(stream)])
    assert torch.equal(seen[-1], seen[0])
    assert states[0] is None
    assert states[-1] is None
    assert all(s is not None for s in states[1:-1])


def test_carrying_equals_one_long_sequence_with_a_cut_gradient() -> None:
    recipe = run(text(), batch=4, lr=0.0)
    whole: list[Tensor] = []
    for turn in range(3):
        recipe.iteration = turn
        recipe.step({"tokens": torch.zeros(4, 9, dtype=torch.int64)})
        whole.append(recipe.extra["state"][0][0])
        assert not whole[-1].requires_grad
    per_lane = (len(recipe.data.train.tokens) - 1) // 4
    x = torch.stack([recipe.data.train.tokens[lane * per_lane : lane * per_lane + 24] for lane in range(4)], 1)
    _, state = recipe.model(x)
    torch.testing.assert_close(whole[-1], state[0][0].detach())


def test_a_texts_loss_is_that_of_its_streams() -> None:
    recipe = run(text())
    found = evaluate(recipe)
    tokens = recipe.data.test.tokens
    lanes = max(1, min(16, (len(tokens) - 1) // 64))
    per_lane = (len(tokens) - 1) // lanes
    total = 0.0
    with torch.no_grad():
        recipe.model.eval()
        for lane in range(lanes):
            part = tokens[lane * per_lane : lane * per_lane + per_lane + 1]
            total += float(class_loss(recipe.model(part[:-1, None])[0], part[1:, None])[0])
    assert found["loss"] == pytest.approx(total / lanes / per_lane, rel=1e-5)
    assert found["bits"] == pytest.approx(found["loss"] / 0.693147, rel=1e-5)


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "mut1", "h' = tanh(W @ x + U @ h + b)"])
def test_tasks_are_learnt(cell: str) -> None:
    before, after = (evaluate(run("latch", length=4, hidden=16, batch=32, updates=n, cell=cell)) for n in (0, 150))
    assert before["accuracy"] < 0.3
    assert after["accuracy"] > 0.8


def test_training_stops_where_it_is_told() -> None:
    recipe = run("latch", length=3, hidden=16, batch=32, until=0.9, updates=400, steps=400)
    reached = recipe.extra["reached"]
    assert 10 <= reached < 400
    assert evaluate(recipe)["updates"] == reached
    assert evaluate(recipe)["accuracy"] > 0.85
    same = run("latch", length=3, hidden=16, batch=32, updates=reached, steps=400)
    for ours, theirs in zip(recipe.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # nothing was learnt after that
    assert evaluate(same)["updates"] == 400  # never asked to stop: the cap


def test_the_sabotage_undoes_the_forget_bias() -> None:
    biased, plain = run("latch", **CLAIM.arms["bias-1"].overrides), run("latch", **CLAIM.arms["bias-0"].overrides)
    broken = run("latch", **CLAIM.sabotage.overrides)
    bias = biased.model.rnn.cells[0].input.bias
    assert bias.detach().view(4, -1).mean(1).tolist() == [0, 0, 1, 0]
    for name, parameter in broken.model.named_parameters():
        assert not parameter.any() if name.endswith("rnn.cells.0.input.bias") else True
        if "bias" not in name:
            assert torch.equal(parameter, plain.model.get_parameter(name))


def test_a_cut_gradient_does_not_reach_the_first_symbol() -> None:
    recipe = run("latch", length=8, truncate=5)
    x, y, lengths, _ = recipe._arranged(recipe.data.train[torch.arange(4)])
    seen = recipe.model.read(x).requires_grad_()
    recipe.model.read = lambda _: seen
    outputs, _ = recipe.model(x, lengths=lengths, detach_every=5)
    (gradient,) = torch.autograd.grad(class_loss(outputs, y)[0], seen)
    assert not gradient[:5].any()
    assert gradient[5:].any()


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 2, "residual": True, "zoneout": 0.1},
        {"bidirectional": True, "variational": 0.2},
        {"embed": 5, "dropout": 0.2},
    ],
)
def test_options_train(options: dict[str, object]) -> None:
    recipe = run("copy", length=5, updates=3, **options)
    for name, parameter in recipe.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


# -- what it shows -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer() -> RecurrentRecipe:
    return run(text(16), hidden=24, batch=8, updates=150, lr=1e-2)


def test_a_trained_writer_writes_what_it_read(writer: RecurrentRecipe) -> None:
    assert evaluate(writer)["bits"] < 1.5
    found = writer.complete("7 green", characters=60, temperature=0.0)
    assert isinstance(found, Texts)
    assert found.lines[0].startswith("7 green")
    assert "bottles" in found.lines[0]
    sampled = writer.sample(2, torch.Generator().manual_seed(0))
    assert len(sampled.lines) == 2
    again = writer.sample(2, torch.Generator().manual_seed(0))
    assert sampled.lines == again.lines != writer.sample(2, torch.Generator().manual_seed(1)).lines


def test_samples_of_every_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    for task, kind in (("latch", Table), ("adding", Table), ("arithmetic", Table), ("copy", Table), ("xml", Texts)):
        shown = run(task).sample(3, generator)
        assert isinstance(shown, kind)
        assert len(shown.rows if kind is Table else shown.lines) == 3
    rolls = run(music()).sample(2, generator)
    assert isinstance(rolls, Images)
    assert rolls.tensor.shape == (2, 1, 88, 64)


def test_music_is_heard_at_its_pitches() -> None:
    roll = torch.zeros(4, 88)
    roll[:2, 48] = roll[2:, 60] = 1  # a' = 440 Hz, then the octave above
    wave = _play.render(roll, rate=4000, seconds=0.25)
    assert wave.shape == (4000,)
    assert float(wave.abs().max()) <= 0.81
    for half, pitch in ((wave[:2000], 440), (wave[2000:], 880)):
        assert abs(int(torch.fft.rfft(half).abs().argmax()) * 2 - pitch) <= 2
    assert run(music()).listen(n=2, steps=3).waves.shape == (2, 3 * 3200)
    with pytest.raises(CapabilityError, match="music"):
        run("latch").listen()


def test_generation_agrees_with_teacher_forcing() -> None:
    torch.manual_seed(0)
    model = SequenceModel(symbols=5, outputs=5, hidden=6, layers=2)
    made = model.generate(torch.tensor([[1, 2]]), 6, draw_symbols(0.0, torch.Generator()))
    outputs, _ = model(torch.cat((torch.tensor([[1, 2]]), made[:-1])))
    assert torch.equal(outputs.argmax(-1), made)
    player = SequenceModel(inputs=4, outputs=4, hidden=6)
    made = player.generate(torch.zeros(1, 2, 4), 5, draw_keys(0.0, torch.Generator()))
    outputs, _ = player(torch.cat((torch.zeros(1, 2, 4), made[:-1])))
    assert torch.equal((outputs > 0).float(), made)


@pytest.mark.parametrize("cell", ["lstm", "gru", "lstm-peephole", "mut2"])
def test_gates_are_read_off_the_cell(cell: str) -> None:
    recipe = run("latch", length=5, cell=cell)
    shown = recipe.gates(n=7)
    assert isinstance(shown, Gallery)
    for _, shares in shown.items["histogram"].lines.values():
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    values = _look.gate_values(recipe.model, *recipe._test(7)[::2])
    assert all(len(v) == 5 * 7 * 8 for v in values.values())
    assert set(values) == ({"i", "f", "o"} if "lstm" in cell else {"r", "z"})
    if cell == "lstm":
        assert float((values["f"] > 0.5).float().mean()) > 0.9  # the forget bias of 1


def test_gates_that_are_not_there() -> None:
    with pytest.raises(CapabilityError, match="no gate"):
        run("latch", cell="tanh").gates()
    with pytest.raises(CapabilityError, match="zoneout"):
        run("latch", zoneout=0.1).gates()


@pytest.mark.parametrize("data", ["latch", "adding", "music"])
def test_gradient_norms_equal_those_by_hand(data: str) -> None:
    recipe = run(music() if data == "music" else data, cell="tanh", layers=2)
    x, y, _ = recipe._test(2)
    norms = _look.gradient_norms(recipe.model, x, y, recipe.task)
    model = recipe.model
    first, second = model.rnn.cells
    state, states = (torch.zeros(2, 8),), []
    for projected in first.project(model.read(x)):
        _, state = first.step(projected, state)
        states.append(state[0])
    h = (torch.zeros(2, 8),)
    for projected in second.project(torch.stack(states)):
        _, h = second.step(projected, h)
    loss = _look.last_loss(model.head(h[0])[None], y, recipe.task)
    expected = [g.square().sum(1).mean().sqrt() for g in torch.autograd.grad(loss, states)]
    torch.testing.assert_close(norms[0], torch.stack(expected).detach(), rtol=1e-4, atol=1e-7)
    shown = recipe.gradients(n=2, lags=3)
    assert isinstance(shown, Curves)
    assert len(shown.lines["h"][0]) == 3
    assert set(run("latch").gradients(n=2).lines) == {"h", "c"}
    with pytest.raises(CapabilityError, match="bidirectional"):
        run("latch", bidirectional=True).gradients(n=2)


def test_the_table_gives_every_cell_as_many_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = _search.evaluate
    monkeypatch.setattr(
        _search,
        "evaluate",
        lambda r, split: sizes.append(sum(p.numel() for p in r.model.parameters())) or plain(r, split),
    )
    recipe = run("latch", length=4)
    with torch.no_grad():  # as actions are run
        found = recipe.table(cells="tanh,lstm,mut1", updates=2, tasks="latch,xml")
    assert found.columns == ["cell", "latch loss", "latch accuracy", "xml loss", "xml accuracy"]
    assert [row[0] for row in found.rows] == ["tanh", "lstm", "mut1"]
    assert all(abs(s - sum(p.numel() for p in recipe.model.parameters())) < 90 for s in sizes[::2])
    with pytest.raises(ConfigError, match="lsmt"):
        recipe.table(cells="lsmt")


def test_changed_equations_still_read() -> None:
    from cambrian.nn.cells import lstm_equations, make_cell
    from cambrian.nn.cells.equations import read_lines

    generator, kept, texts = torch.Generator().manual_seed(0), 0, set()
    for start in (_search.GRU, lstm_equations()):
        text_now = start
        for _ in range(60):
            text_now = _search.mutate(text_now, generator)
            assert read_lines(text_now)
            texts.add(text_now)
            try:
                cell = make_cell(text_now, inputs=2, hidden=3)
            except ConfigError:
                text_now = start
                continue
            kept += 1
            out, _ = cell.step(tuple(p[0] for p in cell.project(torch.randn(1, 2, 2))), cell.initial(2, torch.zeros(1)))
            assert out.shape == (2, 3)
            if len(text_now) > 500:
                text_now = start
    assert kept > 60
    assert len(texts) > 80


def test_the_search_ranks_what_can_remember() -> None:
    recipe = run("latch", length=5, hidden=12, batch=32)
    with torch.no_grad():
        found = recipe.search(candidates=3, updates=20)
    scores = [row[0] for row in found.rows[:-1]]
    assert scores == sorted(scores, reverse=True)
    assert {row[1] for row in found.rows} >= {"gru", "lstm", "left out"}
    assert found.columns[0] == "accuracy"
    with pytest.raises(ConfigError):
        recipe.search(candidates=0)


# -- data and bad requests -----------------------------------------------------------------------------------------


def test_a_users_text_is_read_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.write_text(TEXT)
    config = Config(hidden=8, length=16, batch=4, steps=2)
    data = RecurrentRecipe.load_data(config, Source("path", str(path)))
    loop = Loop(RecurrentRecipe(config, data=data, seed=100))
    fit(loop, 2)
    assert len(loop.recipe.complete("ten", characters=5).lines[0]) == 8
    words = RecurrentRecipe.load_data(dataclasses.replace(config, level="words", length=8), Source("path", str(path)))
    recipe = RecurrentRecipe(dataclasses.replace(config, level="words"), data=words, seed=0)
    assert evaluate(recipe)["perplexity"] == pytest.approx(len(words.info["symbols"]), rel=0.2)
    assert recipe.complete("green bottles", characters=3).lines


def test_bad_requests_are_refused() -> None:
    for options in (
        {"hidden": 8, "parameters": 100},
        {"cell": "gru", "forget_bias": 1.0},
        {"cell": "lstm-f", "forget_bias": 1.0},
        {"cell": "lstm", "update_bias": 1.0},
    ):
        with pytest.raises(ConfigError):
            Config(**options)
    for data in ("xml", "arithmetic", text()):
        with pytest.raises(ConfigError, match="bidirectional"):
            run(data, bidirectional=True)
    with pytest.raises(ConfigError, match="cells"):
        run("latch", cell="lsmt")
    with pytest.raises(ConfigError, match="latch"):
        run("ring8")
    with pytest.raises(CapabilityError, match="text"):
        run("latch").complete("a")
    model = SequenceModel(symbols=4, outputs=4, hidden=3)
    for bad in (torch.zeros(2, 2), torch.full((2, 2), 4), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ShapeError):
            model(bad)
    with pytest.raises(ConfigError):
        SequenceModel(symbols=4, inputs=4, outputs=4)


def test_weights_round_trip(tmp_path: Path) -> None:
    model = run("latch", layers=2, forget_bias=2.0).model
    model.save_pretrained(tmp_path)
    x = torch.randint(16, (5, 2))
    assert torch.equal(SequenceModel.from_pretrained(tmp_path)(x)[0], model.eval()(x)[0])
