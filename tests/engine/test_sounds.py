import pytest
import torch

from cambrian.audio.files import read
from cambrian.engine.sounds import Audio


def test_saves_sound_and_picture_and_plays_in_the_report(tmp_path):
    waves = torch.sin(torch.arange(4000) / 5).repeat(2, 1) / 2
    paths = Audio(waves, 4000, ["one"]).save(tmp_path, "sample")
    assert [p.name for p in paths] == ["sample-000.wav", "sample-001.wav", "sample.png"]
    back, rate = read(paths[0])
    assert rate == 4000 and (back - waves[0]).abs().max() < 1e-4
    page = Audio(waves, 4000, ["<one>"]).html()
    assert page.count("<audio controls") == 2 and "&lt;one&gt;" in page and "http" not in page


def test_needs_a_batch():
    with pytest.raises(ValueError, match=r"\[N, T\]"):
        Audio(torch.zeros(10), 4000)
