from __future__ import annotations

import ast

import pytest
import torch

from cambrian.data import text_files
from cambrian.errors import DataError
from cambrian.worlds import stdlib


def test_packages_are_in_one_part_only() -> None:
    parts = {part: {name.split(".")[0] for name in stdlib.modules(part)} for part in text_files.SPLITS}
    assert not parts["train"] & parts["valid"]
    assert not parts["train"] & parts["test"]
    assert not parts["valid"] & parts["test"]
    whole = stdlib.modules("all")
    assert sum(len(stdlib.modules(p)) for p in text_files.SPLITS) == len(whole) > 300
    assert not any("test" in name.split(".") for name in whole)
    for part in text_files.SPLITS:
        assert len(stdlib.text(part, 40_000)) == 40_000


def test_sources_are_python() -> None:
    files = stdlib.sources("test")
    name = next(iter(files))
    assert ast.parse(files[name])


def test_the_text_is_a_stream_of_characters() -> None:
    data = stdlib.load(characters=20_000, length=32)
    assert len(data.train.tokens) == 20_000
    assert "import" in text_files.joined(data.train.tokens.tolist(), data.info["symbols"])
    batch = data.test[torch.tensor([0, 1])]
    assert batch["tokens"].shape == (2, 33)
    assert data.fingerprint() == stdlib.load(characters=20_000, length=32).fingerprint()
    words = stdlib.load(characters=20_000, length=32, level="words", vocabulary=200)
    assert len(words.info["symbols"]) == 201


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(DataError, match="train"):
        stdlib.modules("dev")
