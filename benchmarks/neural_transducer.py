"""The alignment search of the neural transducer: all hypotheses of a batch in one step, against a loop over hypotheses.

Run with `python benchmarks/neural_transducer.py`. The loop is what one writes first: utterance by utterance, block by
block, for each number of written symbols one hypothesis that is extended a symbol at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.systems.language.neural_transducer import NeuralTransducer
from cambrian.systems.language.neural_transducer._search import search
from cambrian.systems.language.neural_transducer.model import Encoded

BATCH, FRAMES, SYMBOLS, W, M, HIDDEN, VOCAB = 32, 100, 9, 8, 4, 64, 12


def looped(model: NeuralTransducer, encoded: Encoded, y: Tensor) -> tuple[list[list[int]], list[float]]:
    """The same search over one hypothesis after another: counts and log-probabilities."""
    alignments, scores = [], []
    for i, row in enumerate(y.tolist()):
        one = Encoded(
            encoded.memory[i : i + 1], encoded.keys[i : i + 1], encoded.mask[i : i + 1], encoded.blocks[i : i + 1]
        )
        blocks = int(one.blocks)
        table = {0: (0.0, model.initial(1), ())}
        for n in range(blocks):
            arrived: dict = {}
            for j, (score, state, path) in table.items():
                for m, total, after in extensions(model, one.block(n), row[j:], score, state):
                    fits = len(row) - j - m <= (blocks - n - 1) * (model.M - 1)
                    if fits and (j + m not in arrived or total > arrived[j + m][0]):
                        arrived[j + m] = (total, after, (*path, m))
            table = arrived
        score, _, path = table[len(row)]
        alignments.append(list(path))
        scores.append(score)
    return alignments, scores


def extensions(model: NeuralTransducer, block: tuple, rest: list[int], score: float, state: tuple) -> list[tuple]:
    """(symbols written, log p, state) of one hypothesis after writing 0..M-1 of the symbols `rest` and `<e>`."""
    found, previous = [], model.end
    for m in range(model.M):
        logs, state, _ = model.step(torch.tensor([[previous]]), block, state)
        found.append((m, score + float(logs[0, 0, model.end]), state))
        if m == len(rest):
            break
        previous = rest[m]
        score += float(logs[0, 0, previous])
    return found


def main() -> None:
    """Check that alignments and probabilities are the same, then time."""
    torch.manual_seed(0)
    model = NeuralTransducer(in_dim=40, vocab=VOCAB, W=W, M=M, hidden=HIDDEN).eval()
    x, y = torch.randn(BATCH, FRAMES, 40), torch.randint(0, VOCAB, (BATCH, SYMBOLS))
    with torch.no_grad():
        encoded = model.encode(x)
        counts, score = search(model, encoded, y)
        alignments, scores = looped(model, encoded, y)
        assert counts.tolist() == alignments
        torch.testing.assert_close(score, torch.tensor(scores), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(model.log_prob(x, y, counts), score, rtol=1e-4, atol=1e-3)
        timed = {
            "one step for all": lambda: search(model, encoded, y),
            "loop over hypotheses": lambda: looped(model, encoded, y),
        }
        print(compare(timed, repeats=5, warmup=1, threads=1))


if __name__ == "__main__":
    main()
