from __future__ import annotations

import pytest
import torch

from cambrian.data.random import sample_keys
from cambrian.errors import ShapeError
from cambrian.worlds import shapes


@pytest.fixture(scope="module")
def world():
    key = sample_keys(3, 0, torch.arange(300))
    shown = shapes.scenes(key)
    return key, shown, shapes.ask(key, shown, 10, 10)


def test_a_scene_depends_on_its_key_alone(world):
    key, shown, asked = world
    few = torch.tensor([250, 3])
    again = shapes.scenes(key[few])
    assert torch.equal(again.position, shown.position[few]) and torch.equal(again.form, shown.form[few])
    assert torch.equal(shapes.ask(key[few], again, 10, 10).answer, asked.answer[few])
    assert len(shown.position.flatten(1).unique(dim=0)) == 300


def test_objects_stay_apart_and_on_the_canvas(world):
    _, shown, _ = world
    gap = (shown.position[:, :, None] - shown.position[:, None]).abs().amax(3) + 9 * torch.eye(6)
    assert gap.min() >= 2 * shapes.RADIUS - 1e-6
    assert shown.position.min() >= shapes.RADIUS and shown.position.max() <= 1 - shapes.RADIUS
    assert torch.equal(shown.colour.sort(1).values, torch.arange(6).expand(300, 6))


def test_answers_equal_those_of_plain_loops(world):
    _, shown, asked = world
    for b in range(60):
        place, form, colour = shown.position[b].tolist(), shown.form[b].tolist(), shown.colour[b].tolist()
        for kind, about, answer in zip(
            asked.kind[b].tolist(), asked.colour[b].tolist(), asked.answer[b].tolist(), strict=True
        ):
            me = colour.index(about)
            others = [i for i in range(6) if i != me]

            def far(i, me=me, place=place):
                return (place[i][0] - place[me][0]) ** 2 + (place[i][1] - place[me][1]) ** 2

            truth = {
                "shape": shapes.FORMS[form[me]],
                "left": "yes" if place[me][0] < 0.5 else "no",
                "top": "yes" if place[me][1] < 0.5 else "no",
                "closest": shapes.FORMS[form[min(others, key=far)]],
                "farthest": shapes.FORMS[form[max(others, key=far)]],
                "count": str(form.count(form[me])),
            }[shapes.KINDS[kind]]
            assert shapes.ANSWERS[answer] == truth


def test_questions_cover_all_types_evenly_in_eleven_bits(world):
    _, _, asked = world
    assert (asked.kind[:, :10] < 3).all() and (asked.kind[:, 10:] >= 3).all()
    share = torch.bincount(asked.kind.flatten(), minlength=6) / asked.kind.numel()
    assert (share - 1 / 6).abs().max() < 0.03
    code = asked.code()
    assert code.shape == (300, 20, shapes.CODE_DIM) and code.sum(-1).eq(3).all()
    assert torch.equal(code[..., :6].argmax(-1), asked.colour)
    assert torch.equal(3 * code[..., 6:8].argmax(-1) + code[..., 8:].argmax(-1), asked.kind)


@pytest.mark.parametrize("size", [32, 75])
def test_pictures_show_the_objects_where_they_are(world, size):
    _, shown, _ = world
    picture = shapes.render(shown, size)
    assert picture.shape == (300, 3, size, size) and picture.dtype == torch.uint8
    pixel = (shown.position * size).long()
    rgb = torch.tensor(shapes.RGB, dtype=torch.uint8)
    for b, i in ((0, 0), (7, 3), (100, 5)):
        x, y = pixel[b, i].tolist()
        assert torch.equal(picture[b, :, y, x], rgb[shown.colour[b, i]])
    ink = (picture != 255).any(1).sum((1, 2)) / size**2
    area = shapes.RADIUS**2 * torch.where(shown.form == 0, 4.0, torch.pi).sum(1)
    assert (ink - area).abs().mean() < 0.01


def test_state_rows_hold_place_colour_and_form(world):
    _, shown, _ = world
    rows = shapes.state(shown)
    assert rows.shape == (300, 6, shapes.STATE_DIM) and rows[..., :2].abs().max() < 1
    assert torch.allclose((rows[..., :2] + 1) / 2, shown.position, atol=1e-6)
    assert torch.equal(rows[..., 2:8].argmax(-1), shown.colour) and torch.equal(rows[..., 8:].argmax(-1), shown.form)


def test_mismatched_questions_are_typed_errors(world):
    _, shown, _ = world
    with pytest.raises(ShapeError, match="kind and colour"):
        shapes.answer(shown, torch.zeros(300, 2, dtype=torch.int64), torch.zeros(300, 3, dtype=torch.int64))
