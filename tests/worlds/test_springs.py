from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from cambrian.data.random import sample_keys
from cambrian.errors import DataError
from cambrian.worlds import springs


def pair(kind, rest):
    link = torch.tensor([[[False, True], [True, False]]])
    none = torch.zeros_like(link)
    return springs.Links(
        link if kind == "spring" else none, link if kind == "rod" else none, torch.full((1, 2, 2), rest)
    )


def test_two_balls_on_a_spring_swing_with_the_known_period():
    start = torch.tensor([[[-0.3, 0.0], [0.3, 0.0]]], dtype=torch.float64)
    path = springs.simulate(start, torch.zeros_like(start), pair("spring", 0.4), frames=21, substeps=40, walls=False)
    seconds = springs.FRAME_SECONDS * torch.arange(21, dtype=torch.float64)
    expected = 0.4 + 0.2 * torch.cos(math.sqrt(2 * springs.STIFFNESS) * seconds)
    assert torch.allclose((path[0, 1] - path[0, 0]).norm(dim=-1), expected, atol=2e-3)


def test_a_turning_rod_keeps_its_length_and_its_rate():
    start = torch.tensor([[[-0.2, 0.0], [0.2, 0.0]]], dtype=torch.float64)
    speed = torch.tensor([[[0.0, -0.4], [0.0, 0.4]]], dtype=torch.float64)
    path = springs.simulate(start, speed, pair("rod", 0.4), frames=16, substeps=20, walls=False)
    turn = 2.0 * springs.FRAME_SECONDS * torch.arange(16, dtype=torch.float64)  # 0.4 / 0.2 radians a second
    expected = 0.2 * torch.stack([turn.cos(), turn.sin()], 1)
    assert torch.allclose(path[0, 1], expected, atol=6e-3)  # 1% of the path


@pytest.fixture(scope="module")
def scene():
    return springs.motion(sample_keys(0, 0, torch.arange(24)))


def test_rods_keep_their_lengths_and_balls_stay_on_the_table(scene):
    gap = (scene.path[:, :, None] - scene.path[:, None]).norm(dim=-1)
    stretch = (gap - scene.links.rest[..., None]).abs() * scene.links.rod[..., None]
    assert stretch.max() < 0.02
    assert scene.path.abs().max() < 1.1
    assert not (scene.links.spring & scene.links.rod).any()
    assert torch.equal(scene.links.joined, scene.links.joined.transpose(1, 2))


def test_momentum_is_kept_without_walls():
    key = sample_keys(4, 0, torch.arange(8))
    start = springs._apart(key).double()
    links = springs._connect(key, start)
    speed = torch.randn(8, 10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = springs.simulate(start, speed, links, walls=False)
    drift = path.mean(1) - path.mean(1)[:, :1]  # the centre of mass moves in a straight line
    expected = speed.mean(1)[:, None] * springs.FRAME_SECONDS * torch.arange(16)[None, :, None]
    assert torch.allclose(drift, expected, atol=1e-9)


def test_energy_of_springs_is_kept():
    start = springs._apart(sample_keys(9, 0, torch.arange(4))).double()
    every = torch.zeros(4, 10, 10, dtype=torch.bool)
    every[:, 0, 1] = every[:, 1, 0] = every[:, 1, 2] = every[:, 2, 1] = True
    links = springs.Links(every, torch.zeros_like(every), springs._gaps(start)[1] * 0.8)
    still = torch.zeros_like(start)
    path = springs.simulate(start, still, links, frames=24, substeps=20, walls=False)
    gap = (path[:, :, None] - path[:, None]).norm(dim=-1)
    stored = 0.25 * springs.STIFFNESS * ((gap - links.rest[..., None]).square() * every[..., None]).sum((1, 2))
    assert (stored <= stored[:, :1] * 1.01).all()  # from rest, no more can be stored than at the start
    assert (stored.amin(1) < 0.7 * stored[:, 0]).all() and (stored[:, 1:].amax(1) > 0.6 * stored[:, 0]).all()


def test_components_equal_a_graph_library():
    generator = torch.Generator().manual_seed(1)
    joined = torch.rand(50, 10, 10, generator=generator) < 0.08
    joined = joined | joined.transpose(1, 2)
    expected = [connected_components(np.asarray(g), directed=False)[0] for g in joined]
    assert springs.components(joined).tolist() == expected


def test_connections_are_listed_by_colour_not_by_order(scene):
    listed = scene.connections()
    pairs = [(a, b) for a in range(10) for b in range(a + 1, 10)]
    for b in range(5):
        colour = scene.colour[b].tolist()
        for place, (first, second) in enumerate(pairs):
            real = bool(scene.links.joined[b, colour.index(first), colour.index(second)])
            assert bool(listed[b, place]) == real
    assert scene.state().shape == (24, 10, 42)


def test_a_scene_depends_on_its_key_alone(scene):
    again = springs.motion(sample_keys(0, 0, torch.tensor([17, 2])))
    assert torch.allclose(again.path, scene.path[[17, 2]], atol=1e-5)
    assert torch.equal(again.links.joined, scene.links.joined[[17, 2]])


def test_links_of_other_balls_are_a_typed_error(scene):
    with pytest.raises(DataError, match="do not fit"):
        springs.simulate(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), pair("rod", 1.0))
