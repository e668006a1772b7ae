"""A simple neural network module for relational reasoning.

Adam Santoro, David Raposo, David G. T. Barrett, Mateusz Malinowski, Razvan Pascanu, Peter Battaglia, Timothy Lillicrap. NIPS 2017. arXiv 1706.01427.

A layer that answers questions about how things relate: one small network looks at every pair of objects together with the
question, the results are summed, and a second network reads the answer off the sum. Objects are rows of a table, cells of a
convolutional map, or sentences. New was that such a module, put after an ordinary encoder, solves questions on which
networks of the same size without pairs stay near the prior.

Claim: on scenes of six objects, questions about the closest and the farthest neighbour are answered better by 10 points or more by the
relation network than by an MLP on all objects or a network per object, after equally many updates.

    RN(O, q) = f( sum_ij g([o_i; o_j; q]) )                     all ordered pairs, i = j included, a sum and no mean
    W [o_i; o_j; q] + b = A o_i + B o_j + (C q + b)             the first layer of g, never building the pairs

Differs from the paper:
- laptop presets use g and f of 64 units in place of 256 to 2,000, and a scene is seen once
- the headline is measured on object states; pixels are drawn at 32 x 32 at laptop scale, 75 x 75 at paper scale
- CLEVR itself (renderer, question programs, folder reader, image augmentation) is left out
- bAbI is procedural and has 12 of the 20 task types (`cambrian.worlds.babi` names the missing ones); the original folder can be read
- questions are the 11-bit codes of Sort-of-CLEVR; English is parsed only where a user asks

Shapes: B scenes, N objects, D object features, Q questions of a scene, K answers, H hidden units.
"""

from cambrian.systems.perception.relation_network.model import (
    FlatMLP,
    PixelEncoder,
    QuestionOnly,
    RelationNet,
    StackedAttention,
    StoryEncoder,
    objects_from_map,
)
from cambrian.systems.perception.relation_network.recipe import Config, RelationNetworkRecipe

__all__ = [
    "Config",
    "FlatMLP",
    "PixelEncoder",
    "QuestionOnly",
    "RelationNet",
    "RelationNetworkRecipe",
    "StackedAttention",
    "StoryEncoder",
    "objects_from_map",
]
