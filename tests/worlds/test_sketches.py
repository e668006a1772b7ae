from __future__ import annotations

import numpy as np
import torch

from cambrian.data.stroke_formats import stroke3_to_polylines
from cambrian.worlds import sketches


def test_a_drawing_is_a_function_of_seed_and_index() -> None:
    name, strokes = sketches.sketch(3, 17)
    again = sketches.sketch(3, 17)
    assert (name, strokes.tobytes()) == (again[0], again[1].tobytes())
    assert strokes.tobytes() != sketches.sketch(4, 17)[1].tobytes()
    small, large = sketches.load(train=20, valid=5, test=5), sketches.load(train=20, valid=9, test=5)
    assert torch.equal(small.train[torch.arange(20)]["length"], large.train[torch.arange(20)]["length"])


def test_every_class_is_a_proper_drawing_of_the_promised_length() -> None:
    rng = np.random.default_rng(0)
    for name in sketches.CLASSES:
        for _ in range(20):
            strokes = sketches.draw(name, rng)
            assert 18 <= len(strokes) <= sketches.MAX_LENGTH
            assert set(strokes[:, 2].tolist()) <= {0, 1}
            assert strokes[-1, 2] == 1
            points = np.concatenate(stroke3_to_polylines(strokes))
            assert 60 < np.ptp(points, axis=0).max() < 320


def test_a_body_adds_two_strokes_below_the_head() -> None:
    rng = np.random.default_rng(1)
    for name in ("cat", "pig", "rabbit"):
        alone = [stroke3_to_polylines(sketches.draw(name, rng)) for _ in range(20)]
        whole = [stroke3_to_polylines(sketches.draw(f"{name} with body", rng)) for _ in range(20)]
        assert {len(lines) for lines in whole} == {len(lines) + 2 for lines in alone}
        assert all(lines[-2][:, 1].mean() > np.concatenate(lines[:-2])[:, 1].mean() + 30 for lines in whole)


def test_splits_hold_all_classes_and_differ() -> None:
    data = sketches.load(train=200, valid=60, test=60)
    assert data.info["classes"] == sorted(sketches.CLASSES)
    assert data.info["dropped"] == 0
    seen = data.train[torch.arange(200)]
    assert len(set(seen["label"].tolist())) == 12
    assert int(seen["length"].max()) <= data.info["max_length"] <= sketches.MAX_LENGTH
    rows = {
        s.numpy().tobytes()
        for split in (data.train, data.valid, data.test)
        for s in split[torch.arange(len(split))]["strokes"]
    }
    assert len(rows) == 320
