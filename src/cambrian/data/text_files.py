"""Text as a sequence of characters or words, from files or from strings, as `Data` of kind `text`.

A text is cut by position: the first 90 % train, then 5 % validate, 5 % test. Each split is a stream that is read in
windows of `length` + 1 symbols, the last of one being the first of the next: `tokens` int64 [N, length + 1].
`TextSplit.tokens` is the whole stream, for those who carry a state over it.

`info`: `symbols` (characters or words; number 0 stands for whatever the training part lacks), `level`, `length`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.errors import ConfigError, DataError

UNKNOWN = "\ufffd"
SHARES = (0.9, 0.95)
SPLITS = ("train", "valid", "test")
LEVELS = ("characters", "words")
_WORDS = re.compile(r"\w+|[^\w\s]|\n")


class TextSplit:
    """A stream of symbols, int64 `tokens` [n], in windows of `length` + 1 that begin every `stride` symbols."""

    def __init__(self, tokens: Tensor, length: int, stride: int = 0) -> None:
        if len(tokens) < length + 1:
            raise DataError(f"a window takes {length + 1} symbols, but a split has {len(tokens)}; use a longer text")
        self.tokens, self.length, self.stride = tokens, length, stride or length

    def __len__(self) -> int:
        return 1 + (len(self.tokens) - self.length - 1) // self.stride

    def __getitem__(self, index: Tensor) -> Batch:
        at = index[:, None] * self.stride + torch.arange(self.length + 1)
        return {"tokens": self.tokens[at]}


def load(
    source: Source | str | os.PathLike[str], *, length: int = 64, level: str = "characters", vocabulary: int = 10_000,
    stride: int = 0,
) -> Data:  # fmt: skip
    """A text file, or all `*.txt` files of a folder in order of name.

    Words beyond the `vocabulary` most frequent are unknown; training windows begin every `stride` symbols (default:
    `length`). Raises `DataError` naming the file that is no UTF-8 text, or too short.
    """
    path = source.path if isinstance(source, Source) else Path(source)
    if isinstance(source, Source) and source.kind != "path":
        raise DataError(f"{source} is no file; give a text file or a folder of .txt files")
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    if not files:
        raise DataError(f"{path} holds no .txt file")
    text = "\n".join(_read(file) for file in files)
    settings = {"length": length, "level": level, "vocabulary": vocabulary, "stride": stride}
    return from_parts(path.name, cut(text, str(path), level=level), source=str(path), **settings)


def cut(text: str, name: str, *, level: str = "characters") -> dict[str, Sequence[str]]:
    """The three parts of one text, as characters or words. Raises `DataError` when it is too short to be cut."""
    symbols = symbols_of(text, level)
    marks = [0, *(round(share * len(symbols)) for share in SHARES), len(symbols)]
    if marks[2] - marks[1] < 2:
        raise DataError(f"{name} holds {len(symbols)} {level}; at least 40 are needed")
    return {split: symbols[a:b] for split, a, b in zip(SPLITS, marks, marks[1:], strict=False)}


def from_parts(
    name: str, parts: Mapping[str, Sequence[str]], *, length: int, level: str = "characters", vocabulary: int = 10_000,
    stride: int = 0, source: str = "embedded",
) -> Data:  # fmt: skip
    """`Data` of the symbols of `train`, `valid` and `test`. Windows longer than a held-out part are shortened there."""
    if length < 1 or stride < 0 or vocabulary < 2:
        raise ConfigError(f"length must be >= 1, stride >= 0, vocabulary >= 2, not {length}, {stride}, {vocabulary}")
    symbols = (UNKNOWN, *vocabulary_of(parts["train"], vocabulary))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    splits: dict[str, TextSplit] = {}
    for split in SPLITS:
        tokens = torch.tensor([number.get(symbol, 0) for symbol in parts[split]], dtype=torch.int64)
        fits = length if split == "train" else min(length, max(1, len(tokens) - 1))
        splits[split] = TextSplit(tokens, fits, stride if split == "train" else 0)
    info = {"symbols": list(symbols), "level": level, "length": length, "shape": (length,)}
    return Data(name, "text", splits["train"], splits["valid"], splits["test"], info, source)


def symbols_of(text: str, level: str) -> Sequence[str]:
    """The characters of a text, or its words, punctuation marks and line ends."""
    if level not in LEVELS:
        raise ConfigError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    return text if level == "characters" else _WORDS.findall(text)


def vocabulary_of(symbols: Sequence[str], size: int) -> list[str]:
    """The `size` most frequent symbols, in alphabetical order."""
    counted = Counter(symbols)
    frequent = sorted(counted, key=lambda s: (-counted[s], s))[:size]
    return sorted(frequent)


def joined(tokens: Sequence[int], symbols: Sequence[str], level: str = "characters") -> str:
    """Text of symbol numbers; words are set apart by spaces."""
    found = [symbols[i] for i in tokens]
    if level == "characters":
        return "".join(found)
    return re.sub(r" ?\n ?", "\n", re.sub(r" ([.,;:!?)\]])", r"\1", " ".join(found)))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text (byte {error.start}); convert it") from None
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror or error})") from None
