"""An Online Sequence-to-Sequence Model Using Partial Conditioning (A Neural Transducer).

Navdeep Jaitly, David Sussillo, Quoc V. Le, Oriol Vinyals, Ilya Sutskever, Samy Bengio. NIPS 2016. arXiv 1511.04868.

Writes while it listens. A recurrent encoder reads the input in blocks of W frames; after each block a second network,
the transducer, looks at that block and writes any number of symbols up to M - 1, then `<e>`, which moves it on. New was
that its state goes on from block to block, so that a sequence-to-sequence model with attention can stream, and a search
that finds during training which block should write which symbol.

Claim: on phones in blocks of 8 frames, carrying the state from block to block makes the phone error rate at most 0.75
times that of blocks transduced independently.

    h_1..h_L = LSTM(x_1..x_L),   block b is h_{(b-1)W+1 .. bW}
    s_m   = LSTM(s_{m-1}, [c_{m-1}; y_{m-1}])
    c_m   = sum_j a_j h_j over the block,   e_j = s_m . K h_j,   a = softmax(V LSTM(e))    (or mlp, dot, last frame)
    h'_m  = LSTM(h'_{m-1}, [c_m; s_m]),     p(y_m) = softmax(h'_m) over symbols and <e>
    loss  = -log p of one alignment: S symbols and N = ceil(L / W) times <e>
    search: h(j, b) = the best partial alignment of j symbols to b blocks, extended by 0..M-1 symbols and <e>

Differs from the paper:
- laptop preset: one layer of 64 cells each, batches of 32 and Adam with a step size that falls to zero, in place of
3 + 3 layers of 250, batch 1 and SGD with momentum 0.9, halved when the dev log-probability drops
- a block's first step reads `<e>`, in the search, in training and in decoding alike
- keys are a linear map of the encoder's states, so that the dot product fits any width
- `end="none"`, which the paper does not spell out: a block is M - 1 steps, and repeating the last symbol writes nothing;
it needs given alignments, and targets in which no symbol follows itself
- `end="logistic"`: the unit reads the context and decides before the softmax, so that a block can be empty
- a found alignment is kept for `refresh` sequences per utterance; the paper searches for 100 to 300 sequences at a time
- before the first search the model trains on alignments drawn at random (`scatter`, a fifth of the steps): searched from
the start, alignments fall into the first blocks, before what they say was heard, and stay there
- alignments from outside are .lab files of a folder (`start end symbol` lines named by meta.csv), not an option
- the offline model it is compared with is the same network with one block as long as the utterance (`model=whole`)
- TIMIT's and LibriSpeech's own layouts are not read: convert them to WAV files with meta.csv

Shapes: B batch, T frames, F features, W frames a block, N blocks, M steps a block, S symbols, V vocabulary.
"""

from __future__ import annotations

from cambrian.systems.language.neural_transducer._decode import Decoded, Stream
from cambrian.systems.language.neural_transducer.model import NeuralTransducer
from cambrian.systems.language.neural_transducer.recipe import CLAIM, Config, NeuralTransducerRecipe

__all__ = ["CLAIM", "Config", "Decoded", "NeuralTransducer", "NeuralTransducerRecipe", "Stream"]
