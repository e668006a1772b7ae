from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.nn.cells import lstm
from cambrian.nn.convlstm import CELLS, ConvLSTMCell, LSTMCell
from cambrian.nn.scan import bidirectional, scan

T, B, I, H, C = 7, 4, 3, 5, 2
LENGTHS = torch.tensor([7, 3, 0, 5])


def make(name: str, *, dropout: float = 0.0, context: int = 0) -> nn.Module:
    torch.manual_seed(0)
    cell = CELLS[name](inputs=I, hidden=H, context=context, dropout=dropout).double()
    for parameter in cell.parameters():  # away from the special starting values
        parameter.data += 0.2 * torch.randn_like(parameter)
    return cell


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(T, B, I, **draw).requires_grad_(), torch.randn(B, C, **draw).requires_grad_()


def gradients(cell: nn.Module, outputs: Tensor, state: tuple[Tensor, ...], wrt: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    loss = (outputs * weights).sum() + sum((i + 1) * s.square().sum() for i, s in enumerate(state))
    return list(torch.autograd.grad(loss, [*wrt, *cell.parameters()]))


def torch_lstm(cell: LSTMCell) -> nn.LSTM:
    """torch's LSTM with the same weights; its gates are ordered i, f, g, o."""
    peer = nn.LSTM(I, H).double()

    def reorder(w: Tensor) -> Tensor:
        g, i, f, o = w.detach().chunk(4)
        return torch.cat((i, f, g, o))

    peer.weight_ih_l0.data = reorder(cell.input.weight)
    peer.weight_hh_l0.data = reorder(cell.recurrent)
    peer.bias_ih_l0.data = reorder(cell.input.bias)
    peer.bias_hh_l0.data.zero_()
    return peer


@pytest.mark.parametrize("fused", [True, False])
def test_lstm_equals_torch(fused: bool) -> None:
    cell = make("lstm")
    x, _ = inputs()
    ours, (h, c) = scan(cell, x, fused=fused)
    theirs, (ph, pc) = torch_lstm(cell)(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.stack((h, c)), torch.cat((ph, pc)), rtol=1e-9, atol=1e-12)
    (mine,) = torch.autograd.grad(ours.square().sum(), x)
    (peers,) = torch.autograd.grad(theirs.square().sum(), x)
    torch.testing.assert_close(mine, peers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_fused_sweep_equals_the_loop_of_steps(
    monkeypatch: pytest.MonkeyPatch, reverse: bool, lengths: Tensor | None
) -> None:
    # a mask that depends on time only, so that sorting sequences and reversing time leave it comparable
    mask = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25], dtype=torch.float64).expand(T, B, H)
    monkeypatch.setattr(lstm, "dropout_masks", lambda x, hidden, rate: mask)
    cell = make("lstm", dropout=0.2, context=C)
    x, context = inputs()
    start = tuple(torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for fused in (True, False):
        outputs, state = scan(cell, x, start, context=context, lengths=lengths, reverse=reverse, fused=fused)
        results.append([outputs, *state, *gradients(cell, outputs, state, [x, context, *start])])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_dropout_masks_reach_every_step_of_the_sweep() -> None:
    cell = make("lstm", dropout=0.5)
    x, _ = inputs()
    gates, masks = cell.project(x)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    state = cell.initial(B, x)
    swept, _ = cell.sweep((gates, masks), state, [B] * T)
    for t in range(T):
        out, state = cell.step((gates[t], masks[t]), state)
        torch.testing.assert_close(swept[t], out)
    cell.eval()
    assert isinstance(cell.project(x), Tensor)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_padded_batch_equals_one_by_one(name: str, reverse: bool) -> None:
    cell = make(name)
    x, _ = inputs()
    outputs, state = scan(cell, x, lengths=LENGTHS, reverse=reverse)
    for b, n in enumerate(LENGTHS.tolist()):
        assert not outputs[n:, b].any()
        if n:
            alone, last = scan(cell, x[:n, b : b + 1], reverse=reverse)
            torch.testing.assert_close(outputs[:n, b], alone[:, 0])
            torch.testing.assert_close(torch.cat([s[b] for s in state]), torch.cat([s[0] for s in last]))
        else:
            assert not torch.cat([s[b] for s in state]).any()


@pytest.mark.parametrize("name", CELLS)
def test_padding_has_no_influence(name: str) -> None:
    cell = make(name)
    x, _ = inputs()
    outputs, state = scan(cell, x, lengths=LENGTHS)
    (d_x,) = torch.autograd.grad(outputs.square().sum() + state[0].sum(), x)
    beyond = torch.arange(T)[:, None] >= LENGTHS
    assert not d_x[beyond].any()
    changed, _ = scan(cell, torch.where(beyond[..., None], 1e6, x), lengths=LENGTHS)
    assert torch.equal(changed, outputs)


@pytest.mark.parametrize("name", CELLS)
def test_reversed_time_equals_flipped_input(name: str) -> None:
    cell = make(name)
    x, _ = inputs()
    back, state = scan(cell, x, reverse=True)
    flipped, last = scan(cell, x.flip(0))
    torch.testing.assert_close(back, flipped.flip(0))
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("name", CELLS)
def test_context_equals_an_input_at_every_step(name: str) -> None:
    x, context = inputs()
    wide = torch.cat((x, context.expand(T, -1, -1)), -1)
    split = make(name, context=C)
    joined = CELLS[name](inputs=I + C, hidden=H).double()
    state = dict(split.state_dict())
    for key in [k for k in state if k.endswith("context.weight")]:
        partner = key.replace("context", "input")
        if key in joined.state_dict():  # the hyper LSTM's own, which also reads h: its columns are (h, context)
            state[partner] = torch.cat((state[partner], state[key][:, H:]), 1)
            state[key] = state[key][:, :H]
        else:
            state[partner] = torch.cat((state[partner], state.pop(key)), 1)
    joined.load_state_dict(state)
    torch.testing.assert_close(scan(split, x, context=context)[0], scan(joined, wide)[0])


@pytest.mark.parametrize("name", CELLS)
def test_gradients_match_differences(name: str) -> None:
    cell = make(name)
    x = inputs()[0][:3, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: scan(cell, v, lengths=torch.tensor([3, 2]))[0], (x,))


def test_truncation_cuts_the_gradient_and_nothing_else() -> None:
    cell = make("layernorm")
    x, _ = inputs()
    full, _ = scan(cell, x)
    cut, _ = scan(cell, x, detach_every=3)
    assert torch.equal(full, cut)
    (d_x,) = torch.autograd.grad(cut[-1].sum(), x)
    assert not d_x[:6].any()
    assert d_x[6].any()
    whole, _ = scan(cell, x, detach_every=T)
    torch.testing.assert_close(
        torch.autograd.grad(whole.sum(), x)[0], torch.autograd.grad(full.sum(), x)[0], rtol=1e-9, atol=1e-12
    )


def test_a_mask_with_holes_skips_those_steps() -> None:
    cell = make("lstm")
    x, _ = inputs()
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[2, 0] = mask[4, 0] = False
    outputs, state = scan(cell, x, mask=mask)
    kept = x[torch.tensor([0, 1, 3, 5, 6]), :1]
    alone, last = scan(cell, kept)
    torch.testing.assert_close(outputs[mask[:, 0], 0], alone[:, 0])
    torch.testing.assert_close(state[1][0], last[1][0])


def test_both_directions() -> None:
    forward, backward = make("lstm"), make("layernorm")
    x, _ = inputs()
    outputs, last, first = bidirectional(forward, backward, x, lengths=LENGTHS)
    assert outputs.shape == (T, B, 2 * H)
    torch.testing.assert_close(outputs[6, 0, :H], last[0][0])
    torch.testing.assert_close(outputs[0, 1, H:], first[0][1])


def test_the_convolutional_cell_with_kernel_1_is_an_lstm_at_every_place() -> None:
    torch.manual_seed(0)
    plain = make("lstm")
    cell = ConvLSTMCell(inputs=I, hidden=H, kernel=1).double()
    cell.input.weight.data = plain.input.weight.data[..., None, None]
    cell.input.bias.data = plain.input.bias.data
    cell.recurrent.weight.data = plain.recurrent.data[..., None, None]
    x = torch.randn(T, B, I, 2, 3, dtype=torch.float64)
    outputs, state = scan(cell, x, lengths=LENGTHS)
    assert state[0].shape == (B, H, 2, 3)
    here, _ = scan(plain, x[..., 1, 2], lengths=LENGTHS)
    torch.testing.assert_close(outputs[..., 1, 2], here)


def test_layer_norm_makes_gates_indifferent_to_the_scale_of_the_input() -> None:
    cell = make("layernorm")
    x, _ = inputs()
    small, _ = scan(cell, x[:1])
    large, _ = scan(cell, 1000 * x[:1])
    torch.testing.assert_close(small, large, rtol=1e-2, atol=1e-3)


def test_the_hyper_cell_starts_as_a_scaled_layer_norm_cell() -> None:
    torch.manual_seed(0)
    hyper = CELLS["hyper"](inputs=I, hidden=H).double()
    plain = CELLS["layernorm"](inputs=I, hidden=H).double()
    plain.plain.load_state_dict(hyper.plain.state_dict())
    x, _ = inputs()
    # all scales start at 0.1, which the layer norm divides away but for its epsilon
    torch.testing.assert_close(scan(hyper, 30 * x)[0][0], scan(plain, 30 * x)[0][0], rtol=1e-2, atol=1e-3)


def test_bad_input_is_refused() -> None:
    cell = make("lstm")
    x, _ = inputs()
    for bad in (
        {"x": x[0]},
        {"x": x[:0]},
        {"x": x, "lengths": torch.tensor([1, 2, 3])},
        {"x": x, "lengths": torch.tensor([1, 2, 3, T + 1])},
        {"x": x, "lengths": torch.tensor([1.0, 2.0, 3.0, 4.0])},
        {"x": x, "mask": torch.ones(T, B)},
        {"x": x, "detach_every": 0},
    ):
        with pytest.raises(ShapeError):
            scan(cell, **bad)
