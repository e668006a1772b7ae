from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from cambrian.data import music_files
from cambrian.errors import ConfigError, DataError, MissingExtraError
from cambrian.worlds import chorales

needs_music21 = pytest.mark.skipif(importlib.util.find_spec("music21") is None, reason="needs cambrian[music]")


@needs_music21
def test_every_chorale_is_in_one_split_and_sounds_like_four_voices() -> None:
    data = chorales.load("quarter")
    titles = [title for split in data.info["titles"].values() for title in split]
    assert len(titles) == len(set(titles)) == len(data.train) + len(data.valid) + len(data.test) > 340
    batch = data.train[torch.arange(len(data.train))]
    at = torch.arange(batch["roll"].shape[1])[None] < batch["length"][:, None]
    assert not batch["roll"][~at].any()
    assert not batch["voices"][~at].any()
    assert 3.6 < float(batch["roll"][at].sum(1).float().mean()) < 4.0  # unisons make it less than 4
    assert (
        data.fingerprint() == chorales.load("quarter").fingerprint() != chorales.load("quarter", seed=1).fingerprint()
    )


@needs_music21
def test_voices_and_rolls_agree() -> None:
    batch = chorales.load("eighth", max_length=40).test[torch.arange(20)]
    sung = torch.zeros_like(batch["roll"], dtype=torch.bool)
    for voice in batch["voices"].unbind(2):
        keys = (voice.long() - music_files.LOWEST).clamp(min=0)
        sung |= torch.nn.functional.one_hot(keys, 88).bool() & (voice > 0)[..., None]
    assert float((sung == batch["roll"].bool()).float().mean()) > 0.9999  # a part that divides sings two notes
    assert sung.shape[1] == 40
    assert not batch["onset"][batch["voices"] == 0].any()


@needs_music21
def test_one_chorale_equals_music21s_own_reading() -> None:
    from music21 import converter

    folder = Path(importlib.util.find_spec("music21").submodule_search_locations[0]) / "corpus" / "bach"
    score = converter.parse(folder / "bwv66.6.mxl", forceSource=True)
    expected = sorted(
        (round(24 * float(n.getOffsetInHierarchy(score))), round(24 * float(n.quarterLength)), n.pitch.midi)
        for n in score.stripTies().recurse().notes
    )
    ours = sorted((onset, length, pitch) for _, onset, length, pitch in chorales.scores()["bwv66.6"].tolist())
    assert ours == expected


def test_a_folder_of_scores_is_read(tmp_path: Path) -> None:
    track = b"\x00\x90\x3c\x40\x60\x80\x3c\x00\x00\xff\x2f\x00"
    payload = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60MTrk" + len(track).to_bytes(4, "big") + track
    for i in range(4):
        (tmp_path / f"{i}.mid").write_bytes(payload)
    with pytest.raises(DataError, match="4 scores"):
        chorales.load_folder(tmp_path)
    (tmp_path / "5.mid").write_bytes(payload)
    data = chorales.load_folder(tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (3, 1, 1)
    assert np.flatnonzero(data.test[torch.tensor([0])]["roll"][0, 0]).tolist() == [39]
    (tmp_path / "6.mid").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"6\.mid"):
        chorales.load_folder(tmp_path)


def test_without_music21_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    chorales.scores.cache_clear()
    with pytest.raises(MissingExtraError, match=r"cambrian\[music\]"):
        chorales.load()
    with pytest.raises(ConfigError, match="quarter"):
        chorales.pack([np.array([[0, 0, 24, 60]])], "bar")
