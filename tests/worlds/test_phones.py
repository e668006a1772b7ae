import itertools

import pytest
import torch

from cambrian.audio.pitch import f0
from cambrian.audio.spectra import log_mel
from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError, ShapeError
from cambrian.worlds import phones
from cambrian.worlds.phones import PHONES, Timeline, load, render, timeline

KEYS = sample_keys(0, 0, torch.arange(48))


def whole(data, split="train"):
    return data.split(split)[torch.arange(len(data.split(split)))]


def test_segments_and_frames_say_the_same():
    clip, segments = timeline(KEYS, 100)
    for n in range(len(KEYS)):
        count = int(segments.length[n])
        names, ends = segments.phones[n, :count].tolist(), segments.ends[n, :count].tolist()
        starts = [0, *ends[:-1]]
        spelled = [name for name, start, end in zip(names, starts, ends) for _ in range(end - start)]
        assert spelled == clip.phone[n].tolist() and ends[-1] == 100
        assert all(a != b for a, b in itertools.pairwise(names))
        assert min(e - s for s, e in zip(starts, ends)) >= phones.SHORTEST
        assert (segments.phones[n, count:] == -1).all()
    assert torch.equal(clip.f0 > 0, phones.VOICED[clip.phone])


@pytest.mark.parametrize("rate", [4000, 16000])
def test_the_tracker_hears_the_pitch_that_was_asked_for(rate):
    clip, _ = timeline(KEYS, 100)
    heard = f0(render(clip, KEYS, rate=rate), rate, rate // 100)
    both = (heard > 0) & (clip.f0 > 0)
    assert ((heard / clip.f0 - 1).abs()[both] < 0.05).float().mean() > 0.97
    assert both.sum() / (clip.f0 > 0).sum() > 0.95


def test_vowels_have_their_formants():
    for name, first in (("a", 730), ("i", 280)):
        clip = Timeline(
            torch.full((1, 60), PHONES.index(name)), torch.full((1, 60), 85.0), torch.zeros(1, dtype=torch.int64)
        )
        bands = log_mel(render(clip, KEYS[:1], rate=8000), 8000, bands=60)[0, 30]
        centres = 700 * (10 ** (torch.linspace(0, 2146.06, 62)[1:-1] / 2595) - 1)
        assert abs(float(centres[bands.argmax()]) - first) < 100, name


def test_a_clip_depends_on_its_key_alone_and_splits_differ():
    a, b = load(train=8, valid=2, test=3), load(train=40, valid=2, test=3)
    assert torch.equal(whole(a)["audio"], whole(b)["audio"][:8])
    assert not torch.equal(whole(a, "valid")["audio"], whole(a)["audio"][:2])
    assert a.fingerprint() != load(train=8, valid=2, test=3, seed=1).fingerprint()


def test_fields_of_a_split():
    data = load(train=5, valid=1, test=1, rate=8000, seconds=0.5, features="logmel", bands=20)
    batch = whole(data)
    assert batch["audio"].shape == (5, 4000) and batch["mel"].shape == (5, 50, 20) and data.info["hop"] == 80
    assert batch["audio"].abs().max() <= 1 and (batch["length"] == 4000).all()
    assert (batch["ends"].gather(1, batch["phone_length"][:, None] - 1) == 4000).all()


def test_the_floor_is_as_quiet_as_asked():
    silent = Timeline(torch.zeros(4, 50, dtype=torch.int64), torch.zeros(4, 50), torch.zeros(4, dtype=torch.int64))
    for level in (-70.0, -40.0):
        wave = render(silent, KEYS[:4], noise_db=level)
        assert 20 * wave.square().mean().sqrt().log10() == pytest.approx(level, abs=1.0)


def test_bad_options():
    with pytest.raises(ConfigError, match="multiple of 100"):
        load(rate=4050)
    with pytest.raises(ConfigError, match="at least"):
        load(seconds=0.01)
    with pytest.raises(ConfigError, match="logmel"):
        load(features="mel")
    with pytest.raises(ShapeError):
        Timeline(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="phones are numbers"):
        Timeline(torch.full((1, 5), 12), torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))
