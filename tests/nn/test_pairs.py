from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cambrian.errors import ShapeError
from cambrian.nn.pairs import PairSum, concatenated_sum

B, N, Q, D, E = 3, 4, 5, 6, 2


def made(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    layer = PairSum(obj_dim=D, q_dim=E, widths=(8, 7, 9), **settings).to(dtype)
    return layer, torch.randn(B, N, D, dtype=dtype), torch.randn(B, Q, E, dtype=dtype)


def gradients(layer, out):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), list(layer.parameters()))


@pytest.mark.parametrize("fused", [True, False])
def test_factored_layer_equals_concatenating_all_pairs(fused):
    layer, objects, question = made(fused=fused)
    reference = concatenated_sum([layer.first, *layer.rest], objects, question)
    out = layer(objects, question)
    assert torch.allclose(out, reference, atol=1e-5)
    for ours, theirs in zip(gradients(layer, out), gradients(layer, reference), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_sum_equals_a_double_loop_with_equal_partners_kept():
    layer, objects, question = made(torch.float64)
    g = nn.Sequential(*(m for linear in (layer.first, *layer.rest) for m in (linear, nn.ReLU())))
    for b, q in itertools.product(range(B), range(Q)):
        total = sum(g(torch.cat([i, j, question[b, q]])) for i in objects[b] for j in objects[b])
        assert torch.allclose(layer(objects, question)[b, q], total, atol=1e-12)


def test_order_of_objects_does_not_matter_but_order_in_a_pair_does():
    layer, objects, question = made()
    shuffled = objects[:, torch.tensor([2, 0, 3, 1])]
    assert torch.allclose(layer(objects, question), layer(shuffled, question), atol=1e-6, rtol=1e-6)
    features = layer.pair_features(objects, question)
    assert not torch.allclose(features, features.transpose(2, 3), atol=1e-3)
    assert torch.allclose(features.sum((2, 3)), layer(objects, question), atol=1e-5)


@pytest.mark.parametrize("pairs", ["all", "self"])
def test_padding_objects_contribute_exactly_nothing(pairs):
    layer, objects, question = made(pairs=pairs)
    mask = torch.tensor([[True] * 3 + [False]] * B)
    out = layer(objects, question, mask)
    noisy = objects.clone()
    noisy[:, 3] = 1e4
    assert torch.equal(layer(noisy, question, mask), out)
    assert torch.allclose(layer(objects[:, :3], question), out, atol=1e-5)
    noisy.requires_grad_(True)
    layer(noisy, question, mask).sum().backward()
    assert noisy.grad[:, 3].eq(0).all() and noisy.grad[:, :3].ne(0).any()


def test_gradients_pass_central_differences():
    layer, objects, question = made(torch.float64)
    objects, question = objects[:2], question[:2, :2]
    mask = torch.tensor([[True, True, False, True]] * 2)
    inputs = (objects.requires_grad_(True), question.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda o, q: layer(o, q, mask), inputs, eps=1e-7)


def test_two_forward_passes_before_a_backward_do_not_disturb_each_other():
    layer, objects, question = made()
    alone = gradients(layer, layer(objects, question))
    first, _ = layer(objects, question), layer(-objects, question)
    for a, b in zip(alone, gradients(layer, first), strict=True):
        assert torch.equal(a, b)
    again = gradients(layer, layer(objects, question))  # on the buffers that came back
    for a, b in zip(alone, again, strict=True):
        assert torch.equal(a, b)


def test_backward_may_run_twice_through_a_kept_graph():
    layer, objects, question = made()
    out = layer(objects, question).sum()
    out.backward(retain_graph=True)
    once = layer.first.weight.grad.clone()
    out.backward()
    assert torch.equal(layer.first.weight.grad, 2 * once)


def test_buffers_are_used_again_when_their_graph_is_gone():
    layer, objects, question = made()
    layer(objects, question).sum().backward()
    kept = layer._workspace.buffers
    out = layer(objects, question)
    assert layer._workspace.buffers is None
    del out
    assert layer._workspace.buffers is kept


def test_inference_in_chunks_gives_the_same(monkeypatch):
    layer, objects, question = made()
    mask = torch.tensor([[True, False, True, True], [True] * 4, [True, True, False, False]])
    expected = layer(objects, question, mask)
    monkeypatch.setattr("cambrian.nn.pairs._ROWS", 1)
    with torch.no_grad():
        assert torch.allclose(layer(objects, question, mask), expected, atol=1e-6)


def test_self_pairs_are_a_network_per_object():
    layer, objects, question = made(pairs="self")
    g = nn.Sequential(*(m for linear in (layer.first, *layer.rest) for m in (linear, nn.ReLU())))
    rows = torch.cat([objects[:, None].expand(B, Q, N, D)] * 2 + [question[:, :, None].expand(B, Q, N, E)], -1)
    assert torch.allclose(layer(objects, question), g(rows).sum(2), atol=1e-5)


def test_second_derivatives_need_the_plain_path():
    layer, objects, question = made(fused=False)
    out = layer(objects.requires_grad_(True), question)
    (slope,) = torch.autograd.grad(out.square().sum(), objects, create_graph=True)
    slope.square().sum().backward()
    assert layer.first.weight.grad.isfinite().all()


def test_no_question_is_allowed():
    layer = PairSum(obj_dim=D, q_dim=0, widths=(4, 4))
    layer(torch.randn(2, N, D), torch.zeros(2, 1, 0)).sum().backward()
    assert layer.first.weight.grad.ne(0).any()


@pytest.mark.parametrize(
    "objects, question, mask",
    [
        (torch.randn(2, 3, 5), torch.randn(2, 1, E), None),
        (torch.randn(2, 3, D), torch.randn(2, E), None),
        (torch.randn(2, 3, D), torch.randn(3, 1, E), None),
        (torch.zeros(2, 3, D, dtype=torch.int64), torch.randn(2, 1, E), None),
        (torch.randn(2, 3, D), torch.randn(2, 1, E), torch.ones(2, 3)),
    ],
)
def test_wrong_shapes_are_typed_errors(objects, question, mask):
    with pytest.raises(ShapeError):
        PairSum(obj_dim=D, q_dim=E, widths=(4,))(objects, question, mask)


def test_wrong_settings_are_typed_errors():
    with pytest.raises(ShapeError, match="pairs"):
        PairSum(obj_dim=D, q_dim=E, widths=(4,), pairs="half")
    with pytest.raises(ShapeError, match="layer"):
        PairSum(obj_dim=D, q_dim=E, widths=())
