"""One streamed pass for the winners and one grey pass for all units, against going through the data unit by unit.

The baseline runs the pictures through the network once for every unit, sorts, and sends the winners with their crop turned
grey through it together. Both must find the same winners' activations and the same colour index (1e-5).

Run: python benchmarks/neuron_selectivity.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.nn import zoo
from cambrian.systems.explain.neuron_selectivity import Top, TopActivations, achromatic, color_index
from cambrian.systems.explain.neuron_selectivity._inks import load
from cambrian.systems.explain.neuron_selectivity.model import cut_fields, field_of, paste_fields

PICTURES, N = 80, 10


def unit_by_unit(target, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """`{layer: (activations [U,N], alpha [U])}`."""
    found = {}
    for name in names:
        first = next(target.batches("test", size=256))[0]
        units = target.features(first[:1], [name])[name].shape[1]
        field, rows, alphas = field_of(target, name), [], []
        for unit in range(units):
            maps = torch.cat(
                [target.features(x, [name])[name][:, unit] for x, _, _ in target.batches("test", size=256)]
            )
            best, place = maps.flatten(1).max(1)
            values, order = best.sort(descending=True)
            top = Top(values[None, :N], order[None, :N], place[order][None, :N], tuple(maps.shape[1:]), field)
            tops, lefts, size = top.corners(32, 32)
            x = target.draw("test", order[:N])[0]
            grey = paste_fields(x, achromatic(cut_fields(x, tops[0], lefts[0], size, 0.5)), tops[0], lefts[0])
            after = target.features(grey, [name])[name][:, unit].flatten(1).gather(1, top.places.T)[:, 0]
            rows.append(values[:N])
            alphas.append(1 - after.clamp_min(0).sum() / values[:N].clamp_min(0).sum())
        found[name] = torch.stack(rows), torch.stack(alphas)
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = zoo.build("vgg-small", widths=(12, 16, 24, 32, 48), pools=(0, 2), classes=9, channels=3).eval()
    data = load("shape", train=10, test=PICTURES, seed=0)
    target = wrap(net, space=Space.image((3, 32, 32)), classes=data.info["classes"], data=data)

    def ours() -> tuple[dict[str, Top], dict[str, Tensor]]:
        tops = TopActivations(target, n=N).collect()
        return tops, color_index(target, tops, "test")

    tops, alphas = ours()
    theirs = unit_by_unit(target, list(tops))
    for name, (values, alpha) in theirs.items():
        assert torch.allclose(tops[name].values, values, atol=1e-5)
        alive = ~tops[name].dead
        gap = float((alphas[name][alive] - alpha[alive]).abs().max())
        assert gap < 1e-5, f"the colour indices of {name} differ by {gap}"
    units = sum(len(top.values) for top in tops.values())
    result = compare({"ours": ours, "unit by unit": lambda: unit_by_unit(target, list(tops))}, repeats=3, warmup=0)
    print(f"{units} units of {len(tops)} layers, {PICTURES} pictures, {N} winners each:", result)


if __name__ == "__main__":
    main()
