from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cambrian.audio import mulaw
from cambrian.audio.files import write
from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.samples import Gallery
from cambrian.engine.sounds import Audio
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.perception.wavenet import _chorales, _sound
from cambrian.systems.perception.wavenet._config import Config
from cambrian.systems.perception.wavenet.recipe import WaveNetRecipe
from cambrian.worlds import phones

SMALL = dict(steps=20, batch=2, crop=300, blocks=1, layers=5, residual=8, skip=8, seconds=0.5, clips=12, held=4)


@pytest.fixture(scope="module")
def data() -> Data:
    return _sound.load(Config(**SMALL), Source("world", "phones"))


def recipe(data: Data, **options: object) -> WaveNetRecipe:
    return WaveNetRecipe(Config(**{**SMALL, **options}), data=data, seed=100)


def batch_of(data: Data, n: int = 2) -> Batch:
    index = torch.arange(n)
    return {**data.split("train")[index], "key": sample_keys(0, 0, index)}


def train(run: WaveNetRecipe, steps: int) -> list[float]:
    return [float(run.step(batch_of(run.data))["loss"]) for run.iteration in range(steps)]


def folder(root: Path, lengths: tuple[int, ...] = (2000, 1500, 900, 2100), rate: int = 4000) -> Path:
    root.mkdir()
    for i, n in enumerate(lengths):
        write(
            root / f"{i}_{'anna' if i % 2 else 'bert'}_0.wav", 0.3 * torch.sin(torch.arange(n) * (0.1 + 0.05 * i)), rate
        )
    return root


# -- crops and conditioning ----------------------------------------------------------------------------------------------


def test_crops_hold_the_clips_samples_and_score_nothing_of_the_padding(data: Data) -> None:
    batch = batch_of(data, 12)
    batch["length"] = torch.tensor([2000] * 6 + [900, 500, 340, 330, 60, 33])
    crop = _sound.crops(batch, lead=31, count=300, step=4, classes=256)
    assert crop.idx.shape == (12, 332) and crop.scored.shape == (12, 300)
    assert not (crop.start % 4).any() and len(crop.start[:6].unique()) > 3
    for row, start, scored, length, wave in zip(
        *crop.__dict__.values(), batch["length"].tolist(), batch["audio"], strict=True
    ):
        assert torch.equal(row, mulaw.encode(wave[start : start + 332]))
        assert int(scored.sum()) == min(300, length - 32)
        assert int(start) + 32 + int(scored.sum()) <= length


def test_both_arms_of_the_claim_score_the_same_samples(data: Data) -> None:
    runs = [recipe(data, condition="none", dilated=d) for d in (True, False)]
    assert runs[0].model.receptive_field() == 33 and runs[1].model.receptive_field() == 7
    assert len({sum(p.numel() for p in run.model.parameters()) for run in runs}) == 1
    batch = batch_of(data)
    idx = mulaw.encode(batch["audio"])
    for run in runs:
        bits = run._bits(run.model, idx, batch, 0)
        assert bits.shape == (2, 2000 - 33)
        torch.testing.assert_close(bits, run.model.bits(idx)[:, -bits.shape[1] :])
        for parameter in run.model.parameters():
            torch.nn.init.zeros_(parameter)
        assert run.evaluate("test", torch.Generator())["bits"] != pytest.approx(
            8.0
        )  # the average, not the last weights
        run.average.updates.zero_()
        run.average.decay = 0.0
        run.average.update(run.model)
        found = run.evaluate("test", torch.Generator())
        assert found["bits"] == pytest.approx(8.0) and found["perplexity"] == pytest.approx(256, rel=1e-4)
        assert 4 < found["marginal_bits"] < 8


def test_marginal_bits_are_the_cross_entropy_of_the_training_samples_frequencies(data: Data) -> None:
    idx = mulaw.encode(data.split("train")[torch.arange(12)]["audio"]).flatten()
    shares = (torch.bincount(idx, minlength=256) + 1).double() / (len(idx) + 256)
    torch.testing.assert_close(_sound.marginal(data, 256), -shares.log2())
    assert float((2 ** -_sound.marginal(data, 16)).sum()) == pytest.approx(1)


def test_features_say_speaker_phone_and_pitch(data: Data) -> None:
    batch = batch_of(data, 3)
    layout = _sound.Layout.of("all", data)
    g, y = layout.features(batch)
    assert g.shape == (3, 8) and y.shape == (3, 50, 14)
    assert torch.equal(g.argmax(1), batch["speaker"]) and torch.equal(y[..., :12].argmax(2), batch["phone"])
    voiced = batch["f0"] > 0
    assert torch.equal(y[..., 13] > 0, voiced)
    torch.testing.assert_close(150 * 2 ** y[..., 12][voiced], batch["f0"][voiced])
    assert not y[..., 12][~voiced].any()
    only = _sound.Layout.of("speaker", data).features(batch)
    assert torch.equal(only[0], g) and only[1] is None
    assert _sound.Layout.of("none", data).features(batch) == (None, None)


def test_permuting_gives_each_clip_anothers_conditions(data: Data) -> None:
    run, other = recipe(data), recipe(data, permute=True)
    batch = batch_of(data)
    idx = mulaw.encode(batch["audio"])
    swapped = {**batch, **{k: batch[k].roll(1, 0) for k in ("speaker", "phone", "f0")}}
    assert torch.equal(other._bits(other.model, idx, batch, 0), run._bits(run.model, idx, swapped, 0))


@pytest.mark.parametrize(
    "options",
    [{}, {"condition": "none"}, {"contexts": (2, 4, 8)}, {"task": "recognise"}, {"network": "lstm"}, {"inputs": "scalar"}],
)  # fmt: skip
def test_every_kind_learns(data: Data, options: dict) -> None:
    run = recipe(data, lr=1e-2, lr_final=1e-2, **options)
    losses = train(run, 25)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0
    found = run.evaluate("valid", torch.Generator())
    assert all(math.isfinite(v) for v in found.values()) and ("frame_error" in found) == ("task" in options)


# -- worlds and folders -------------------------------------------------------------------------------------------------


def test_a_folder_of_wavs_trains_and_speaks(tmp_path: Path) -> None:
    config = Config(**{**SMALL, "batch": 1, "seconds": 0.6})
    found = _sound.load(config, Source("path", str(folder(tmp_path / "wavs"))))
    run = WaveNetRecipe(config, data=found, seed=0)
    assert run.layout.speakers == 2 and run.layout.frame_dim == 0
    losses = [
        float(run.step({**run.data.train[torch.tensor([i % 2])], "key": torch.tensor([i])})["loss"]) for i in range(15)
    ]
    assert losses[-1] < losses[0]
    said = run.speak(seconds=0.1, speaker="anna")
    assert said.items["sound"].waves.shape == (1, 400)
    with pytest.raises(ConfigError, match="anna, bert"):
        run.speak(speaker="carl")
    with pytest.raises(CapabilityError, match="phones"):
        run.speak(phones="a")


def test_bad_sources_are_typed_errors(tmp_path: Path, data: Data) -> None:
    config = Config(**SMALL)
    with pytest.raises(ConfigError, match="phones, chorales"):
        _sound.load(config, Source("world", "digits"))
    with pytest.raises(DataError, match="receptive field"):
        WaveNetRecipe(Config(**{**SMALL, "layers": 11}), data=data)
    with pytest.raises(DataError, match="no phones"):
        found = _sound.load(config, Source("path", str(folder(tmp_path / "wavs"))))
        WaveNetRecipe(Config(**{**SMALL, "task": "recognise"}), data=found)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.wav").write_bytes(b"RIFF nonsense")
    with pytest.raises(DataError):
        _sound.load(config, Source("path", str(tmp_path / "bad")))
    for wrong in (dict(contexts=(2, 4)), dict(task="recognise", network="lstm"), dict(contexts=(0, 1, 1))):
        with pytest.raises(ConfigError):
            Config(**wrong)


def test_chorales_sound_at_their_pitches() -> None:
    rate = 8000
    tone = _chorales.render(torch.tensor([[[69, 0, 0, 0]] * 4]), rate)
    spectrum = torch.fft.rfft(tone[0]).abs()
    assert int(spectrum.argmax()) * rate / tone.shape[1] == pytest.approx(440, abs=2)
    assert not _chorales.render(torch.zeros(1, 4, 4, dtype=torch.long), rate).any()
    held = _chorales.render(torch.tensor([[[69, 0, 0, 0]] * 4]), rate)[0]
    struck = _chorales.render(torch.tensor([[[69, 0, 0, 0], [0, 0, 0, 0]] * 2]), rate)[0]
    assert float(held[6000:].abs().max()) < 0.6 * float(held[:2000].abs().max())
    assert not struck[2000:4000].any() and float(struck[4000:6000].abs().max()) > 0.9 * float(struck[:2000].abs().max())


def test_chorales_are_a_world_with_tags() -> None:
    pytest.importorskip("music21")
    config = Config(**{**SMALL, "seconds": 1.0})
    found = _sound.load(config, Source("world", "chorales"))
    batch = found.split("train")[torch.arange(12)]
    assert batch["audio"].shape == (12, 4000) and batch["tags"].shape == (12, 17)
    assert torch.equal(batch["tags"][:, :12].sum(1), torch.ones(12)) and 0.01 < float(batch["audio"].std()) < 0.5
    run = WaveNetRecipe(config, data=found, seed=0)
    assert run.model.global_dim == 17 and math.isfinite(float(run.step(batch_of(found))["loss"]))


# -- actions -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Data) -> WaveNetRecipe:
    run = recipe(data)
    train(run, 5)
    return run


def waves(shown: object) -> Tensor:
    sound = shown.items["sound"] if isinstance(shown, Gallery) else shown
    assert isinstance(sound, Audio)
    assert sound.waves.abs().max() <= 1
    return sound.waves


def test_actions_give_sound(trained: WaveNetRecipe, tmp_path: Path) -> None:
    assert waves(trained.sample(3, torch.Generator().manual_seed(0))).shape == (3, 2000)
    contour = tmp_path / "contour.csv"
    contour.write_text("seconds,hertz\n0,100\n0.2,200\n")
    said = trained.speak(seconds=0.2, speaker="3", phones="s i l a", f0=str(contour), n=2)
    assert waves(said).shape == (2, 800)
    assert {p.suffix for p in said.save(tmp_path, "said")} == {".wav", ".png"}
    assert torch.equal(waves(trained.speak(seconds=0.1, seed=4)), waves(trained.speak(seconds=0.1, seed=4)))
    assert waves(trained.compare(n=1)).shape == (2, 2000)
    given = trained.data.split("test")[torch.tensor([0])]["audio"]
    completed = waves(trained.complete(n=1, keep=0.5))
    torch.testing.assert_close(completed[:, :1000], mulaw.decode(mulaw.encode(given[:, :1000])))
    assert not torch.equal(completed[:, 1000:], mulaw.decode(mulaw.encode(given[:, 1000:])))
    pieces = list(trained.stream(trained._clips(1), 1500, torch.Generator().manual_seed(0)))
    assert sum(p.shape[1] for p in pieces) == 1500 and len(pieces) > 1


def test_a_gap_is_filled_and_the_rest_is_kept(trained: WaveNetRecipe) -> None:
    shown = trained.inpaint(clip=1, start=0.2, seconds=0.05, candidates=4)
    real, gap, filled = shown.items["sound"].waves
    assert not gap[800:1000].any() and filled[800:1000].any()
    kept = mulaw.decode(mulaw.encode(real))
    assert torch.equal(filled[:800], kept[:800]) and torch.equal(filled[1000:], kept[1000:])
    costs = [row[1] for row in shown.items["draws"].rows]
    assert costs == sorted(costs) and len(costs) == 4
    with pytest.raises(ConfigError, match="both sides"):
        trained.inpaint(start=0.0)


def test_tables(trained: WaveNetRecipe, data: Data) -> None:
    total = trained.score(clip=1).items["total"].rows[0]
    assert total[0] == 2000 - 33 and total[2] == pytest.approx(2 ** total[1], rel=1e-5)
    rows = trained.control(n=2).rows
    assert [row[1] == "all" for row in rows] == [False, False, True] * 3
    assert rows[0][1] == rows[3][1] != rows[6][1] and rows[2][4] > 0.9  # the tracker follows the clips themselves
    assert [row[0] for row in trained.speed(seconds=0.01).rows] == ["naive", "cached", "auto"]
    reader = recipe(data, task="recognise")
    found = reader.recognise(clip=0).rows
    assert found[0][0] == 0 and found[-1][1] == pytest.approx(0.5) and {row[2] for row in found} <= set(phones.PHONES)


def test_scoring_a_file_equals_scoring_the_clip(data: Data, tmp_path: Path) -> None:
    run = recipe(data, condition="none")
    wave = data.split("test")[torch.tensor([2])]["audio"][0]
    path = write(tmp_path / "two.wav", wave, 4000)
    by_file, by_clip = (run.score(**{k: v}).items["total"].rows[0] for k, v in (("file", str(path)), ("clip", 2)))
    assert by_file[0] == by_clip[0] and by_file[1] == pytest.approx(by_clip[1], abs=0.02)  # 16 bits in between
    with pytest.raises(DataError):
        run.score(file=str(tmp_path / "none.wav"))
    short = write(tmp_path / "short.wav", wave[:20], 4000)
    with pytest.raises(DataError, match="more than 33"):
        run.score(file=str(short))


def test_bad_requests_are_typed_errors(trained: WaveNetRecipe, data: Data, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no phone 'q'"):
        trained.speak(phones="a q")
    with pytest.raises(ConfigError, match="no speaker"):
        trained.speak(speaker="9")
    for text in ("", "0,100,3\n", "0,abc\n", "0.5,100\n0.1,90\n", "0,-5\n"):
        (tmp_path / "f0.csv").write_text(text)
        with pytest.raises(DataError):
            trained.speak(f0=str(tmp_path / "f0.csv"))
    with pytest.raises(ConfigError):
        trained.speak(seconds=0.0)
    with pytest.raises(ConfigError):
        trained.complete(keep=1.0)
    with pytest.raises(CapabilityError, match="condition=none"):
        trained.score(file="x.wav")
    with pytest.raises(CapabilityError, match="task=recognise"):
        trained.recognise()
    with pytest.raises(CapabilityError, match="condition=all"):
        recipe(data, condition="none").control()
    with pytest.raises(CapabilityError, match="network=wavenet"):
        recipe(data, network="lstm").sample(1, torch.Generator())
