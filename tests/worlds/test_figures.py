"""Figures are what their factors say, the same every time, and differ between splits."""

from __future__ import annotations

import pytest
import torch

from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError
from cambrian.worlds import figures


def test_a_sample_is_a_function_of_its_index() -> None:
    held = figures.load(train=50, valid=5, test=50, seed=3)
    drawn = figures.load(train=50, valid=5, test=50, seed=3, stream=True)
    index = torch.tensor([7, 0, 49])
    for split in ("train", "test"):
        for name, value in held.split(split)[index].items():
            assert torch.equal(value, drawn.split(split)[index][name]), name
    assert not torch.equal(held.train[index]["image"], held.test[index]["image"])
    assert held.train[index]["image"].shape == (3, 3, 16, 16)
    assert held.info["classes"][int(held.train[index]["label"][0])].split() == [
        figures.COLOURS[int(held.train[index]["colour"][0])], figures.FORMS[int(held.train[index]["form"][0])]
    ]  # fmt: skip


def test_the_figure_has_its_area_place_and_colour() -> None:
    size, key = 64, sample_keys(0, 0, torch.arange(200))
    shown = figures.scene(key)
    flat = figures.Scene(shown.form, shown.colour, shown.factors.clone(), torch.zeros(200, 3))
    flat.factors[:, 4] = 0.0
    picture = figures.render(flat, size).float()
    ink = torch.tensor(figures.RGB, dtype=torch.float32)[shown.colour]
    alpha = picture.sum(1) / ink.sum(1)[:, None, None]
    r = shown.factors[:, 2] * size
    area = torch.stack((torch.pi * r**2, (1.7 * r) ** 2, 3**0.5 * 0.75 * r**2, torch.pi * 0.75 * r**2), 1)
    torch.testing.assert_close(alpha.sum((1, 2)), area[torch.arange(200), shown.form], rtol=0.06, atol=3.0)
    at = torch.arange(size) + 0.5
    middle = (alpha.sum(1) * at).sum(1) / alpha.sum((1, 2)) / size
    torch.testing.assert_close(middle, shown.factors[:, 0], atol=0.01, rtol=0)


def test_few_values_but_for_the_centre() -> None:
    shown = figures.scene(sample_keys(0, 0, torch.arange(3000)), "few")
    assert [len(column.unique()) for column in shown.factors.unbind(1)][2:] == [2, 4, 1]
    assert len(shown.ground.unique(dim=0)) == len(figures.GROUNDS)
    assert len(shown.factors[:, 0].unique()) > 1000
    counts = torch.bincount(shown.form * 6 + shown.colour, minlength=24)
    assert int(counts.min()) > 80
    assert int(counts.max()) < 170
    with pytest.raises(ConfigError, match="full, few"):
        figures.load(variety="many")


def test_noise_has_its_size() -> None:
    shown = figures.scene(sample_keys(0, 0, torch.arange(100)))
    noisy = figures.load(train=100, valid=1, test=1, noise=2.0).train[torch.arange(100)]["image"]
    difference = noisy.float() - figures.render(shown, 16).float()
    assert 1.9 < float(difference.std()) < 2.2
    with pytest.raises(ConfigError):
        figures.load(size=4)
