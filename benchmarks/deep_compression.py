"""K-means of numbers by prefix sums against scikit-learn, and Huffman decoding by table against walking the tree.

Run: python benchmarks/deep_compression.py
"""

from __future__ import annotations

import warnings

import numpy as np

from cambrian.codec.huffman import HuffmanCodec
from cambrian.inspect.bench import compare
from cambrian.inspect.kmeans1d import SortedValues, initial, kmeans1d


def clustering(count: int = 1_000_000, k: int = 256, iterations: int = 15) -> None:
    from sklearn.cluster import KMeans

    values = np.random.default_rng(0).normal(size=count)
    start = initial(SortedValues(values), k, "density")  # no cluster becomes empty, which each handles in its own way

    def ours() -> float:
        return kmeans1d(values, k, iterations=iterations, init=start).inertia

    def theirs() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not converged, and should not
            peer = KMeans(k, init=start[:, None], n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd")
            return peer.fit(values[:, None]).labels_

    labels = theirs()
    means = np.bincount(labels, values) / np.bincount(labels)  # ours ends with the means, theirs with the assignment
    gap = abs(ours() / float(((values - means[labels]) ** 2).sum()) - 1)
    assert gap < 1e-4, f"inertia differs by {gap}"
    result = compare({"prefix sums": ours, "scikit-learn": theirs}, repeats=3, warmup=0)
    print(f"k-means, n = {count}, k = {k}, {iterations} iterations (inertia differs by {gap:.1e}):", result)


def tree_decode(lengths: np.ndarray, codes: np.ndarray, stream: bytes, count: int) -> list[int]:
    """Bit by bit through a dict of code words."""
    words = {(int(n), int(c)): s for s, (n, c) in enumerate(zip(lengths, codes, strict=True)) if n}
    out: list[int] = []
    code = length = 0
    for bit in np.unpackbits(np.frombuffer(stream, np.uint8)).tolist():
        code, length = 2 * code + bit, length + 1
        symbol = words.get((length, code))
        if symbol is not None:
            out.append(symbol)
            code = length = 0
            if len(out) == count:
                break
    return out


def decoding(count: int) -> None:
    symbols = np.minimum(np.random.default_rng(0).geometric(0.15, count) - 1, 255)
    codec = HuffmanCodec.of(symbols, 256)
    stream, chunks = codec.encode(symbols)
    table = lambda: codec.decode(stream, chunks, count)  # noqa: E731
    tree = lambda: tree_decode(codec.lengths, codec.codes, stream, count)  # noqa: E731
    assert np.array_equal(table(), symbols) and tree() == symbols.tolist()
    result = compare({"table": table, "tree": tree}, repeats=3, warmup=0)
    rate = count / 1e6 / float(np.median(result.seconds["table"]))
    print(f"Huffman decoding, {count} symbols of a byte, {rate:.0f} MB/s:", result)


def main() -> None:
    clustering()
    decoding(1_000_000)


if __name__ == "__main__":
    main()
