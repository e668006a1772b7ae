"""BiGAN's feature evaluation: nearest neighbours by blocked products against scikit-learn's exhaustive search.

10,000 references and 1,000 queries of 256 features, as a penultimate layer gives them; the same neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.metrics.neighbours import nearest


def main() -> None:
    from sklearn.neighbors import NearestNeighbors

    draw = torch.Generator().manual_seed(0)
    references, queries = (torch.randn(n, 256, generator=draw).relu() for n in (10_000, 1000))
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(references.numpy())

    def blocked() -> Tensor:
        return nearest(queries, references)

    def scikit_learn() -> Tensor:
        return torch.from_numpy(search.kneighbors(queries.numpy(), return_distance=False)[:, 0])

    assert torch.equal(blocked(), scikit_learn())
    print(compare({"blocked": blocked, "scikit-learn": scikit_learn}, repeats=25, threads=1))


if __name__ == "__main__":
    main()
