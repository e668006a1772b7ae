"""Faces: determinism, factors that change what they name and nothing else, landmarks that lie on what they name."""

from __future__ import annotations

import pytest
import torch

from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError
from cambrian.worlds import faces


@pytest.fixture(scope="module")
def some() -> faces.Factors:
    return faces.factors(sample_keys(0, 0, torch.arange(40)))


def _changed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.int() - b.int()).abs().amax(1) > 0  # [N, S, S]


def test_a_face_depends_on_its_index_only() -> None:
    data = faces.load(train=50, test=20)
    alone = data.split("train")[torch.tensor([7])]
    among = data.split("train")[torch.tensor([30, 7, 2])]
    for name, value in alone.items():
        assert torch.equal(among[name][1:2], value), name
    again = faces.load(train=50, test=20).split("train")[torch.tensor([7])]
    assert torch.equal(again["image"], alone["image"])
    assert not torch.equal(data.split("test")[torch.tensor([7])]["image"], alone["image"])
    assert alone["image"].dtype == torch.uint8 and alone["image"].shape == (1, 3, 32, 32)


def test_labels_and_attributes_agree() -> None:
    batch = faces.load(train=400, test=1).split("train")[torch.arange(400)]
    woman, smile = batch["attributes"][:, 0], batch["attributes"][:, 1]
    assert torch.equal(batch["label"], (2 * woman + smile).long())
    share = batch["attributes"].mean(0)
    torch.testing.assert_close(share, torch.tensor([0.5, 0.5, 0.4, 0.4]), atol=0.08, rtol=0)
    assert abs(float(torch.stack((woman, smile)).corrcoef()[0, 1])) < 0.15


def test_glasses_change_their_box_and_nothing_outside(some: faces.Factors) -> None:
    size = 64
    changed = _changed(faces.render(some.changed(glasses=0.0), size), faces.render(some.changed(glasses=1.0), size))
    ticks = (torch.arange(size) + 0.5) * (2 / size) - 1
    left, top, right, bottom = (side[:, None] for side in faces.glasses_box(some).T)
    inside = ((ticks >= top) & (ticks <= bottom))[:, :, None] & ((ticks >= left) & (ticks <= right))[:, None, :]
    assert not bool((changed & ~inside).any())
    assert float(changed.flatten(1).sum(1).min()) > 100


def test_smile_changes_the_mouth_only(some: faces.Factors) -> None:
    changed = _changed(faces.render(some.changed(smile=-0.2), 64), faces.render(some.changed(smile=1.0), 64))
    rows = changed.any(2).any(0).nonzero().flatten()
    assert int(rows.min()) >= 40  # below the nose
    assert float(changed.flatten(1).sum(1).min()) > 30


def test_landmarks_lie_on_dark_pupils(some: faces.Factors) -> None:
    size = 64
    plain = some.changed(glasses=0.0, turn=0.0)
    image, marks = faces.render(plain, size), faces.landmarks(plain)
    for eye in (0, 1):
        at = ((marks[:, eye] + 1) * size / 2).long()
        pixel = image[torch.arange(len(at)), :, at[:, 1], at[:, 0]]
        assert int(pixel.max()) < 100
    assert bool((marks[:, 0, 0] < marks[:, 1, 0]).all()) and bool((marks[:, 3, 1] > marks[:, 2, 1]).all())


def test_emoji_share_expression_but_not_identity(some: faces.Factors) -> None:
    emoji = faces.render(some, 32, "emoji")
    skin = some.identity.clone()
    skin[:, 6] = 0.0  # skin tone
    from dataclasses import replace

    assert torch.equal(faces.render(replace(some, identity=skin), 32, "emoji"), emoji)
    assert not torch.equal(faces.render(replace(some, identity=skin), 32), faces.render(some, 32))
    assert not torch.equal(
        faces.render(some.changed(smile=1.0), 32, "emoji"), faces.render(some.changed(smile=0.0), 32, "emoji")
    )


def test_take_and_bad_settings(some: faces.Factors) -> None:
    assert torch.equal(faces.render(some.take(torch.tensor([5])), 32), faces.render(some, 32)[5:6])
    with pytest.raises(ConfigError, match="16 pixels"):
        faces.render(some, 8)
    with pytest.raises(ConfigError, match="cartoon, emoji"):
        faces.load(style="oil")


def test_texture_is_an_addition_that_leaves_plain_faces_alone(some: faces.Factors) -> None:
    plain, fine = faces.load(train=60, test=20), faces.load(train=60, test=20, texture=True)
    index = torch.arange(60)
    a, b = plain.split("train")[index], fine.split("train")[index]
    assert plain.info["attributes"] == list(faces.ATTRIBUTES)
    assert fine.info["attributes"] == [*faces.ATTRIBUTES, *faces.FINE]
    assert torch.equal(b["attributes"][:, :4], a["attributes"]) and torch.equal(b["label"], a["label"])
    freckles, strands = b["attributes"][:, 4] > 0.5, b["attributes"][:, 5] > 0.5
    assert 15 < int(freckles.sum()) < 45 and 15 < int(strands.sum()) < 45
    changed = _changed(a["image"], b["image"])
    assert not bool(changed[~freckles & ~strands].any())
    assert int(changed[freckles | strands].flatten(1).sum(1).min()) >= 5
    rows = changed[freckles & ~strands].any(2).any(0).nonzero().flatten()
    assert int(rows.min()) >= 16 and int(rows.max()) <= 24  # cheeks, at 32 pixels
    assert torch.equal(fine.split("train")[torch.tensor([7])]["image"], b["image"][7:8])
    with pytest.raises(ConfigError, match="texture is for cartoon"):
        faces.load(train=1, test=1, style="emoji", texture=True)
