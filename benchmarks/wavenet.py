"""WaveNet's sampler: queues in machine code against queues in torch, and these against the receptive field again and again.

Run with `python benchmarks/wavenet.py`. All draw the same samples, which is checked first. The laptop-size model (2 x 7
layers, 256 samples of receptive field) and one with a longer past (2 x 10 layers, 2,048 samples), one thread.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from cambrian.inspect.bench import compare
from cambrian.systems.perception.wavenet import WaveNet

RATE = 16_000


def draw(model: WaveNet, n: int, path: str, batch: int = 1) -> torch.Tensor:
    """n samples a clip with the same noise every time."""
    return model.generate(n, batch=batch, path=path, generator=torch.Generator().manual_seed(0))


def check(model: WaveNet) -> None:
    """All three ways give the same samples."""
    model.double()
    made = [draw(model, 40, path, batch=2) for path in ("naive", "cached", "compiled")]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    model.float()


def main() -> None:
    """Check equality, then time."""
    torch.set_num_threads(1)
    for layers in (7, 10):
        torch.manual_seed(0)
        model = WaveNet(layers=layers).eval()
        check(model)
        print(f"2 x {layers} layers, receptive field {model.receptive_field()}")
        compiled, queues, again = (partial(draw, model, path=path) for path in ("compiled", "cached", "naive"))
        print(" ", compare({"compiled": partial(compiled, 512), "queues": partial(queues, 512)}, repeats=7, threads=1))
        print(" ", compare({"queues": partial(queues, 50), "field again": partial(again, 50)}, repeats=7, threads=1))
        for batch in (1, 8):
            draw(model, 256, "compiled", batch)
            start = time.process_time()
            draw(model, RATE // batch, "compiled", batch)
            spent = time.process_time() - start
            print(
                f"  one second of {RATE} Hz, {batch} clip(s) at once: {spent:.2f} CPU-s, {RATE / spent:,.0f} samples a CPU-s"
            )


if __name__ == "__main__":
    main()
