"""The sparse kernel on AlexNet's conv2 to conv5 against oneDNN, a matrix product of equal size, and the lowering method
(a sparse matrix times im2col), with the model's prediction beside each; one thread, random masks.

Run: python benchmarks/guided_sparsity.py     (needs numba: pip install 'cambrian[fast]')
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.inspect.sparse_conv import Csr, Geometry, sparse_conv2d, vector_lanes
from cambrian.systems.compress.guided_sparsity._machine import Machine, Work, calibrate, interleaved, predict

IMAGES = 4
LAYERS = {  # geometry, outputs
    "conv2": (Geometry(96, 27, 27, (5, 5), padding=(2, 2), groups=2), 256),
    "conv3": (Geometry(256, 13, 13, (3, 3), padding=(1, 1)), 384),
    "conv4": (Geometry(384, 13, 13, (3, 3), padding=(1, 1), groups=2), 384),
    "conv5": (Geometry(384, 13, 13, (3, 3), padding=(1, 1), groups=2), 256),
    "1x1": (Geometry(256, 13, 13, (1, 1)), 128),
}


def case(name: str, density: float) -> tuple[Tensor, Tensor, Csr]:
    generator = torch.Generator().manual_seed(0)
    g, outputs = LAYERS[name]
    x = torch.randn(IMAGES, g.channels, g.height, g.width, generator=generator)
    weight = torch.randn(outputs, g.channels // g.groups, *g.kernel, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < density
    return x, weight, Csr.of(weight, g)


def measure(name: str, density: float, machine: Machine) -> None:
    g, outputs = LAYERS[name]
    x, weight, csr = case(name, density)
    dense = lambda: F.conv2d(x, weight, padding=g.padding, groups=g.groups)  # noqa: E731
    wanted = dense()
    gap = float((sparse_conv2d(x, csr) - wanted).abs().max() / wanted.abs().max())
    assert gap < 1e-5, gap
    times = interleaved({"conv2d": dense, "sparse": lambda: sparse_conv2d(x, csr)}, 9)
    guess = predict(Work.of_conv(g, outputs, IMAGES), csr.density, machine, over="conv2d")
    rate = 2 * IMAGES * len(csr.values) * g.out[0] * g.out[1] / times["sparse"] / 1e9
    print(
        f"{name} x={density:.2f}: {times['conv2d'] / times['sparse']:.2f}x conv2d (model {guess.speedup:.2f}x), "
        f"{1e3 * times['sparse']:.2f} against {1e3 * times['conv2d']:.2f} ms, {rate:.0f} GFLOP/s of non-zeros"
    )


def lowering(density: float) -> None:
    """Sparse times im2col, through torch.sparse.mm; im2col is not even timed."""
    x, weight, csr = case("conv3", density)
    columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = weight.flatten(1).to_sparse_csr()
    plain = weight.flatten(1).contiguous()
    product = torch.sparse.mm(matrix, columns).view(len(weight), IMAGES, 13, 13).transpose(0, 1)
    gap = float((product - sparse_conv2d(x, csr)).abs().max() / product.abs().max())
    assert gap < 1e-5, gap
    times = interleaved(
        {
            "conv2d": lambda: F.conv2d(x, weight, padding=1),
            "sparse": lambda: sparse_conv2d(x, csr),
            "lowering": lambda: torch.sparse.mm(matrix, columns),
            "sgemm": lambda: torch.mm(plain, columns),
        },
        9,
    )
    ratios = {name: f"{t / times['sparse']:.2f}x" for name, t in times.items()}
    print(f"conv3 x={density:.2f}, time over that of the kernel: {ratios}")


def main() -> None:
    torch.set_num_threads(1)
    machine = calibrate()
    print(f"{vector_lanes()} lanes; {machine}")
    for name in LAYERS:
        for density in (0.5, 0.3, 0.1, 0.05) if name == "conv3" else (0.1,):
            measure(name, density, machine)
    for density in (0.3, 0.1):
        lowering(density)


if __name__ == "__main__":
    main()
