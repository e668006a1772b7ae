"""Prediction over many configurations at once against one at a time, and tracing on meta against a real pass.

python benchmarks/paleo.py
"""

from __future__ import annotations

import numpy as np
import torch

from cambrian.inspect.bench import compare
from cambrian.inspect.counters import count_step, run_pass, trace
from cambrian.inspect.device import Calibration
from cambrian.nn import zoo


def main() -> None:
    """Assert that both sides of each comparison agree, then time them."""
    torch.set_num_threads(1)
    calibration = Calibration()
    for _ in range(3):
        calibration.round()
    device = calibration.result()
    vgg = zoo.build("vgg-d")  # 16 layers, 224x224, 1,000 classes
    graph = trace(vgg, (3, 224, 224))
    batches = [2 * (i + 1) for i in range(64)]
    together = device.seconds(graph, batches).sum(0)
    apart = [device.seconds(graph.at(n)).sum() for n in batches]
    np.testing.assert_allclose(together, apart, rtol=1e-9)
    print(f"VGG-16: {len(graph.operations)} operations, {graph.flops('forward') / 2 / 2 / 1e9:.2f} GMAC per image")
    contenders = {
        "64 batch sizes at once": lambda: device.seconds(graph, batches),
        "one at a time": lambda: [device.seconds(graph.at(n)) for n in batches],
    }
    print(compare(contenders, threads=1))
    small, x = zoo.build("vgg-a", size=32, classes=10, hidden=512), torch.rand(8, 3, 32, 32)
    counted = count_step(lambda: run_pass(small, [x], True))
    assert trace(small, (3, 32, 32)).at(8).flops() == counted.flops()
    contenders = {
        "trace on meta": lambda: trace(small, (3, 32, 32)),
        "counted real pass": lambda: count_step(lambda: run_pass(small, [x], True)),
    }
    print(compare(contenders, repeats=7, threads=1))


if __name__ == "__main__":
    main()
