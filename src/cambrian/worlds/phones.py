"""Speech-like sound made from a timeline of phones: who speaks, which phone when, at which pitch. All of it is known.

A source-filter synthesiser. A timeline gives every frame a phone and a fundamental frequency; the voice is a sum of the
harmonics of that frequency, weighted by the glottal slope and by the phone's formants (so it has no aliases and needs no
recursion), fricatives are noise shaped by the same kind of envelope, and everything glides over a few frames:

    x(t) = g_v(t) sum_k Re[H(k f0(t)) e^(i k phi(t))] / k + g_n(t) (noise * envelope) + floor

Eight speakers differ in pitch, length of the vocal tract (formant scale) and breathiness. A clip is a pure function of
(seed, split, index). The floor of white noise is below -60 dB unless asked otherwise: a louder one takes most of the
bins of mu-law, and hides what there is to learn.

Shapes: N clips, T samples, F = T / hop frames, P phones of a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.audio.spectra import log_mel
from cambrian.data.random import integers, normal, sample_keys, uniform
from cambrian.data.split import Batch, Data, TensorSplit
from cambrian.errors import ConfigError, ShapeError

SPLITS = ("train", "valid", "test")
SHORTEST, LONGEST = 4, 20  # frames of a phone
FRAME_SECONDS = 0.01
LOUDNESS = 0.09  # root mean square of an open vowel

# name: (F1, F2, F3 in Hz, loudness of the voice, of the noise, the noise's lowest and highest frequency)
_TABLE = {
    "sil": (500, 1500, 2500, 0.0, 0.0, 0, 8000),
    "a": (730, 1090, 2440, 1.0, 0.0, 0, 8000),
    "e": (530, 1840, 2480, 0.9, 0.0, 0, 8000),
    "i": (280, 2290, 3010, 0.7, 0.0, 0, 8000),
    "o": (570, 840, 2410, 0.9, 0.0, 0, 8000),
    "u": (310, 620, 2240, 0.7, 0.0, 0, 8000),
    "m": (250, 1000, 2200, 0.4, 0.0, 0, 8000),
    "n": (250, 1600, 2600, 0.4, 0.0, 0, 8000),
    "l": (380, 1200, 2700, 0.5, 0.0, 0, 8000),
    "z": (300, 1500, 2500, 0.4, 0.02, 1500, 7000),
    "s": (300, 1500, 2500, 0.0, 0.06, 1500, 7500),
    "f": (300, 1200, 2500, 0.0, 0.03, 200, 8000),
}
PHONES = tuple(_TABLE)
_PHONE = torch.tensor(list(_TABLE.values()), dtype=torch.float32)
VOICED = _PHONE[:, 3] > 0

# median pitch in Hz (2.8 semitones apart), formant scale, breath in dB below the voice
_SPEAKERS = torch.tensor([(85, 1.00, -66), (100, 0.94, -60), (117, 1.05, -64), (137, 0.97, -58),
                          (161, 1.10, -66), (189, 1.04, -60), (222, 1.16, -64), (260, 1.12, -58)])  # fmt: skip
SPEAKERS = len(_SPEAKERS)
PITCHES = tuple(_SPEAKERS[:, 0].tolist())
_SEMITONES = 3.0  # how far a contour strays from the median


@dataclass(frozen=True)
class Timeline:
    """`phone` int64 [N, F] into `PHONES`, `f0` float32 [N, F] in Hz (0 where unvoiced), `speaker` int64 [N]."""

    phone: Tensor
    f0: Tensor
    speaker: Tensor

    def __post_init__(self) -> None:
        if self.phone.dim() != 2 or self.phone.shape != self.f0.shape or self.speaker.shape != self.phone.shape[:1]:
            raise ShapeError(
                f"a timeline has phone and f0 [N, F] and speaker [N], not {tuple(self.phone.shape)}, "
                f"{tuple(self.f0.shape)} and {tuple(self.speaker.shape)}"
            )
        if self.phone.numel() and not 0 <= int(self.phone.min()) <= int(self.phone.max()) < len(PHONES):
            raise ShapeError(f"phones are numbers in 0..{len(PHONES) - 1}")
        if self.speaker.numel() and not 0 <= int(self.speaker.min()) <= int(self.speaker.max()) < SPEAKERS:
            raise ShapeError(f"speakers are numbers in 0..{SPEAKERS - 1}")


@dataclass(frozen=True)
class Segments:
    """The phones of a clip in order: `phones` int64 [N, P], -1 beyond `length` int64 [N]; `ends` int64 [N, P] in frames."""

    phones: Tensor
    length: Tensor
    ends: Tensor


def timeline(key: Tensor, frames: int) -> tuple[Timeline, Segments]:
    """A random utterance of `frames` frames for every key [N]. No phone follows itself; the last is cut or kept long."""
    if frames < SHORTEST:
        raise ShapeError(f"an utterance has at least {SHORTEST} frames, not {frames}")
    count = frames // SHORTEST
    durations = SHORTEST + integers(key, count, LONGEST - SHORTEST + 1, stream=1)
    ends = durations.cumsum(1).clamp(max=frames)
    steps = 1 + integers(key, count, len(PHONES) - 1, stream=2)
    phones = steps.cumsum(1) % len(PHONES)
    # a remainder too short for a phone prolongs the one before it
    ends = torch.where(frames - ends < SHORTEST, ends.new_full((), frames), ends)
    length = (ends < frames).sum(1) + 1
    at = torch.arange(frames).expand(len(key), -1).contiguous()
    which = torch.searchsorted(ends.contiguous(), at, right=True)
    inside = torch.arange(count) < length[:, None]
    width = int(length.max())
    segments = Segments(
        torch.where(inside, phones, -1)[:, :width], length, torch.where(inside, ends, frames)[:, :width]
    )
    phone = phones.gather(1, which)
    speaker = integers(key, 1, SPEAKERS, stream=3)[:, 0]
    return Timeline(phone, _contour(key, frames, speaker) * VOICED[phone], speaker), segments


def _contour(key: Tensor, frames: int, speaker: Tensor) -> Tensor:
    """Smooth pitch around the speaker's median: two slow waves and a fall over the clip, within three semitones."""
    time = torch.arange(frames) * FRAME_SECONDS
    shape = uniform(key, 4, stream=4)
    slow, fast = 0.4 + 0.8 * shape[:, :1], 1.5 + 1.5 * shape[:, 1:2]
    wave = 0.6 * torch.sin(2 * math.pi * (slow * time + shape[:, 2:3])) + 0.4 * torch.sin(
        2 * math.pi * (fast * time + shape[:, 3:4])
    )
    fall = torch.linspace(0.3, -0.3, frames)
    return _SPEAKERS[speaker, :1] * 2 ** (_SEMITONES * (0.7 * wave + fall) / 12)


def render(clip: Timeline, key: Tensor, *, rate: int = 4000, noise_db: float = -70.0) -> Tensor:
    """Waveforms float32 [N, T], T = F * hop, in [-1, 1], at `rate` Hz; noise from the keys [N]."""
    hop = _hop(rate)
    phone = clip.phone
    smooth = _PHONE[phone].transpose(1, 2)  # [N, 7, F]
    speaker = _SPEAKERS[clip.speaker]
    formants = _glide(smooth[:, :3].log(), 5).exp() * speaker[:, 1, None, None]
    gains = _glide(smooth[:, 3:5], 3)
    # where nothing is voiced the pitch is carried on, so that the glide of the voice's gain has something to play
    pitch = _fill(clip.f0, _SPEAKERS[clip.speaker, 0])
    voice = _voice(pitch, formants, rate, hop) * _upsample(gains[:, 0], hop)
    breath = gains[:, 0] * 10 ** (speaker[:, 2:3] / 20)
    white = normal(key, phone.shape[1] * hop, stream=5)
    hiss = _shaped(white, breath, smooth.new_zeros(()), smooth.new_full((), rate / 2.0), rate, hop)
    friction = _shaped(white, gains[:, 1], smooth[:, 5], smooth[:, 6], rate, hop)
    floor = 10 ** (noise_db / 20) * normal(key, phone.shape[1] * hop, stream=6)
    return (LOUDNESS * (voice + hiss) + friction + floor).clamp(-1, 1)


def _hop(rate: int) -> int:
    if rate % 100 or rate < 2000:
        raise ConfigError(f"the rate must be a multiple of 100 Hz and at least 2,000, not {rate}")
    return rate // 100


def _glide(tracks: Tensor, frames: int) -> Tensor:
    """Moving average over `frames` frames of [N, C, F], so that nothing jumps."""
    half = frames // 2
    return F.avg_pool1d(F.pad(tracks, (half, half), mode="replicate"), frames, 1)


def _fill(pitch: Tensor, median: Tensor) -> Tensor:
    """[N, F]: unvoiced frames take the last voiced pitch, or the speaker's median before there is one."""
    at = torch.arange(pitch.shape[1]).expand_as(pitch)
    last = torch.where(pitch > 0, at, -1).cummax(1).values
    return torch.where(last < 0, median[:, None], pitch.gather(1, last.clamp(min=0)))


def _upsample(track: Tensor, hop: int) -> Tensor:
    """Frames [..., F] as samples [..., F * hop], linear between the centres of the frames."""
    shape = track.shape
    flat = track.reshape(-1, 1, shape[-1])
    return F.interpolate(flat, scale_factor=float(hop), mode="linear", align_corners=False).reshape(*shape[:-1], -1)


def _voice(pitch: Tensor, formants: Tensor, rate: int, hop: int) -> Tensor:
    """Harmonics of `pitch` [N, F] under the formants [N, 3, F], at unit root mean square per frame: [N, T]."""
    harmonics = max(1, int(rate / 2 / float(pitch.min())))
    number = torch.arange(1, harmonics + 1, dtype=torch.float32)
    frequency = pitch[:, None] * number[:, None]  # [N, K, F]
    response = torch.ones_like(frequency, dtype=torch.complex64) / number[:, None]
    for j in range(3):
        centre = formants[:, j, None].clamp(max=0.95 * rate / 2 if j < 2 else 1e9)
        response = response * _resonance(frequency, centre, 60.0 + 40.0 * j)
    audible = (0.48 * rate - frequency).div(0.03 * rate).clamp(0, 1)  # fades out below half the rate
    response = response * audible
    response = response / (response.abs().square().sum(1, keepdim=True) / 2).sqrt().clamp(min=1e-6)
    phase = 2 * math.pi * (_upsample(pitch, hop).double() / rate).cumsum(1)
    out = torch.zeros(pitch.shape[0], pitch.shape[1] * hop)
    for k in range(harmonics):
        turn = (phase * (k + 1)).remainder(2 * math.pi).float()
        part = response[:, k]
        out += _upsample(part.real, hop) * turn.cos() - _upsample(part.imag, hop) * turn.sin()
    return out


def _resonance(frequency: Tensor, centre: Tensor, bandwidth: float) -> Tensor:
    """Response at `frequency` Hz of a pole pair at `centre` Hz with `bandwidth` Hz, 1 at zero frequency."""
    s = torch.complex(torch.zeros_like(frequency), frequency)
    pole = centre.square() + (bandwidth / 2) ** 2
    return pole / (s.square() + bandwidth * s + pole)


def _shaped(white: Tensor, gain: Tensor, low: Tensor, high: Tensor, rate: int, hop: int) -> Tensor:
    """White noise [N, T] with `gain` [N, F] and a band of `low` to `high` Hz per frame, by overlapping windows: [N, T].

    At low rates the band is moved below half the rate, so that every fricative stays audible.
    """
    frames = gain.shape[1]
    window = torch.hann_window(2 * hop)
    padded = F.pad(white, (hop // 2, 2 * hop - hop // 2))
    spectrum = torch.fft.rfft(padded.unfold(1, 2 * hop, hop)[:, :frames] * window)
    bins = torch.linspace(0, rate / 2, spectrum.shape[2])
    floor = low.clamp(max=0.25 * rate)[..., None]
    band = torch.sigmoid((bins - floor) / 100.0) * torch.sigmoid((high[..., None] - bins) / 100.0)
    band = band / band.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-3)
    pieces = torch.fft.irfft(spectrum * band * gain[:, :, None], 2 * hop)
    out = F.fold(pieces.transpose(1, 2), (1, (frames + 1) * hop), (1, 2 * hop), stride=(1, hop))
    return out[:, 0, 0, hop // 2 :][:, : frames * hop]


@dataclass(frozen=True)
class World:
    """What is rendered: clips of `seconds` at `rate` Hz; `features` "logmel" adds `bands` mel bands a frame."""

    rate: int = 4000
    seconds: float = 1.0
    noise_db: float = -70.0
    features: str | None = None
    bands: int = 40

    def __post_init__(self) -> None:
        _hop(self.rate)
        if self.features not in (None, "logmel"):
            raise ConfigError(f"features must be None or logmel, not {self.features!r}")
        if self.frames < SHORTEST:
            raise ConfigError(f"a clip has at least {SHORTEST * FRAME_SECONDS} s, not {self.seconds}")

    @property
    def frames(self) -> int:
        return round(self.seconds / FRAME_SECONDS)

    def make(self, key: Tensor) -> Batch:
        """Clips for keys [N]; the fields of `load`."""
        hop = _hop(self.rate)
        clip, segments = timeline(key, self.frames)
        width = self.frames // SHORTEST
        pad = width - segments.phones.shape[1]
        audio = render(clip, key, rate=self.rate, noise_db=self.noise_db)
        batch = {
            "audio": audio, "length": torch.full((len(key),), audio.shape[1]), "phone": clip.phone, "f0": clip.f0,
            "speaker": clip.speaker, "phones": F.pad(segments.phones, (0, pad), value=-1), "phone_length": segments.length,
            "ends": F.pad(segments.ends, (0, pad), value=self.frames) * hop,
        }  # fmt: skip
        if self.features:
            batch["mel"] = log_mel(audio, self.rate, bands=self.bands)
        return batch


def load(
    *, train: int = 400, valid: int = 50, test: int = 100, seed: int = 0, world: World | None = None, **fields: object
) -> Data:
    """Clips as `Data` of kind `audio`, held in memory. `fields` are those of `World`.

    Splits give `audio` float32 [N, T] in [-1, 1], `length` int64 [N] (samples), `phone` int64 and `f0` float32 [N, F],
    `speaker` int64 [N], `phones` int64 [N, P] (-1 beyond `phone_length` [N]), `ends` int64 [N, P] (in samples), and `mel`
    float32 [N, F, bands] when asked for. `info`: rate, hop, seconds, phones, speakers.
    """
    what = replace(world or World(), **fields)  # type: ignore[arg-type]
    sizes = {"train": train, "valid": valid, "test": test}
    splits = {name: _split(what, seed, name, count) for name, count in sizes.items()}
    info = {
        "rate": what.rate, "hop": _hop(what.rate), "seconds": what.seconds, "phones": list(PHONES), "speakers": SPEAKERS,
        "bands": what.bands if what.features else 0,
    }  # fmt: skip
    return Data("phones", "audio", splits["train"], splits["valid"], splits["test"], info)


def _split(world: World, seed: int, name: str, count: int) -> TensorSplit:
    keys = sample_keys(seed, SPLITS.index(name), torch.arange(count))
    parts = [world.make(chunk) for chunk in keys.split(32)]
    return TensorSplit(**{field: torch.cat([part[field] for part in parts]) for field in parts[0]})
