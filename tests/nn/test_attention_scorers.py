import math

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.nn.attention.scorers import Additive, Bilinear, Dot

SCORERS = {
    "additive": lambda: Additive(query=4, key=4, size=5, budget=60),
    "dot": lambda: Dot(size=4),
    "scaled": lambda: Dot(size=4, scaled=True),
    "bilinear": lambda: Bilinear(query=4, key=4),
}


def plain(name, scorer, q, k):
    """One score by the formula."""
    if name == "additive":
        return scorer.v.weight[0] @ torch.tanh(scorer.from_key.weight @ k + scorer.from_query.weight @ q)
    if name == "bilinear":
        return q @ scorer.weight.weight @ k
    return q @ k / (2 if name == "scaled" else 1)


@pytest.mark.parametrize("name", SCORERS)
def test_scores_weights_and_context_by_hand(name):
    torch.manual_seed(0)
    scorer = SCORERS[name]()
    query, keys = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    scores = scorer.scores(query, keys, mask)
    weights, context = scorer(query, keys, mask)
    for b in range(2):
        for m in range(5):
            for s in range(3):
                expected = plain(name, scorer, query[b, m], keys[b, s]) if mask[b, s] else -math.inf
                assert float(scores[b, m, s]) == pytest.approx(float(expected), abs=1e-5)
    assert torch.allclose(weights, scores.softmax(-1)) and not weights[1, :, 1].any()
    assert torch.allclose(context, torch.einsum("bms,bsk->bmk", weights, keys), atol=1e-6)


@pytest.mark.parametrize("name", SCORERS)
def test_one_query_many_axes_and_cached_keys_agree(name):
    scorer = SCORERS[name]()
    query, keys = torch.randn(2, 3, 2, 4), torch.randn(2, 6, 4)
    cached = scorer.prepare(keys)
    weights, context = scorer(query, keys, cached=cached)
    assert weights.shape == (2, 3, 2, 6) and context.shape == (2, 3, 2, 4)
    one, what = scorer(query[:, 1, 0], keys)
    assert torch.allclose(weights[:, 1, 0], one, atol=1e-6) and torch.allclose(context[:, 1, 0], what, atol=1e-6)


def test_one_key_takes_everything():
    assert torch.equal(Dot(size=4)(torch.randn(3, 4), torch.randn(3, 1, 4))[0], torch.ones(3, 1))


def test_bad_input():
    scorer, query, keys = Dot(size=4), torch.randn(2, 4), torch.randn(2, 3, 4)
    for q, k, mask in (
        (query[:1], keys, None), (query[:, :3], keys, None), (query, keys[:, :0], None), (query, keys, torch.ones(2, 3)),
        (query, keys, torch.zeros(2, 3, dtype=torch.bool)),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            scorer(q, k, mask)
