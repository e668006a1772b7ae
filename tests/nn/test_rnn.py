from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.cells import CELLS, RNN, VariationalDropout, Zoneout, build, compiled, detached
from cambrian.nn.scan import chunks, free_run, scan

T, B, I, H = 6, 3, 4, 4
LENGTHS = torch.tensor([6, 2, 4])


def inputs() -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def make(**options: object) -> RNN:
    torch.manual_seed(0)
    return RNN(**{"inputs": I, "hidden": H, **options}).double()


# -- the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "gru", "mut1"])
def test_truncation_of_sweeps_equals_that_of_steps(name: str) -> None:
    cell, x = build(name, inputs=I, hidden=H).double(), inputs()
    for reverse in (False, True):
        found = []
        for fused in (True, False):
            y, state = scan(cell, x, detach_every=4, fused=fused, reverse=reverse)
            found.append([y, *torch.autograd.grad(y.square().sum() + state[0].sum(), [x, *cell.parameters()])])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    whole, cut = (scan(cell, x, detach_every=k)[0] for k in (None, T))
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), list(cell.parameters())) for y in (whole, cut))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_chunks_carry_the_state_and_cut_the_gradient() -> None:
    cell, x = build("gru", inputs=I, hidden=H).double(), inputs()
    whole, last = scan(cell, x)
    summed = [torch.zeros_like(p) for p in cell.parameters()]
    state: tuple[Tensor, ...] = ()
    for where, y, state in chunks(cell, x, 4):  # noqa: B007
        torch.testing.assert_close(y, whole[where])
        for total, part in zip(summed, torch.autograd.grad(y.square().sum(), list(cell.parameters()))):
            total += part
    torch.testing.assert_close(state[0], last[0])
    y, _ = scan(cell, x, detach_every=4)
    for a, b in zip(summed, torch.autograd.grad(y.square().sum(), list(cell.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    with pytest.raises(ShapeError):
        next(chunks(cell, x, 0))


def test_running_freely_equals_teacher_forcing_on_what_it_wrote() -> None:
    cell, first = build("lstm", inputs=H, hidden=H).double(), torch.randn(B, H, dtype=torch.float64)
    outputs, state = free_run(cell, first, lambda y: 2 * y, 5)
    read = torch.cat((first[None], 2 * outputs[:-1]))
    forced, last = scan(cell, read)
    torch.testing.assert_close(outputs, forced)
    torch.testing.assert_close(state, last)
    with pytest.raises(ShapeError):
        free_run(cell, first[0], lambda y: y, 5)


def test_callbacks_see_every_step() -> None:
    cell, x = build("tanh", inputs=I, hidden=H).double(), inputs()
    seen: list[tuple[int, Tensor]] = []
    y, _ = scan(cell, x, reverse=True, callback=lambda t, output, state: seen.append((t, state[0])))
    assert [t for t, _ in seen] == list(range(T - 1, -1, -1))
    torch.testing.assert_close(torch.stack([h for _, h in reversed(seen)]), y)


# -- compiled chunks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_compiled_chunks_equal_the_loop(lengths: Tensor | None) -> None:
    plain = build("mut2", inputs=I, hidden=H).double()
    fast, x = compiled(plain, 4), inputs()
    fast.backend = "aot_eager"  # the graph and its gradient as for any backend, without a C++ compiler
    found = []
    for cell in (plain, fast):
        y, state = scan(cell, x, lengths=lengths)
        found.append([y, *state, *torch.autograd.grad(y.square().sum() + state[0].sum(), [x, *plain.parameters()])])
    assert not fast._broken
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_without_a_compiler_the_plain_loop_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def failing(*_: object, **__: object) -> None:
        raise TorchDynamoException("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: failing)
    plain = build("tanh", inputs=I, hidden=H).double()
    fast, x = compiled(plain, 2), inputs()
    with pytest.warns(UserWarning, match=r"C\+\+ compiler"):
        y, _ = scan(fast, x)
    torch.testing.assert_close(y, scan(plain, x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        scan(fast, x)


def test_an_error_in_the_cell_is_not_blamed_on_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    fast = compiled(build("tanh", inputs=I, hidden=H), 2)
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.sweep(torch.zeros(2, B, H + 1), (torch.zeros(B, H),), [B, B])
    with pytest.raises(ConfigError):
        compiled(build("tanh", inputs=I, hidden=H), 0)


# -- hooks -----------------------------------------------------------------------------------------------------------


def test_zoneout_keeps_units_in_training_and_mixes_outside() -> None:
    cell = build("tanh", inputs=I, hidden=200)
    wrapped, x = Zoneout(cell, rate=0.3), torch.randn(2, 50, I)
    torch.manual_seed(0)
    old = torch.randn(50, 200)
    projected = wrapped.project(x)
    y, (h,) = wrapped.step((projected[0][0], projected[1][0]), (old,))
    plain = cell.step(cell.project(x)[0], (old,))[0]
    assert torch.equal(y, h)
    kept = h == old
    assert 0.27 < float(kept.float().mean()) < 0.33
    torch.testing.assert_close(h[~kept], plain[~kept])
    wrapped.eval()
    y, _ = wrapped.step((wrapped.project(x)[0][0],), (old,))
    torch.testing.assert_close(y, 0.3 * old + 0.7 * plain)


def test_variational_masks_stay_over_a_sequence() -> None:
    cell = VariationalDropout(build("lstm", inputs=I, hidden=H), inputs=0.5, state=0.5)
    seen: list[Tensor] = []
    inner = cell.cell.step
    cell.cell.step = lambda projected, state: seen.append(state[0]) or inner(projected, state)
    scan(cell, torch.ones(40, 1, I))
    dropped = torch.stack(seen[1:])[:, 0] == 0
    assert torch.equal(dropped.all(0), dropped.any(0))
    gates = cell.project(torch.ones(5, 1, I))[0]
    assert torch.equal(gates[0], gates[4])
    cell.eval()
    torch.testing.assert_close(scan(cell, torch.ones(3, 1, I))[0], scan(cell.cell, torch.ones(3, 1, I))[0])
    with pytest.raises(ConfigError):
        Zoneout(build("tanh", inputs=I, hidden=H), rate=1.0)


# -- layers ----------------------------------------------------------------------------------------------------------


def test_layers_and_directions_equal_torch() -> None:
    ours, x = make(layers=2, bidirectional=True), inputs()
    peer = nn.LSTM(I, H, 2, bidirectional=True).double()
    for i, cell in enumerate(ours.cells):
        end = f"_l{i // 2}{'_reverse' if i % 2 else ''}"
        for name, w in (("weight_ih", cell.input.weight), ("weight_hh", cell.recurrent), ("bias_ih", cell.input.bias)):
            g, i_, f, o = w.detach().chunk(4)
            getattr(peer, name + end).data = torch.cat((i_, f, g, o))
        getattr(peer, "bias_hh" + end).data.zero_()
    y, state = ours(x)
    theirs, (h, _) = peer(x)
    torch.testing.assert_close(y, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.stack([s[0] for s in state]), h, rtol=1e-9, atol=1e-12)
    packed = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    padded, _ = nn.utils.rnn.pad_packed_sequence(peer(packed)[0], total_length=T)
    torch.testing.assert_close(ours(x, lengths=LENGTHS)[0], padded, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gru", "mut3", "h' = tanh(W @ x + U @ h + b)"])
def test_single_steps_equal_the_whole(name: str) -> None:
    rnn, x = make(cell=name, layers=2, residual=True, zoneout=0.1).eval(), inputs()
    y, last = rnn(x)
    state = rnn.initial(B, x)
    for t in range(T):
        out, state = rnn.step(x[t], state)
        torch.testing.assert_close(out, y[t])
    torch.testing.assert_close(state, last)
    first, middle = rnn(x[:3])
    second, end = rnn(x[3:], detached(middle))
    torch.testing.assert_close(torch.cat((first, second)), y)
    torch.testing.assert_close(end, last)


def test_residual_layers_add_their_input() -> None:
    rnn, x = make(layers=2, residual=True), inputs()
    for cell in rnn.cells:
        cell.input.weight.data.zero_()
        cell.input.bias.data.zero_()
        cell.recurrent.data.zero_()
    torch.testing.assert_close(rnn(x)[0], x.detach())


@pytest.mark.parametrize("name", CELLS)
def test_every_named_cell_stacks_and_learns(name: str) -> None:
    rnn = RNN(inputs=3, hidden=H, cell=name, layers=2, bidirectional=True, dropout=0.1, variational=0.1)
    y, _ = rnn(torch.randn(T, B, 3), lengths=LENGTHS)
    assert y.shape == (T, B, 2 * H)
    y.square().sum().backward()
    for parameter_name, p in rnn.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()), parameter_name


def test_weights_round_trip(tmp_path: Path) -> None:
    rnn = RNN(inputs=3, hidden=H, cell="lstm", options={"forget_bias": 3.0})
    rnn.save_pretrained(tmp_path)
    x = torch.randn(T, B, 3)
    assert torch.equal(RNN.from_pretrained(tmp_path)(x)[0], rnn(x)[0])


def test_bad_requests_are_refused() -> None:
    rnn, both = make(), make(bidirectional=True)
    x = inputs()
    for bad in (x[0], x[..., :2], x.long()):
        with pytest.raises(ShapeError):
            rnn(bad)
    with pytest.raises(ShapeError):
        rnn(x, rnn.initial(B + 1, x))
    with pytest.raises(ShapeError):
        both.step(x[0], both.initial(B, x))
    with pytest.raises(ConfigError):
        make(layers=0)
    with pytest.raises(ConfigError, match="cells"):
        make(cell="lsmt")
