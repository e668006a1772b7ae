from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cambrian.data import text_files
from cambrian.data.source import Source
from cambrian.errors import ConfigError, DataError

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40


def written(folder: Path, text: str | bytes, name: str = "my.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_windows_cover_the_stream_and_share_a_symbol(tmp_path: Path) -> None:
    data = text_files.load(Source("path", str(written(tmp_path, TEXT))), length=16)
    tokens = data.train[torch.arange(len(data.train))]["tokens"]
    assert tokens.shape == (len(data.train), 17)
    assert torch.equal(tokens[:-1, -1], tokens[1:, 0])
    stream = torch.cat((tokens[:, :-1].flatten(), tokens[-1, -1:]))
    assert torch.equal(stream, data.train.tokens[: len(stream)])
    parts = (text_files.joined(s.tokens.tolist(), data.info["symbols"]) for s in (data.train, data.valid, data.test))
    assert "".join(parts) == TEXT
    assert data.fingerprint() == text_files.load(tmp_path / "my.txt", length=16).fingerprint()


def test_stride_makes_training_windows_overlap(tmp_path: Path) -> None:
    data = text_files.load(written(tmp_path, TEXT), length=16, stride=4)
    first, second = data.train[torch.tensor([0, 1])]["tokens"]
    assert torch.equal(first[4:], second[:-4])
    assert data.valid.stride == 16


def test_symbols_come_from_training_and_the_rest_is_unknown() -> None:
    parts = {"train": "abab" * 10, "valid": "abz", "test": "q"}
    with pytest.raises(DataError, match="symbols"):
        text_files.from_parts("t", parts, length=4)
    data = text_files.from_parts("t", {**parts, "test": "ba"}, length=4)
    assert data.info["symbols"] == [text_files.UNKNOWN, "a", "b"]
    assert data.valid.tokens.tolist() == [1, 2, 0]
    assert data.valid.length == 2  # shorter than asked, because the part is


def test_words_keep_the_most_frequent(tmp_path: Path) -> None:
    data = text_files.load(written(tmp_path, TEXT), length=4, level="words", vocabulary=3)
    assert data.info["symbols"][1:] == ["\n", ".", "the"]
    text = text_files.joined(data.train.tokens[:11].tolist(), data.info["symbols"], "words")
    assert text == "the " + "\ufffd " * 5 + "the \ufffd \ufffd.\n"


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    written(tmp_path, "b" * 100, "b.txt")
    written(tmp_path, "a" * 100, "a.txt")
    written(tmp_path, "c" * 100, "c.md")
    data = text_files.load(tmp_path, length=8)
    assert data.train.tokens[:3].tolist() == [2, 2, 2]
    assert data.info["symbols"][1:] == ["\n", "a", "b"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    for path, words in (
        (written(tmp_path, b"\xff\xfe\x00", "binary.txt"), "binary.txt is no UTF-8"),
        (written(tmp_path, "", "empty.txt"), "empty.txt holds 0"),
        (written(tmp_path, "short", "short.txt"), "at least 40"),
        (written(tmp_path, "x" * 60, "length.txt"), "a window takes 65"),
        (tmp_path / "none.txt", "none.txt"),
    ):
        with pytest.raises(DataError, match=words):
            text_files.load(path)
    with pytest.raises(DataError, match="no file"):
        text_files.load(Source("hub", "a/b"))
    for settings in ({"length": 0}, {"vocabulary": 1}, {"level": "syllables"}, {"stride": -1}):
        with pytest.raises(ConfigError):
            text_files.load(written(tmp_path, TEXT), **settings)
