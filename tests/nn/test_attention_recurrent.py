from __future__ import annotations

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.nn.attention.recurrent import LSTMScorer, masked_softmax


def scorer() -> LSTMScorer:
    torch.manual_seed(0)
    return LSTMScorer(query=5, memory=6, window=4, hidden=7).double()


def test_weights_equal_the_equations_written_out() -> None:
    model = scorer()
    query, memory = torch.randn(2, 3, 5).double(), torch.randn(2, 4, 6).double()
    weights, context = model(query, memory)
    peer = torch.nn.LSTMCell(4, 7).double()
    order = [1, 2, 0, 3]  # torch orders the gates i, f, g, o; the cell g, i, f, o
    with torch.no_grad():
        for theirs, ours in ((peer.weight_ih, model.cell.input.weight), (peer.weight_hh, model.cell.recurrent)):
            theirs.copy_(torch.cat([ours.chunk(4)[i] for i in order]))
        peer.bias_ih.copy_(torch.cat([model.cell.input.bias.chunk(4)[i] for i in order]))
        peer.bias_hh.zero_()
    for b in range(2):
        h, c = torch.zeros(1, 7).double(), torch.zeros(1, 7).double()
        for t in range(3):
            energies = torch.stack([query[b, t] @ (model.keys.weight @ memory[b, j]) for j in range(4)])
            h, c = peer(energies[None], (h, c))
            expected = torch.softmax(model.weights(h)[0], 0)
            torch.testing.assert_close(weights[b, t], expected)
            torch.testing.assert_close(context[b, t], sum(expected[j] * memory[b, j] for j in range(4)))


def test_the_state_goes_from_one_query_to_the_next() -> None:
    model = scorer()
    query, memory = torch.randn(1, 1, 5).double(), torch.randn(1, 4, 6).double()
    weights, _ = model(query.expand(1, 3, 5), memory)
    assert not torch.allclose(weights[0, 0], weights[0, 1])
    first, state = model.step(query, model.project(memory), None, model.initial(1, query))
    second, _ = model.step(query, model.project(memory), None, state)
    torch.testing.assert_close(torch.cat((first, second), 1), weights[:, :2])


def test_what_is_masked_has_no_weight_and_no_influence() -> None:
    model = scorer()
    query, memory = torch.randn(2, 3, 5).double(), torch.randn(2, 4, 6).double()
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    weights, context = model(query, memory, mask)
    other = memory.clone()
    other[0, 2:] = 100.0
    again, _ = model(query, other, mask)
    torch.testing.assert_close(weights, again)
    assert not weights[0, :, 2:].any()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3).double())
    assert context.shape == (2, 3, 6)


def test_a_row_without_anything_to_look_at_gives_zero() -> None:
    weights = masked_softmax(torch.randn(1, 2, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert not weights.any()


def test_every_parameter_gets_a_gradient() -> None:
    model = scorer()
    _, context = model(torch.randn(2, 3, 5).double(), torch.randn(2, 4, 6).double())
    context.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 6), (3, 4, 6)])
def test_another_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="4 vectors"):
        scorer()(torch.zeros(2, 3, 5).double(), torch.zeros(*shape).double())
