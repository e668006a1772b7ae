"""An epoch of batches: indexing whole batches of in-memory tensors against `torch.utils.data.DataLoader` (no workers).

Run: python benchmarks/batch_indexing.py
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from cambrian.data.split import TensorSplit
from cambrian.engine.order import SampleOrder
from cambrian.inspect.bench import compare


def main(samples: int = 8000, batch: int = 128, repeats: int = 9) -> None:
    """Print how many times faster an epoch of indexed batches is, after checking that both give the same batches."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (samples, 1, 28, 28), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 10, (samples,), generator=generator)
    split, order = TensorSplit(image=image, label=label), SampleOrder(samples, batch, seed=0)

    def indexed() -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = (split[order.take(step)[0]] for step in range(order.per_epoch))
        return [(item["image"], item["label"]) for item in found]

    class InOrder(torch.utils.data.Sampler[int]):
        def __iter__(self):
            return iter(order.permutation(0).tolist())

        def __len__(self) -> int:
            return samples

    loader = DataLoader(TensorDataset(image, label), batch_size=batch, sampler=InOrder(), drop_last=True)

    def loaded() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x, y) for x, y in loader]

    for (x, y), (u, v) in zip(indexed(), loaded(), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
    print(compare({"indexed": indexed, "DataLoader": loaded}, repeats=repeats, threads=1))


if __name__ == "__main__":
    main()
