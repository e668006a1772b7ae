"""What is transduced: phones, sums, or a folder of recordings with transcripts, all as frames and symbols.

Splits give `x` float32 [N, T, F], `frames` int64 [N] (frames that are not padding), `y` int64 [N, S] (-1 after the last
symbol) and `ends` int64 [N, S]: after how many frames each symbol can be known (-1 where nobody knows). `info`: symbols,
features, W by default, seconds a frame, the most frames and symbols of an utterance, whether ends are known, and whether
they are given to training unless asked otherwise (not in addition, where the search is to find them).

Shapes: N utterances, T frames, F features, S symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cambrian.audio.spectra import log_mel
from cambrian.data import audio_files
from cambrian.data.random import integers, sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data, Split, TensorSplit, WorldSplit
from cambrian.errors import ConfigError, DataError
from cambrian.worlds import phones

SPLITS = ("train", "valid", "test")
WORLDS = ("phones", "addition")
FRAME_SECONDS = 0.01
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KEYS = (*"0123456789", "+", ".")  # what the addition task reads
PAIRS = 900 * 900  # of numbers of three digits
_STRIDE = 359_987  # has no common divisor with PAIRS: a walk that meets every pair once


@dataclass(frozen=True)
class Reading:
    """How to read: `size` training utterances of a world (None: its own number), `rate` Hz and `bands` of sound; clips
    of `seconds` (a folder's longer recordings are left out), 1 to `join` recordings of a folder to an utterance.
    """

    size: int | None = None
    rate: int = 4000
    bands: int = 40
    seconds: float = 1.0
    join: int = 1


def load(source: Source, reading: Reading) -> Data:
    """The data that `source` names. Raises `ConfigError` for an unknown world, `DataError` for a folder without text."""
    if source.kind == "path":
        return folder(source.path, reading)
    if source.kind != "world" or source.value not in WORLDS:
        raise ConfigError(f"neural-transducer trains on {', '.join(WORLDS)} or a folder of sound files, not {source}")
    return addition(reading.size or 500_000) if source.value == "addition" else spoken_phones(reading)


def spoken_phones(reading: Reading) -> Data:
    """`cambrian.worlds.phones` as log-mel frames and phones, with the frame at which each phone ends."""
    size = reading.size or 2000
    made = phones.load(
        train=size, valid=max(20, size // 10), test=max(20, min(300, size // 4)), rate=reading.rate,
        seconds=reading.seconds, features="logmel", bands=reading.bands,
    )  # fmt: skip
    every = {name: made.split(name)[torch.arange(len(made.split(name)))] for name in SPLITS}
    most = max(int(part["phone_length"].max()) for part in every.values())
    hop, splits = int(made.info["hop"]), {}
    for name, part in every.items():
        y = part["phones"][:, :most]
        ends = torch.where(y >= 0, part["ends"][:, :most] // hop, -1)
        splits[name] = TensorSplit(x=part["mel"], frames=part["length"] // hop, y=y, ends=ends)
    frames = every["train"]["mel"].shape[1]
    info = _info(made.info["phones"], reading.bands, 8, FRAME_SECONDS, frames, most, True, True)
    return Data(
        "phones", "transduction", splits["train"], splits["valid"], splits["test"], {**info, "rate": reading.rate}
    )


def _info(
    symbols: Any, features: int, W: int, seconds: float, frames: int, length: int, ends: bool, given: bool
) -> dict[str, Any]:
    return {
        "symbols": list(symbols), "features": features, "W": W, "seconds": seconds, "max_frames": frames,
        "max_symbols": length, "ends": ends, "given": given, "rate": 0,
    }  # fmt: skip


# -- addition ----------------------------------------------------------------------------------------------------------


def addition(size: int) -> Data:
    """Sums of two numbers of three digits, read a character at a time: `123+654.` is 123 + 456, and is answered `975`.

    The second number is read, and the sum written, from its last digit, so that each digit of the sum can be known as
    soon as both of its digits were read. No pair of numbers is in two splits. Raises `ConfigError` for too many.
    """
    held = 1000
    if size > PAIRS - 2 * held:
        raise ConfigError(f"the addition task has {PAIRS - 2 * held} training pairs, not {size}")
    starts = {"valid": (0, held), "test": (held, held), "train": (2 * held, size)}
    splits = {name: WorldSplit(partial(_sums, first), count) for name, (first, count) in starts.items()}
    info = _info("0123456789", len(KEYS), 1, 1.0, 8, 4, True, False)
    return Data("addition", "transduction", splits["train"], splits["valid"], splits["test"], info)


def _sums(first: int, index: Tensor) -> Batch:
    pair = (index + first) * _STRIDE % PAIRS
    a, b = 100 + pair // 900, 100 + pair % 900
    column = pair.new_ones(len(pair))
    keys = torch.stack((a // 100, a // 10 % 10, a % 10, 10 * column, b % 10, b // 10 % 10, b // 100, 11 * column), 1)
    total = a + b
    digits = torch.stack((total % 10, total // 10 % 10, total // 100 % 10, total // 1000), 1)
    there = torch.stack((column, column, column, total // 1000), 1) > 0
    known = torch.tensor([5, 6, 7, 7], device=index.device)  # the highest digit is the carry of the one before it
    return {
        "x": F.one_hot(keys, len(KEYS)).float(), "frames": 8 * column, "y": torch.where(there, digits, -1),
        "ends": torch.where(there, known, -1),
    }  # fmt: skip


# -- recordings --------------------------------------------------------------------------------------------------------


def folder(path: Path, reading: Reading) -> Data:
    """Recordings with transcripts (names such as `7_jackson_12.wav`, or meta.csv), or with phones in .lab files.

    Digits are spelled out, other text is taken letter by letter in lower case. `join` > 1 makes utterances of one to
    `join` recordings of the same split, drawn by their index, with a space between. Alignments from outside are .lab
    files: their names are the symbols and their times the ends. Raises `DataError` naming what is missing.
    """
    made = audio_files.load(path, rate=reading.rate, seconds=None)
    fields = made.split("train")[torch.arange(1)]
    if "phone" not in fields and "text" not in fields:
        raise DataError(
            f"{path}: no transcripts; name files text_speaker_take.wav, or give meta.csv a column text or phones"
        )
    labelled = "phone" in fields
    every = {name: _recordings(made, name, reading, labelled) for name in SPLITS}
    names = made.info["phones"] if labelled else sorted({c for part in every.values() for _, text, _ in part for c in text} | {" "})  # fmt: skip
    if labelled and reading.join > 1:
        raise ConfigError("recordings with .lab files are not joined; set join=1")
    number = {name: i for i, name in enumerate(names)}
    splits: dict[str, Split] = {}
    for name, part in every.items():
        if not part:
            raise DataError(f"{path}: no recording of at most {reading.seconds} s in the split {name}; raise seconds")
        items = [(x, torch.tensor([number[c] for c in text]), torch.tensor(ends)) for x, text, ends in part]
        count = len(items) * (1 if reading.join == 1 else 4)
        splits[name] = WorldSplit(
            partial(_utterances, items, SPLITS.index(name), reading.join, number.get(" ", -1)), count
        )
    everything = [item for part in every.values() for item in part]
    frames = reading.join * max(len(x) for x, _, _ in everything)
    length = reading.join * (max(len(text) for _, text, _ in everything) + 1) - 1
    info = _info(names, reading.bands, 8, FRAME_SECONDS, frames, length, labelled, labelled)
    info["rate"] = reading.rate
    return Data(path.name, "transduction", splits["train"], splits["valid"], splits["test"], info, str(path))


Item = tuple[Tensor, Any, Any]


def _recordings(made: Data, name: str, reading: Reading, labelled: bool) -> list[Item]:
    """Log-mel frames [T, F], symbols and their ends of every recording that is short enough."""
    split, found = made.split(name), []
    limit, hop = round(reading.seconds * reading.rate), int(made.info["hop"])
    for start in range(0, len(split), 64):
        part = split[torch.arange(start, min(start + 64, len(split)))]
        longest = min(part["audio"].shape[1], limit + hop)
        mel = log_mel(part["audio"][:, :longest].contiguous(), reading.rate, bands=reading.bands)
        for i, length in enumerate(part["length"].tolist()):
            frames = length // hop
            if length > limit or frames < 2:
                continue
            if labelled:
                symbols, ends = _runs(part["phone"][i, :frames].tolist(), made.info["phones"])
            else:
                text = spelled(made.info["texts"][int(part["text"][i])])
                symbols, ends = text, [-1] * len(text)
            found.append((mel[i, :frames], symbols, ends))
    return found


def spelled(text: str) -> str:
    """A transcript in lower case, digits as words: "7" is "seven", "room 42" is "room four two"."""
    words = [DIGITS[int(c)] + " " if c in "0123456789" else c for c in text.lower()]
    return " ".join("".join(words).split())


def _runs(track: list[int], names: list[str]) -> tuple[list[str], list[int]]:
    """Frame labels as symbols in order, and after how many frames each ends."""
    last = [i for i in range(len(track)) if i + 1 == len(track) or track[i + 1] != track[i]]
    return [names[track[i]] for i in last], [i + 1 for i in last]


def _utterances(items: list[Item], split: int, join: int, space: int, index: Tensor) -> Batch:
    """Recordings as they are, or one to `join` of them after each other, drawn by the utterance's index."""
    chosen: list[list[Item]] = []
    if join == 1:
        chosen = [[items[i]] for i in index.tolist()]
    else:
        key = sample_keys(join, split, index.cpu())
        count = 1 + integers(key, 1, join, stream=1)[:, 0]
        which = integers(key, join, len(items), stream=2)
        chosen = [[items[i] for i in row[:n].tolist()] for row, n in zip(which, count, strict=True)]
    x = [torch.cat([item[0] for item in parts]) for parts in chosen]
    gap = torch.tensor([space])
    y = [torch.cat([t for item in parts for t in (item[1], gap)][:-1]) for parts in chosen]
    ends = [torch.cat([t for item in parts for t in (item[2], torch.tensor([-1]))][:-1]) for parts in chosen]
    return {
        "x": pad_sequence(x, batch_first=True), "frames": torch.tensor([len(one) for one in x]),
        "y": pad_sequence(y, batch_first=True, padding_value=-1),
        "ends": pad_sequence(ends, batch_first=True, padding_value=-1),
    }  # fmt: skip
