"""Sort-of-CLEVR: six coloured squares and circles on a canvas, with questions about one object or about how two or more relate.

The task is that of Santoro et al. (2017, arXiv 1706.01427, supplement C): six objects of six fixed colours, each a square or
a circle of radius 5 on a 75 x 75 canvas; a question is an 11-bit code (6 bits colour, 2 bits relational or not, 3 bits which
of three); there are ten answers. Everything is a pure function of one key per scene (`data.random.sample_keys`), so any scene
can be made again and a training run may see a fresh scene at every step.

Positions are real numbers in [0, 1) (x to the right, y downwards), so that distances tie with probability zero; squares never overlap
because centres keep a Chebyshev distance above two radii.

Shapes: B scenes, N objects, Q questions, S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.data.random import bits, integers
from cambrian.errors import ShapeError

COLOURS = ("red", "green", "blue", "orange", "grey", "yellow")
RGB = ((220, 40, 40), (30, 160, 60), (40, 70, 220), (245, 150, 30), (128, 128, 128), (240, 220, 40))
FORMS = ("square", "circle")
ANSWERS = ("yes", "no", "square", "circle", "1", "2", "3", "4", "5", "6")
KINDS = (
    "shape",
    "left",
    "top",
    "closest",
    "farthest",
    "count",
)  # the first three need one object, the others all of them
RADIUS = 5 / 75
STATE_DIM = 2 + len(COLOURS) + len(FORMS)
CODE_DIM = len(COLOURS) + 2 + 3

_CANDIDATES = 32  # a crowded canvas refuses a candidate with probability below 0.5, so 32 refusals are a 2e-10 event
_SCENE, _ASK = range(2)  # streams of a key


@dataclass(frozen=True)
class Scenes:
    """`position` float32 [B, N, 2] (x, y in [0, 1)), `colour` and `form` int64 [B, N]; every colour occurs once a scene."""

    position: Tensor
    colour: Tensor
    form: Tensor

    def __len__(self) -> int:
        return len(self.position)


def scenes(key: Tensor) -> Scenes:
    """One scene per key [B]: six objects in random order, apart from each other and within the canvas."""
    count = len(COLOURS)
    draw, extra = bits(key, count * (_CANDIDATES + 1), _SCENE).tensor_split([-count], 1)
    position = _place(torch.stack([_unit(draw >> 40), _unit(draw >> 16)]), count)
    return Scenes(position, extra.argsort(1), extra & 1)  # the high bits order the colours, the lowest chooses the form


def _unit(draw: Tensor) -> Tensor:
    """The lowest 24 bits as float32 in [0, 1)."""
    return (draw & 0xFFFFFF).float() * 2.0**-24


def _place(draws: Tensor, count: int) -> Tensor:
    """[B, N, 2] from candidates [2, B, N * K]: object by object, the first that is clear of those before it.

    If none is, the one with most clearance.
    """
    candidates = (RADIUS + (1 - 2 * RADIUS) * draws).unflatten(2, (count, -1))
    placed = [candidates[:, :, 0, :1]]  # [2, B, 1] each
    gap = torch.full_like(candidates[0], 2 * RADIUS)  # Chebyshev distance to the nearest placed object, cut at "clear"
    for i in range(1, count):
        away = (candidates[:, :, i:] - placed[-1][..., None]).abs_()
        gap = torch.minimum(gap[:, -(count - i) :], torch.maximum(away[0], away[1]))
        choice = gap[:, :1].argmax(2).expand(2, -1, -1)  # argmax is the first of equal values: the first that is clear
        placed.append(candidates[:, :, i].gather(2, choice))
    return torch.stack(placed, 2)[..., 0].permute(1, 2, 0)


@dataclass(frozen=True)
class Questions:
    """`kind` int64 [B, Q] (position in KINDS), `colour` int64 [B, Q], `answer` int64 [B, Q] (position in ANSWERS)."""

    kind: Tensor
    colour: Tensor
    answer: Tensor

    def code(self) -> Tensor:
        """The 11-bit question of the paper, float32 [B, Q, 11]: colour, relational or not, which of the three."""
        parts = (F.one_hot(self.colour, len(COLOURS)), F.one_hot(self.kind // 3, 2), F.one_hot(self.kind % 3, 3))
        return torch.cat(parts, -1).float()


def ask(key: Tensor, shown: Scenes, relational: int, plain: int) -> Questions:
    """`plain` non-relational, then `relational` questions per scene, each a random one of three about a random colour."""
    total = plain + relational
    draw = integers(key, 2 * total, 3 * len(COLOURS), stream=_ASK)
    kind = draw[:, :total] % 3 + 3 * (torch.arange(total, device=key.device) >= plain)
    colour = draw[:, total:] % len(COLOURS)
    return Questions(kind, colour, answer(shown, kind, colour))


def answer(shown: Scenes, kind: Tensor, colour: Tensor) -> Tensor:
    """The position in ANSWERS of the right answer to each question: int64 [B, Q] from `kind` and `colour` [B, Q]."""
    if kind.shape != colour.shape or kind.dim() != 2 or len(kind) != len(shown):
        raise ShapeError(
            f"kind and colour must both be [{len(shown)}, Q], not {list(kind.shape)} and {list(colour.shape)}"
        )
    facts = _facts(shown).flatten(1)  # [B, N * 6]
    subject = shown.colour.argsort(1).gather(
        1, colour
    )  # each colour occurs once, so argsort is the inverse permutation
    return facts.gather(1, subject * len(KINDS) + kind)


def _facts(shown: Scenes) -> Tensor:
    """The answer to every kind of question about every object: int64 [B, N, 6]."""
    form, (x, y) = shown.form, shown.position.unbind(2)
    gap = (x[:, :, None] - x[:, None]).square() + (y[:, :, None] - y[:, None]).square()
    near = (gap + 9 * torch.eye(gap.shape[1], device=gap.device)).argmin(2)  # an object is not its own neighbour
    same = (form[:, :, None] == form[:, None]).sum(2)  # counts the object itself
    neighbours = (2 + form.gather(1, near), 2 + form.gather(1, gap.argmax(2)))
    return torch.stack([2 + form, (x >= 0.5).long(), (y >= 0.5).long(), *neighbours, 3 + same], 2)


def state(shown: Scenes) -> Tensor:
    """Object rows float32 [B, N, 10]: x, y in [-1, 1), colour one-hot, form one-hot."""
    parts = (2 * shown.position - 1, F.one_hot(shown.colour, len(COLOURS)), F.one_hot(shown.form, len(FORMS)))
    return torch.cat(parts, -1)


def render(shown: Scenes, size: int = 75) -> Tensor:
    """White pictures uint8 [B, 3, S, S]; a pixel belongs to an object when its centre does."""
    grid = (torch.arange(size, device=shown.position.device) + 0.5) / size
    dx = (grid[None, None, None, :] - shown.position[..., 0, None, None]).abs()  # [B, N, 1, S]
    dy = (grid[None, None, :, None] - shown.position[..., 1, None, None]).abs()  # [B, N, S, 1]
    square = (dx < RADIUS) & (dy < RADIUS)
    circle = dx.square() + dy.square() < RADIUS**2
    inside = torch.where((shown.form == FORMS.index("circle"))[..., None, None], circle, square).float()
    ink = torch.tensor(RGB, dtype=torch.float32, device=inside.device)[shown.colour] - 255  # [B, N, 3]
    return (255 + torch.einsum("bnyx,bnc->bcyx", inside, ink)).round().to(torch.uint8)


def phrase(kind: int, colour: int) -> str:
    """The question in English."""
    name = COLOURS[colour]
    return {
        "shape": f"What shape is the {name} object?",
        "left": f"Is the {name} object on the left?",
        "top": f"Is the {name} object at the top?",
        "closest": f"What shape is the object closest to the {name} one?",
        "farthest": f"What shape is the object farthest from the {name} one?",
        "count": f"How many objects have the shape of the {name} one?",
    }[KINDS[kind]]
