import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, Delaunay

from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError, DataError, ShapeError
from cambrian.worlds.point_sets import (
    FLATTEST,
    brute_force_tour,
    delaunay,
    draw,
    hull,
    load,
    read,
    tour,
    tour_length,
    turns,
)
from cambrian.worlds.tour_heuristics import christofides, insertion, nearest_neighbour


def points(n, sets=40):
    return draw(sample_keys(7, n, torch.arange(sets)), n)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_hulls_are_those_of_scipy(n):
    sets = points(n)
    for p, answer in zip(sets, hull(sets), strict=True):
        truth = (ConvexHull(p.double().numpy()).vertices + 1).tolist()  # counter-clockwise in the plane
        at = truth.index(min(truth))
        assert answer == truth[at:] + truth[:at]


@pytest.mark.parametrize("n", [3, 6, 7])
def test_tours_are_shortest(n):
    sets = points(n, 8)
    for p, answer in zip(sets, tour(sets), strict=True):
        assert sorted(answer) == list(range(1, n + 1)) and answer[0] == 1 and answer[1] < answer[-1]
        assert tour_length(p.double(), answer) == pytest.approx(brute_force_tour(p.double()), abs=1e-9)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_triangulations_are_those_of_scipy_in_order_of_incentres(n):
    sets = points(n)
    for p, answer in zip(sets, delaunay(sets), strict=True):
        triangles = [tuple(answer[i : i + 3]) for i in range(0, len(answer), 3)]
        assert set(triangles) == {tuple(sorted(t)) for t in (Delaunay(p.double().numpy()).simplices + 1).tolist()}
        assert all(a < b < c for a, b, c in triangles)
        p = p.double().numpy()
        centres = []
        for t in triangles:
            a, b, c = p[np.array(t) - 1]
            sides = np.array([np.linalg.norm(b - c), np.linalg.norm(c - a), np.linalg.norm(a - b)])
            centres.append(tuple((sides[:, None] * np.array([a, b, c])).sum(0) / sides.sum()))
        assert centres == sorted(centres)


def test_heuristics_are_tours_within_their_bounds():
    for p in points(9, 10):
        best = tour_length(p.double(), tour(p[None])[0])
        for found in (nearest_neighbour(p), insertion(p), insertion(p, farthest=True), christofides(p)):
            assert found[0] == 1 and sorted(found) == list(range(1, 10))
            assert tour_length(p.double(), found) >= best - 1e-9
        assert tour_length(p.double(), christofides(p)) <= 1.5 * best
        assert tour_length(p.double(), insertion(p)) <= 2 * best


def test_sets_have_no_three_points_on_a_line_and_depend_on_their_key_alone():
    sets = points(10, 500)
    i = torch.arange(10)
    distinct = (i[:, None, None] < i[:, None]) & (i[:, None] < i)
    assert (turns(sets).abs()[:, distinct] > FLATTEST).float().mean() > 0.9999
    assert torch.equal(points(10, 20), sets[:20])


@pytest.mark.parametrize("task", ["hull", "delaunay", "tour"])
def test_splits(task):
    data = load(task, low=4, high=7, train=60, valid=10, test=12)
    batch = data.train[torch.arange(60)]
    assert set(batch["count"].tolist()) <= {4, 5, 6, 7} and not batch["points"][batch["count"] == 4, 4:].any()
    for target, count in zip(batch["target"], batch["count"]):
        end = int((target == 0).nonzero()[0])
        assert (target[:end] > 0).all() and (target[:end] <= count).all() and (target[end + 1 :] == -1).all()
    assert torch.equal(
        batch["points"], load(task, low=4, high=7, train=80, valid=10, test=12).train[torch.arange(60)]["points"]
    )


def test_a_users_file(tmp_path):
    path = tmp_path / "sets.csv"
    path.write_text("0,0,10,0,10,10,0,10,4,5\n0,0,5,1,2,6\n\n1,1,9,2,3,8,4,4\n")
    data = read(path, "hull")
    assert data.info["span"] == 10 and data.info["high"] == 5
    square = data.valid[torch.tensor([0])]
    assert square["target"][0].tolist() == [1, 2, 3, 4, 0, -1] and square["points"].max() == 1
    for text, message in (
        ("1,2,a", "line 1"), ("0,0,1,1\n", "line 1"), ("0,0,1,1,2\n", "line 1"), ("0,0,1,1,nan,2\n", "line 1"),
        ("0,0,1,0,0,1\n", "three splits"), ("0,0,1,1,2,2\n" * 3, "line"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read(path, "hull")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "none.csv", "hull")


def test_bad_input():
    for bad in (torch.zeros(1, 2, 2), torch.zeros(1, 4, 3), torch.full((1, 4, 2), float("nan"))):
        with pytest.raises(ShapeError):
            hull(bad)
    with pytest.raises(ShapeError, match="line"):
        hull(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]]))
    with pytest.raises(ShapeError, match="at most 12"):
        tour(torch.rand(1, 13, 2))
    with pytest.raises(ConfigError):
        load("maze")
    with pytest.raises(ConfigError):
        load("tour", high=20)
