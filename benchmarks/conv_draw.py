"""The hot paths of conv-draw: the range coder's lanes, and a training step with hoisted and fused convolutions.

Run with `python benchmarks/conv_draw.py`. The coder's peers are the same coder in Python's whole numbers and, where
it is installed, `constriction`; throughput is printed in MB of symbols (one byte each) a second. The step's peer is the
loop as one writes it first: x and eps read again at every step, and four convolutions a gate of each LSTM.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.codec.frequencies import cumulative
from cambrian.codec.rans import LOW, Stack
from cambrian.inspect.bench import compare
from cambrian.nn.convlstm import ConvLSTMCell
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.likelihood.conv_draw import ConvDRAW, encode
from cambrian.systems.likelihood.conv_draw.model import ConvDRAW as Model
from cambrian.worlds import figures

SYMBOLS, LANES = 20_000, 512


def scalar(symbols: list[int], table: list[int], precision: int = 16) -> tuple[int, list[int]]:
    """The coder's one lane in Python's whole numbers."""
    state, words = LOW, []
    for symbol in symbols:
        start, freq = table[symbol], table[symbol + 1] - table[symbol]
        if state >= freq << (63 - precision):
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // freq << precision) + start + state % freq
    return state, words


def coders() -> None:
    """One lane equals the scalar coder; then the throughput of many."""
    rng = np.random.default_rng(0)
    table = cumulative(rng.dirichlet(np.ones(256)), 16)
    symbols = rng.choice(256, SYMBOLS, p=np.diff(table) / 65536)
    one = Stack()
    one.push_symbols(symbols[:2000], table)
    state, words = scalar(symbols[:2000].tolist(), table.tolist())
    assert int(one.heads[0]) == state
    assert one.words.tolist() == words
    many = Stack(LANES)
    many.push_symbols(symbols, table)
    assert many.copy().pop_symbols(SYMBOLS, table).tolist() == symbols.tolist()
    timed: dict[str, Callable[[], object]] = {
        f"encode, {LANES} lanes": lambda: Stack(LANES).push_symbols(symbols, table),
        "encode, whole numbers of Python": lambda: scalar(symbols.tolist(), table.tolist()),
        f"decode, {LANES} lanes": lambda: many.copy().pop_symbols(SYMBOLS, table),
    }
    try:
        import constriction
    except ImportError:
        print("constriction is not installed")
    else:
        model = constriction.stream.model.Categorical((np.diff(table) / 65536).astype(np.float32), perfect=False)
        timed["encode, constriction"] = lambda: constriction.stream.stack.AnsCoder().encode_reverse(
            symbols.astype(np.int32), model
        )
    result = compare(timed, threads=1)
    print(result)
    for name, act in timed.items():
        started = time.perf_counter()
        act()
        print(f"{name}: {SYMBOLS / (time.perf_counter() - started) / 1e6:.2f} MB of symbols a second")


def naive_step(cell: ConvLSTMCell, inputs: Tensor, extra: Tensor | None, state: tuple[Tensor, Tensor]) -> list[Tensor]:
    """A convolutional LSTM, gate by gate."""
    (h, c), pad = state, cell.recurrent.padding
    extras = extra.chunk(4, 1) if extra is not None else [torch.zeros(())] * 4
    parts = zip(
        cell.input.weight.chunk(4), cell.input.bias.chunk(4), cell.recurrent.weight.chunk(4), extras, strict=True
    )
    gates = [F.conv2d(inputs, w, b, padding=pad) + F.conv2d(h, u, padding=pad) + e for w, b, u, e in parts]
    c = gates[2].sigmoid() * c + gates[1].sigmoid() * gates[0].tanh()
    return [gates[3].sigmoid() * c.tanh(), c]


def naive_loss(model: Model, image: Tensor, generator: torch.Generator) -> Tensor:
    """The bound, nothing hoisted."""
    x, total = model.scaled(image), torch.zeros(len(image))
    zero = x.new_zeros(len(x), model.hidden, *model.slot_shape(0, *x.shape[2:])[1:])
    encoder, decoder = [zero, zero], [zero, zero]
    r = model.canvas.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
    stride = {"stride": model.scale, "padding": 2}
    for _ in range(model.steps):
        read = F.conv2d(x, model.read.weight, **stride)
        read = read + F.conv2d(x - r[:, : model.channels], model.read_error.weight, **stride)
        encoder = naive_step(model.encoders[0], decoder[0], read, encoder)
        q, p = (DiagGaussian(*head(h).chunk(2, 1)) for head, h in
                ((model.posteriors[0], encoder[0]), (model.priors[0], decoder[0])))  # fmt: skip
        z = q.sample(generator)
        total = total + kl_diag(q, p).flatten(1).sum(1)
        decoder = naive_step(model.decoders[0], z, F.conv2d(r, model.read_canvas.weight, **stride), decoder)
        r = r + F.pixel_shuffle(model.write(decoder[0]), model.scale)
    return (total - model.log_likelihood(r, image, generator)).mean()


def training() -> None:
    """Equal losses and gradients, then the time of a step."""
    torch.manual_seed(0)
    model = ConvDRAW(hidden=48, latent=8, steps=4, scale=4)
    image = figures.load(train=32, valid=1, test=1).train[torch.arange(32)]["image"]

    def ours() -> Tensor:
        nll, kl, _ = model.elbo(image, torch.Generator().manual_seed(0))
        return (nll + kl.sum(1)).mean()

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    losses = ours(), naive_loss(model, image, torch.Generator().manual_seed(0))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-2)
    for a, b in zip(*map(gradients, losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()) + 1e-6)
    timed = {
        "hoisted and fused": lambda: gradients(ours()),
        "gate by gate": lambda: gradients(naive_loss(model, image, torch.Generator().manual_seed(0))),
    }
    print(compare(timed, threads=1))


def files() -> None:
    """Throughput of the whole codec in MB of raw pixels a second, network and coder together (untrained weights)."""
    torch.manual_seed(0)
    model = ConvDRAW(hidden=48, latent=8, steps=4, scale=4).eval()
    image = figures.load(train=1, valid=1, test=256).test[torch.arange(256)]["image"]
    for mode, count in (("lossless", 64), ("lossless", 256), ("lossy", 64)):
        started = time.perf_counter()
        coded = encode(model, image[:count], mode=mode)
        middle = time.perf_counter()
        assert torch.equal(model.decode(coded.data), coded.picture)
        spent = middle - started, time.perf_counter() - middle
        speed = [image[:count].numel() / s / 1e6 for s in spent]
        print(f"{mode}, {count} pictures: encode {speed[0]:.4f} MB/s, decode {speed[1]:.4f} MB/s")


def main() -> None:
    """Check equality, then time."""
    torch.set_num_threads(1)
    coders()
    training()
    files()


if __name__ == "__main__":
    main()
