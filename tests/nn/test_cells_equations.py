from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cambrian.errors import ConfigError
from cambrian.nn.cells import GRUCell, LSTMCell, TanhCell, build, lstm_equations, make_cell
from cambrian.nn.scan import scan

T, B, I, H = 5, 3, 2, 4
sig = torch.sigmoid


def drawn(cell: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    cell = cell.double()
    for parameter in cell.parameters():
        parameter.data.normal_(std=0.7)
    return cell


def inputs(width: int = I) -> Tensor:
    return torch.randn(T, B, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written_out(name: str, cell: torch.nn.Module, x: Tensor) -> Tensor:
    """The papers' equations, one matrix and one step at a time."""
    m = {**{k: cell.matrix(k) for k in used(cell)}, **dict(cell.biases.items())}
    bare = x if cell.lift is None else x @ cell.lift.weight.t()
    h = c = x.new_zeros(B, H)
    outputs = []
    for x_t, e in zip(x, bare, strict=True):
        h, c = EQUATIONS[name](m, x_t, e, h, c)
        outputs.append(h)
    return torch.stack(outputs)


def used(cell: torch.nn.Module) -> list[str]:
    program = cell.program
    return [*program.input_matrices, *program.inner_matrices, *(m for s in program.state_matrices.values() for m in s)]


def mut1(m, x, e, h, c):
    z = sig(x @ m["Wxz"].t() + m["bz"])
    r = sig(x @ m["Wxr"].t() + h @ m["Whr"].t() + m["br"])
    return torch.tanh((r * h) @ m["Whh"].t() + torch.tanh(e) + m["bh"]) * z + h * (1 - z), c


def mut2(m, x, e, h, c):
    z = sig(x @ m["Wxz"].t() + h @ m["Whz"].t() + m["bz"])
    r = sig(e + h @ m["Whr"].t() + m["br"])
    return torch.tanh((r * h) @ m["Whh"].t() + x @ m["Wxh"].t() + m["bh"]) * z + h * (1 - z), c


def mut3(m, x, e, h, c):
    z = sig(x @ m["Wxz"].t() + torch.tanh(h) @ m["Whz"].t() + m["bz"])
    r = sig(x @ m["Wxr"].t() + h @ m["Whr"].t() + m["br"])
    return torch.tanh((r * h) @ m["Whh"].t() + x @ m["Wxh"].t() + m["bh"]) * z + h * (1 - z), c


def lstm(without: str = "", coupled: bool = False, peephole: bool = False):
    def run(m, x, e, h, c):
        def gate(k: str, memory: Tensor | None = None) -> Tensor:
            seen = 0 if memory is None or not peephole else m["bp" + k] * memory
            return x @ m["W" + k].t() + h @ m["U" + k].t() + m["b" + k] + seen

        i = 1.0 if without == "i" else sig(gate("i", c))
        f = 1.0 if without == "f" else 1 - i if coupled else sig(gate("f", c))
        c = f * c + i * torch.tanh(gate("g"))
        o = 1.0 if without == "o" else sig(gate("o", c))
        return o * torch.tanh(c), c

    return run


EQUATIONS = {
    "mut1": mut1, "mut2": mut2, "mut3": mut3, "lstm-i": lstm("i"), "lstm-f": lstm("f"), "lstm-o": lstm("o"),
    "lstm-coupled": lstm(coupled=True), "lstm-peephole": lstm(peephole=True),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUATIONS)
def test_named_cells_equal_their_papers_equations(name: str) -> None:
    for width in (I, H):
        cell = drawn(build(name, inputs=width, hidden=H))
        x = inputs(width)
        torch.testing.assert_close(scan(cell, x)[0], written_out(name, cell, x), rtol=1e-10, atol=1e-12)
    assert (cell.lift is None) == (width == H or not cell.program.bare)


def test_written_cells_equal_the_built_in_ones() -> None:
    """Equations of tanh, GRU and LSTM against the swept cells with the same weights, outputs and gradients."""
    gru = """
        z = sigmoid(Wz @ x + Uz @ h + bz)
        r = sigmoid(Wr @ x + Ur @ h + br)
        n = tanh(Wn @ x + Un @ (r * h) + bn)
        h' = (1 - z) * h + z * n
    """
    cases = [
        (TanhCell, "h' = tanh(Wa @ x + Ua @ h + ba)", "a"),
        (GRUCell, gru, "rzn"),
        (LSTMCell, lstm_equations(), "gifo"),
    ]
    for kind, text, gates in cases:
        ours, built = drawn(make_cell(text, inputs=I, hidden=H)), drawn(kind(inputs=I, hidden=H))
        with torch.no_grad():
            built.input.weight.copy_(torch.cat([ours.matrix("W" + g) for g in gates]))
            built.recurrent.copy_(torch.cat([ours.matrix("U" + g) for g in gates]))
            built.input.bias.copy_(torch.cat([ours.biases["b" + g] for g in gates]))
        x = inputs().requires_grad_()
        outputs = [scan(cell, x)[0] for cell in (ours, built)]
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_what_needs_the_input_alone_is_formed_once() -> None:
    program = build("mut1", inputs=I, hidden=H).program
    fixed, moving = ([name for name, _ in part] for part in (program.fixed, program.moving))
    assert "z" in fixed
    assert moving == ["r", "h__next"]
    assert program.state_matrices == {"h": ["Whr"]}
    assert program.inner_matrices == ["Whh"]
    assert program.input_matrices == ["Wxr", "Wxz"]


def test_signs_constants_and_division() -> None:
    cell = drawn(make_cell("a = -(h - 2) - (3 - x) / 2; k = softplus(b); h' = tanh(a) * k", inputs=H, hidden=H))
    x = inputs(H)
    h, outputs = x.new_zeros(B, H), []
    for x_t in x:
        h = torch.tanh(-(h - 2) - (3 - x_t) / 2) * torch.nn.functional.softplus(cell.biases["b"])
        outputs.append(h)
    torch.testing.assert_close(scan(cell, x)[0], torch.stack(outputs))


def test_a_cell_without_memory_and_one_without_input() -> None:
    memoryless = make_cell("h' = tanh(W @ x)", inputs=I, hidden=H)
    x = inputs().float()
    torch.testing.assert_close(scan(memoryless, x)[0], torch.tanh(x @ memoryless.matrix("W").t()))
    deaf = make_cell("h' = tanh(U @ h + b)", inputs=I, hidden=H, biases={"b": 1.0})
    outputs, _ = scan(deaf, x)
    assert torch.equal(outputs[:, 0], outputs[:, 1])
    torch.testing.assert_close(outputs[0], torch.tanh(torch.ones(B, H)))


def test_values_shows_the_gates() -> None:
    cell = build("lstm-peephole", inputs=I, hidden=H, forget_bias=2.0)
    x = inputs().float()
    with torch.no_grad():
        values = cell.values(tuple(p[0] for p in cell.project(x)), cell.initial(B, x))
    assert {"i", "f", "o", "g"} <= set(values)
    assert cell.biases["bf"].tolist() == [2.0] * H
    assert 0 < float(values["f"].min()) < float(values["f"].max()) < 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "g = tanh(W @ x)",
        "h' = tanh(W @ x",
        "h' = open(x)",
        "h' = x.__class__",
        "h' = __import__(W @ x)",
        "h' = tanh(W @ y)",
        "h' = x @ W",
        "h' = W @ b",
        "h' = W @ x + W @ h",
        "x' = tanh(h); h' = x",
        "h' = tanh(W @ x); h' = x",
        "W = tanh(x); h' = x",
        "h' = x ** 2",
        "h' = x if x else h",
        "h' = [x]",
        "h' = tanh(x, x)",
        "h', c' = x",
        "h' = 'x'",
        "h' = True",
    ],
)
def test_what_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        make_cell(text, inputs=H, hidden=H)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="bq"):
        make_cell("h' = tanh(W @ x + b)", inputs=I, hidden=H, biases={"bq": 1.0})
    with pytest.raises(ConfigError, match="matrix"):
        make_cell("h' = tanh(W @ x + b)", inputs=I, hidden=H).matrix("V")
    for options in ({"without": ("x",)}, {"without": ("f",), "coupled": True}):
        with pytest.raises(ConfigError):
            lstm_equations(**options)
