"""End-To-End Memory Networks.

Sainbayar Sukhbaatar, Arthur Szlam, Jason Weston, Rob Fergus. NIPS 2015. arXiv 1503.08895.

Answers questions about a story by looking several times at a memory of its sentences, each look starting from what the one before
found. New was that attention over an external memory is learned from answers alone, with no word on which sentences matter.

Claim: on bAbI's tasks 2 and 3 with 1,000 questions each, three hops make at least 10 points fewer test errors than one.

    m_i = sum_j l_j * A x_ij + T_A(i),  c_i = sum_j l_j * C x_ij + T_C(i),  u = sum_j l_j * B q_j
    p = softmax(u . m_i),  o = sum_i p_i c_i,  u' = u + o,  answer = softmax(W (u + o) of the last hop)
    l_kj = (1 - j/J) - (k/d)(1 - 2j/J)                              position encoding
    adjacent: A of a hop = C of the one before, B = A^1, W^T = C^K;  layerwise: one A, one C, u' = H u + o

Differs from the paper:
- stories are our own simulation of the twenty tasks, not the original text; a bAbI folder can be read
- 3 restarts in place of 10 (preset `paper`: 10), all tasks and restarts trained as one stack on batches of the same numbers
- J of the position encoding is the sentence's own length; the gradient is clipped per model, over all its parameters
- linear start ends for each model after the epoch in which its validation loss rose, or after 20; the schedule begins then
- random noise gives every sentence of a training story an empty memory before it with probability 0.1
- the null word has no logit
- language model: a window predicts 32 words; losses are averaged and multiplied by the paper's batch of 128
- the LSTM baseline is left out

Shapes: B questions, S sentences, J words, V vocabulary, D embedding, K hops.
"""

from cambrian.systems.language.memn2n.model import MemN2N, MemN2NLM

__all__ = ["MemN2N", "MemN2NLM"]
