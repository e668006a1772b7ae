"""Nearest neighbours against an exhaustive search and scikit-learn."""

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.metrics.neighbours import nearest, neighbour_accuracy


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_is_the_exhaustive_answer(block):
    generator = torch.Generator().manual_seed(0)
    q, r = torch.randn(60, 9, generator=generator), torch.randn(90, 9, generator=generator)
    every = (q[:, None].double() - r[None].double()).square().sum(2).argmin(1)
    assert torch.equal(nearest(q, r, block=block), every)


def test_far_from_the_origin_and_with_equal_rows_the_answer_stays_exact():
    generator = torch.Generator().manual_seed(1)
    r = 1000 + 1e-2 * torch.randn(200, 5, generator=generator)
    q = r[torch.arange(0, 200, 3)]
    assert torch.equal(nearest(q, r), torch.arange(0, 200, 3))
    assert nearest(torch.zeros(1, 2), torch.zeros(5, 2)).tolist() == [0]  # of equals, the first


def test_accuracy_is_that_of_scikit_learn():
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)
    x = x @ torch.randn(64, 20, generator=torch.Generator().manual_seed(0))  # real-valued: no exact ties
    peer = KNeighborsClassifier(1, algorithm="brute").fit(x[:1200].numpy(), y[:1200].numpy())
    index = torch.from_numpy(peer.kneighbors(x[1200:].numpy(), return_distance=False)[:, 0])
    assert torch.equal(nearest(x[1200:], x[:1200], block=100), index)
    assert neighbour_accuracy((x[:1200], y[:1200]), (x[1200:], y[1200:])) == peer.score(
        x[1200:].numpy(), y[1200:].numpy()
    )


def test_bad_shapes_are_named():
    with pytest.raises(ShapeError, match=r"\[N, D\]"):
        nearest(torch.zeros(3, 2), torch.zeros(3, 4))
    assert len(nearest(torch.zeros(0, 2), torch.zeros(3, 2))) == 0
