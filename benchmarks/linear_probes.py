"""All probes from one streamed pass and closed-form ridge, against one SGD training run per layer.

Both read the same standardised features and minimise the same ridge objective; the baseline stops after ten epochs.
First the closed form is checked against a direct solve of that objective, and the trained probes must come within 3
points of its test error.

Run: python benchmarks/linear_probes.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from cambrian.data import digits
from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.systems.explain.linear_probes.model import Moments, Probes, Reduce, probe_points, stream

STRENGTH = 1e-2


def make_target():
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for i, (a, b) in enumerate(((1, 12), (12, 12), (12, 24), (24, 24))):
        blocks += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        blocks += [nn.MaxPool2d(2)] if i % 2 else []
    net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(96, 10))
    data = digits.load(valid=200)
    target = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    target.finetune(net, steps=100, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return target


def one_training_per_layer(target, epochs: int = 10) -> dict[str, float]:
    """The usual way: for each layer run the network over the data again, and train its probe by SGD."""
    errors: dict[str, float] = {}
    for name in probe_points(target):
        reduce, generator, probe, mean, spread = Reduce.parse("pool", torch.Generator()), torch.Generator(), None, 0, 1
        generator.manual_seed(0)
        for _ in range(epochs):
            for features, y in stream(target, "train", [name], reduce, "class", None):
                z = features[name].float()
                if probe is None:
                    mean, spread = z.mean(0), z.std(0) + 1e-6
                    probe = nn.Linear(z.shape[1], 10)
                    optimiser = torch.optim.Adam(probe.parameters(), lr=1e-2)
                order = torch.randperm(len(z), generator=generator)
                for part in order.split(64):
                    optimiser.zero_grad()
                    F.cross_entropy(probe((z[part] - mean) / spread), y[part]).backward()
                    optimiser.step()
        with torch.no_grad():
            pairs = [(probe((f[name].float() - mean) / spread).argmax(1), y)
                     for f, y in stream(target, "test", [name], reduce, "class", None)]  # fmt: skip
        errors[name] = float(torch.cat([g != y for g, y in pairs]).float().mean())
    return errors


def main() -> None:
    torch.set_num_threads(1)
    target = make_target()
    reduce = Reduce.parse("pool", torch.Generator())
    name, parts = "2", []
    sums = None
    for features, y in stream(target, "train", [name], reduce, "class", None):
        sums = sums or Moments(features[name].shape[1], 10, torch.device("cpu"))
        sums.add(features[name], F.one_hot(y, 10).double())
        parts.append((features[name], y))
    z, y = torch.cat([p for p, _ in parts]), torch.cat([q for _, q in parts])
    scale = z.std(0, correction=0)
    standard, onehot = (z - z.mean(0)) / scale, F.one_hot(y, 10).double()
    gram = standard.T @ standard / len(z) + STRENGTH * torch.eye(z.shape[1], dtype=torch.float64)
    direct = torch.linalg.solve(gram, standard.T @ (onehot - onehot.mean(0)) / len(z)) / scale[:, None]
    weights, _ = sums.ridge((STRENGTH,))
    assert torch.allclose(weights[0], direct, atol=1e-8)

    rows = {row["layer"]: row["test error"] for row in Probes().fit(target, torch.Generator())}
    trained = one_training_per_layer(target)
    worst = max(rows[layer] - error for layer, error in trained.items() if layer != "input")
    assert worst < 0.03, f"the closed form is {worst:.3f} worse than SGD on some layer"
    result = compare(
        {"all at once": lambda: Probes().fit(target, torch.Generator()), "one training per layer": lambda: one_training_per_layer(target)},
        repeats=5, warmup=0,
    )  # fmt: skip
    print(f"{len(rows)} layers, 1200 digits:", result)


if __name__ == "__main__":
    main()
