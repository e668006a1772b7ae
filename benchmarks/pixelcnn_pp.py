"""Sampling pictures of 32 x 32 pixel by pixel, cached against naive, and the codec's throughput.

Run with `python benchmarks/pixelcnn_pp.py`. The naive sampler runs the whole network for every pixel: 1,024 passes. Both samplers
are compared whole at 8 x 8, pixel for pixel; at 32 x 32 the naive one is timed for one row of pixels (32 passes) and counted 32
times, since every one of its passes costs the same.
"""

from __future__ import annotations

import time

import torch

from cambrian.systems.likelihood.pixelcnn_pp import PixelCNNpp, _codec

BATCH, SIZE = 16, 32


def seconds(function) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Check equality, then time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = PixelCNNpp(filters=32, blocks=2, stages=3).eval()
    model.initialise(torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8))
    for seed in range(3):
        small = [model.sample(4, (8, 8), seed=seed, cached=cached) for cached in (True, False)]
        assert torch.equal(*small), "both samplers give the same pictures for the same noise"
    x = model.scaled(torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8))
    with torch.no_grad():
        model.network(x, None)
        row = seconds(lambda: [model.network(x, None) for _ in range(SIZE)])
    naive = row * SIZE
    cached = min(seconds(lambda: model.sample(BATCH, (SIZE, SIZE), seed=1)) for _ in range(3))
    print(
        f"{BATCH} pictures of {SIZE} x {SIZE}: cached {cached:.2f} s, naive {naive:.0f} s (32 of 1,024 passes timed): {naive / cached:.0f}x"
    )

    image = (torch.rand(3, 1, 1) * 255 + 20 * torch.randn(3, 128, 128)).clamp(0, 255).to(torch.uint8)
    coded = _codec.encode(model, image, 32)
    assert torch.equal(_codec.decode(model, coded.data), image)
    megabytes = image.numel() / 1e6
    encode, decode = (
        seconds(f) for f in (lambda: _codec.encode(model, image, 32), lambda: _codec.decode(model, coded.data))
    )
    print(
        f"codec, 128 x 128 in 16 tiles: encode {megabytes / encode:.4f} MB/s, decode {megabytes / decode:.4f} MB/s, payload {8 * coded.payload / coded.bits:.4f} of the network's bits"
    )


if __name__ == "__main__":
    main()
