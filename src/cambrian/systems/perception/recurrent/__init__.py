"""An Empirical Exploration of Recurrent Network Architectures.

Rafal Jozefowicz, Wojciech Zaremba, Ilya Sutskever. ICML 2015; with Junyoung Chung, Caglar Gulcehre, KyungHyun Cho, Yoshua Bengio: Empirical Evaluation of Gated Recurrent Neural Networks on Sequence Modeling, arXiv 1412.3555.

One engine that runs any recurrent cell, the classic cells on it, and the two studies that compared them: which gates an LSTM
needs, cells found by changing equations at random, and LSTM, GRU and tanh at equal numbers of parameters. A user's
own cell is three methods, or its equations as text; any text file can be trained on and written on.

Claim: with a forget bias of 1 an LSTM learns to remember a symbol for 20 steps in a fifth of the updates that it needs with 0.

    tanh   h' = tanh(W x + U h + b)
    LSTM   i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c' = f c + i g, h' = o tanh(c')
    GRU    r, z = sigmoid(W x + U h + b), n = tanh(W x + U (r h) + b), h' = (1 - z) h + z n
    MUT1   z = sigmoid(W x + b), r as above, h' = z tanh(U (r h) + tanh(x) + b) + (1 - z) h
    MUT2   z as above, r = sigmoid(x + U h + b), h' = z tanh(U (r h) + W x + b) + (1 - z) h
    MUT3   z = sigmoid(W x + U tanh(h) + b), r as above, h' as MUT2

Differs from the paper:
- the claim is tried on the latch task, where a forget gate of 1/2 forgets in 20 steps what one of 0.73 keeps, not on XML,
arithmetic and Penn Treebank, where the paper needs hours
- `search` changes equations a dozen times, not 10,000, and keeps its hyper-parameters
- arithmetic has numbers of 2 digits (paper: 8), XML documents a character alphabet and at most 4 open tags
- JSB chorales are those of music21's corpus: 364 pieces in quarter notes, from another edition; no raw speech
- where x and h differ in size, the x that MUT1 and MUT2 use without a matrix goes through a trained one
- no CUDA graphs; `chunk` compiles some steps of any cell with torch.compile

Shapes: T time, B batch, I inputs, H hidden, O outputs.
"""

from __future__ import annotations

from cambrian.nn.cells import RNN, build, compiled, make_cell
from cambrian.nn.scan import bidirectional, chunks, free_run, scan

__all__ = ["RNN", "bidirectional", "build", "chunks", "compiled", "free_run", "make_cell", "scan"]
