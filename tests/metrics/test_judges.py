"""Judges learn, are cached, survive damage, and refuse to judge when they are bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cambrian.data import digits
from cambrian.errors import DataError, ShapeError
from cambrian.metrics.judges import judge_of, train_judge


def _bars(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Upright or lying bars, bright or dim: 2 classes, 2 attributes."""
    generator = torch.Generator().manual_seed(seed)
    label, bright = (torch.randint(2, (count,), generator=generator) for _ in range(2))
    image = torch.randint(0, 20, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for i in range(count):
        view = image[i, 0] if label[i] else image[i, 0].T
        view[:, 3:5] = 230 if bright[i] else 110
    return image, torch.stack((label, bright), 1)


def test_judge_learns_is_cached_and_is_repaired(tmp_path: Path) -> None:
    (x, y), (held, answer) = _bars(200, 0), _bars(100, 1)
    settings = {"classes": 2, "steps": 40, "batch": 32, "folder": tmp_path}
    judge = train_judge(x, y[:, 0], held, answer[:, 0], **settings).require()
    inputs = held.float() / 255
    probabilities = judge.probabilities(inputs)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(100))
    assert judge.accuracy == pytest.approx(float((probabilities.argmax(1) == answer[:, 0]).double().mean()))
    assert judge.features(inputs).shape == (100, 64)
    (path,) = tmp_path.rglob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    again = train_judge(x, y[:, 0], held, answer[:, 0], **settings)
    assert path.stat().st_mtime_ns == stamp and torch.equal(again.probabilities(inputs), probabilities)
    path.write_bytes(b"damaged")
    repaired = train_judge(x, y[:, 0], held, answer[:, 0], **settings)
    assert torch.equal(repaired.probabilities(inputs), probabilities)
    assert path.stat().st_size > 1000


def test_attribute_judge_reports_its_worst_attribute(tmp_path: Path) -> None:
    (x, y), (held, answer) = _bars(200, 2), _bars(100, 3)
    judge = train_judge(x, y, held, answer, classes=2, steps=60, batch=32, folder=tmp_path)
    right = (judge.probabilities(held.float() / 255) > 0.5) == (answer > 0)
    assert judge.accuracy == pytest.approx(float(right.double().mean(0).min())) and judge.accuracy > 0.9


def test_a_bad_judge_refuses_and_bad_images_are_named(tmp_path: Path) -> None:
    x, _y = _bars(60, 4)
    noise = torch.randint(2, (60,), generator=torch.Generator().manual_seed(5))
    judge = train_judge(x, noise, x.flip(0), noise, classes=2, steps=2, batch=8, folder=tmp_path)
    with pytest.raises(DataError, match=r"accuracy on real data and 0\.97"):
        judge.require()
    with pytest.raises(ShapeError, match="uint8"):
        train_judge(x.float(), noise, x, noise, classes=2, folder=tmp_path)


def test_the_digits_judge_is_good_enough_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    data = digits.load()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    judge = judge_of(data.train, data.test, 10, steps=200, folder=tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert judge.require().accuracy >= 0.97
