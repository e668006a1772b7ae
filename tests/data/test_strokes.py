from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import approximate_polygon

from cambrian.data.source import Source
from cambrian.data.stroke_formats import (
    polylines_to_stroke3,
    polylines_to_svg,
    rdp,
    stroke3_to_polylines,
    stroke3_to_stroke5,
    stroke5_to_stroke3,
    svg_to_polylines,
)
from cambrian.data.strokes import load
from cambrian.errors import DataError
from cambrian.worlds import sketches


def drawings(n: int, seed: int = 0) -> list[np.ndarray]:
    return [sketches.sketch(seed, i)[1] for i in range(n)]


def objects(records: list[np.ndarray]) -> np.ndarray:
    out = np.empty(len(records), object)
    out[:] = records
    return out


def save(path: Path, **splits: list[np.ndarray]) -> Path:
    np.savez_compressed(path, **{name: objects(records) for name, records in splits.items()})
    return path


def rows_of(data: object, split: str) -> list[np.ndarray]:
    held = data.split(split)
    batch = held[torch.arange(len(held))]
    return [s[:n].numpy() for s, n in zip(batch["strokes"], batch["length"].tolist(), strict=True)]


# -- forms ------------------------------------------------------------------------------------------------------------


def test_stroke5_there_and_back_is_exact() -> None:
    records = drawings(20)
    longest = max(map(len, records))
    padded = torch.zeros(20, longest, 3)
    for i, record in enumerate(records):
        padded[i, : len(record)] = torch.from_numpy(record)
    lengths = torch.tensor([len(r) for r in records])
    for size in (longest, longest + 9):
        five = stroke3_to_stroke5(padded, lengths, size)
        assert five.shape == (20, size, 5)
        assert (five[..., 2:].sum(-1) == 1).all()
        for record, one in zip(records, five, strict=True):
            assert np.array_equal(stroke5_to_stroke3(one), record)
            assert (one[len(record) :] == torch.tensor([0.0, 0, 0, 0, 1])).all()
    with pytest.raises(DataError):
        stroke3_to_stroke5(padded, lengths, longest - 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.booleans()), min_size=1, max_size=30))
def test_polylines_there_and_back_are_exact(rows: list[tuple[int, int, bool]]) -> None:
    record = np.array(rows, np.float32)
    record[-1, 2] = 1
    lines = stroke3_to_polylines(record)
    assert len(lines) == int(record[:, 2].sum())
    assert not lines[0][0].any()
    assert np.array_equal(polylines_to_stroke3(lines), record)


def test_svg_there_and_back() -> None:
    for record in drawings(12):
        lines = stroke3_to_polylines(record)
        back = svg_to_polylines(polylines_to_svg(lines, marked=1))
        assert np.array_equal(polylines_to_stroke3(back), record)


def test_svg_commands() -> None:
    text = '<svg><path d="M 1 2 h 3 v4l-1,-1z m 5 5 1 1"/><line x1="0" y1="1" x2="2" y2="3"/><polygon points="0,0 1,0 1,1"/></svg>'
    lines = [line.tolist() for line in svg_to_polylines(text)]
    assert lines[0] == [[1, 2], [4, 2], [4, 6], [3, 5], [1, 2]]
    assert lines[1] == [[6, 7], [7, 8]]
    assert lines[2] == [[0, 1], [2, 3]]
    assert lines[3] == [[0, 0], [1, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    "body",
    [
        "",
        '<path d="M0 0 C 1 1 2 2 3 3"/>',
        '<path d="L 1 1"/>',
        '<path d="M 1"/>',
        '<g transform="scale(2)"><path d="M0 0L1 1"/></g>',
    ],
)
def test_svg_that_cannot_be_read_is_refused(body: str) -> None:
    with pytest.raises(DataError):
        svg_to_polylines(f"<svg>{body}</svg>")


def test_integer_rounding_does_not_add_up() -> None:
    line = np.stack((np.arange(100) * 0.4, np.zeros(100)), 1)
    assert polylines_to_stroke3([line], whole=True)[:, 0].sum() == round(99 * 0.4)
    assert polylines_to_stroke3([np.array([[3.0, 4.0]])]).tolist() == [[0, 0, 1]]
    with pytest.raises(DataError):
        polylines_to_stroke3([])


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_simplification_equals_scikit_image_and_keeps_its_promise(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        points = rng.normal(0, 3, (60, 2)).cumsum(0)
        kept = rdp(points, epsilon)
        assert np.array_equal(kept, approximate_polygon(points, epsilon))
        assert np.array_equal(kept[[0, -1]], points[[0, -1]])
    assert len(rdp(np.zeros((5, 2)), epsilon)) == 2
    assert len(rdp(np.zeros((1, 2)), epsilon)) == 1


# -- files ------------------------------------------------------------------------------------------------------------


def test_object_arrays_as_published(tmp_path: Path) -> None:
    records = drawings(40)
    path = save(tmp_path / "things.full.npz", train=records[:30], valid=records[30:35], test=records[35:])
    data = load(Source("path", str(path)))
    assert data.kind == "strokes"
    assert data.info["classes"] == ["things"]
    for split, part in (("train", records[:30]), ("valid", records[30:35]), ("test", records[35:])):
        assert all(np.array_equal(a, b) for a, b in zip(rows_of(data, split), part, strict=True))
    pooled = np.concatenate([r[:, :2] for r in records[:30]]).astype(float)
    assert data.info["scale"] == pytest.approx(float(np.sqrt(((pooled - pooled.mean()) ** 2).mean())))
    assert data.train[torch.arange(2)]["strokes"].dtype == torch.int16


def test_plain_arrays_with_offsets(tmp_path: Path) -> None:
    records = drawings(60)
    flat, offsets = np.concatenate(records), np.cumsum([0, *map(len, records)])
    np.savez(tmp_path / "a.npz", strokes=flat.reshape(-1), offsets=offsets)
    data = load(tmp_path / "a.npz")
    assert [len(data.split(s)) for s in ("train", "valid", "test")] == [54, 3, 3]
    found = sorted(r.tobytes() for s in ("train", "valid", "test") for r in rows_of(data, s))
    assert found == sorted(r.tobytes() for r in records)
    np.savez(
        tmp_path / "b.npz",
        **{f"{s}{e}": v for s in ("train", "test", "valid") for e, v in (("", flat), ("_offsets", offsets))},
    )
    assert len(load(tmp_path / "b.npz").train) == 60


def quickdraw(record: np.ndarray, word: str, raw: bool = False) -> str:
    lines = [line - np.concatenate(stroke3_to_polylines(record)).min(0) for line in stroke3_to_polylines(record)]
    strokes = [[line[:, 0].tolist(), line[:, 1].tolist()] + ([list(range(len(line)))] if raw else []) for line in lines]
    return json.dumps({"word": word, "drawing": strokes, "recognized": True})


def test_a_folder_of_quickdraw_ndjson_and_npz(tmp_path: Path) -> None:
    records = drawings(60)
    (tmp_path / "x.ndjson").write_text(
        "\n".join(quickdraw(r, "cow" if i % 2 else "ant") for i, r in enumerate(records[:40]))
    )
    save(tmp_path / "bee.npz", train=records[40:])
    data = load(tmp_path, epsilon=0.0)
    assert data.info["classes"] == ["ant", "bee", "cow"]
    assert sum(len(data.split(s)) for s in ("train", "valid", "test")) == 60
    assert set(data.test[torch.arange(len(data.test))]["label"].tolist()) == {0, 1, 2}
    with_points = {r.tobytes() for r in rows_of(data, "train")}
    assert len(with_points & {r.tobytes() for r in records}) > 40  # nothing was simplified away or shifted


def test_quickdraw_raw_is_scaled_and_simplified(tmp_path: Path) -> None:
    line = np.stack((np.linspace(0, 2000, 300), np.linspace(0, 1000, 300)), 1)
    record = {"word": "line", "drawing": [[line[:, 0].tolist(), line[:, 1].tolist(), list(range(300))]]}
    skipped = {"word": "line", "drawing": [], "recognized": False}
    other = {"word": "line", "drawing": [[[0, 50, 0], [0, 200, 100]]]}
    (tmp_path / "a.ndjson").write_text("\n".join(json.dumps(r) for r in (record, skipped, other, other)))
    data = load(tmp_path / "a.ndjson")
    found = [r.tolist() for s in ("train", "valid", "test") for r in rows_of(data, s)]
    assert len(found) == 3
    assert [[255, 128, 1]] in found


def test_long_drawings_are_left_out_and_counted(tmp_path: Path) -> None:
    records = drawings(40)
    path = save(tmp_path / "a.npz", train=records[:20], valid=records[20:30], test=records[30:])
    data = load(path, max_length=40)
    assert data.info["dropped"] == sum(len(r) > 40 for r in records) > 0
    assert data.info["max_length"] <= 40
    with pytest.raises(DataError, match="max_length"):
        load(path, max_length=3)


BAD: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "five columns": (lambda r: np.pad(r, ((0, 0), (0, 2))), "three columns"),
    "one row as a vector": (lambda r: r[0], "shape"),
    "no rows": (lambda r: r[:0], "no point"),
    "pen of 2": (lambda r: np.where(np.arange(3) == 2, 2 * r, r), "pen state 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    records = drawings(10)
    records[4] = spoil(records[4])
    with pytest.raises(DataError, match=message) as caught:
        load(save(tmp_path / "a.npz", train=records, valid=records[:3], test=records[:3]))
    assert "record 4 of train" in str(caught.value)


def absolute(record: np.ndarray) -> np.ndarray:
    points = record[:, :2].cumsum(0)
    return np.column_stack((points - points.min(0), record[:, 2])).astype(np.int16)


def test_absolute_coordinates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absolute coordinates"):
        load(save(tmp_path / "a.npz", train=[absolute(r) for r in drawings(40)]))
    centred = [np.column_stack((20 * (absolute(r)[:, :2] - 90), r[:, 2])).astype(np.int16) for r in drawings(40)]
    with pytest.raises(DataError, match="absolute coordinates"):
        load(save(tmp_path / "b.npz", train=centred))


def test_a_pen_that_never_touches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pen is up"):
        load(save(tmp_path / "a.npz", train=[np.where(np.arange(3) == 2, 1, r).astype(np.int16) for r in drawings(40)]))
    with pytest.raises(DataError, match="not drawings"):
        load(save(tmp_path / "b.npz", train=[np.zeros_like(r) for r in drawings(40)]))


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"word": "a"}', '{"drawing": [[[1, 2], [3]]]}', '{"drawing": [[[], []]]}', '{"drawing": [[["a"], ["b"]]]}', '{"drawing": []}', '{"drawing": [[[1, 2], [NaN, 3]]]}'],
)  # fmt: skip
def test_a_bad_quickdraw_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.ndjson").write_text(quickdraw(drawings(1)[0], "a") + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        load(tmp_path / "a.ndjson")


def test_other_unusable_files_are_refused(tmp_path: Path) -> None:
    records = drawings(5)
    flat, offsets = np.concatenate(records), np.cumsum([0, *map(len, records)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("hello")
    np.savez(tmp_path / "names.npz", something=flat)
    np.savez(tmp_path / "alone.npz", strokes=flat)
    np.savez(tmp_path / "off.npz", strokes=flat, offsets=offsets + 1)
    save(tmp_path / "few.npz", train=records[:2])
    for name in ("empty", "a.txt", "names.npz", "alone.npz", "off.npz", "few.npz"):
        with pytest.raises(DataError):
            load(tmp_path / name)
    with pytest.raises(DataError):
        load(Source("hub", "someone/strokes"))


def test_published_sets(real_data: Path) -> None:
    sheep = load(real_data / "strokes" / "aaron_sheep.npz")
    assert [len(sheep.split(s)) for s in ("train", "valid", "test")] == [7400, 300, 300]
    assert sheep.info["max_length"] == 250
    assert sheep.info["dropped"] == 0
    assert sheep.info["scale"] == pytest.approx(18.5, abs=0.1)
