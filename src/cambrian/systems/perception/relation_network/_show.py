"""Scenes, stories and maps of relevance to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.data.split import Batch, Data
from cambrian.engine.samples import Drawings, Gallery, Images, Sample, Table
from cambrian.errors import ConfigError
from cambrian.worlds import shapes, springs

_PICTURE = 75


def answered(batch: Batch, logits: Tensor, data: Data) -> Sample:
    """A batch with its questions, the right answers and the network's."""
    if data.info["multi"]:
        return Gallery({"paths and links": _springs(batch, logits)})
    names, guess = data.info["answers"], logits.argmax(-1).cpu()
    rows: list[list[str]] = []
    for i, answers in enumerate(batch["answer"].cpu()):
        for j, truth in enumerate(answers):
            said = names[int(guess[i, j])]
            rows.append(
                [str(i), _question(batch, i, j, data), names[int(truth)], said, "" if guess[i, j] == truth else "wrong"]
            )
    return Gallery({**pictures(batch), "answers": Table(["scene", "question", "answer", "network", ""], rows)})


def pictures(batch: Batch) -> dict[str, Sample]:
    """The scenes of a Sort-of-CLEVR batch as one sheet, where it can be drawn."""
    if "image" in batch:
        return {"scenes": Images(batch["image"].float() / 255)}
    if (
        "objects" in batch
        and batch["objects"].shape[2] == shapes.STATE_DIM
        and batch["question"].shape[2] == shapes.CODE_DIM
    ):
        drawn = shapes.render(_scenes(batch["objects"]), _PICTURE).float() / 255
        return {"scenes": Images(torch.nn.functional.pad(drawn, (1, 1, 1, 1), value=0.7))}
    return {}


def _scenes(objects: Tensor) -> shapes.Scenes:
    """Scenes from their object rows."""
    colours = len(shapes.COLOURS)
    return shapes.Scenes(
        (objects[..., :2] + 1) / 2, objects[..., 2 : 2 + colours].argmax(-1), objects[..., 2 + colours :].argmax(-1)
    )


def _question(batch: Batch, scene: int, place: int, data: Data) -> str:
    asked = batch["question"][scene, place]
    if "words" in data.info:
        story = [_sentence(line, data) for line in batch["story"][scene]]
        return " / ".join([*(s for s in story if s), _sentence(asked, data)])
    if data.info["kinds"] == shapes.KINDS:
        return shapes.phrase(int(batch["kind"][scene, place]), int(asked[: len(shapes.COLOURS)].argmax()))
    return data.info["kinds"][int(batch["kind"][scene, place])] + (f" {asked.tolist()}" if len(asked) else "")


def _sentence(words: Tensor, data: Data) -> str:
    return " ".join(data.info["words"][int(w)] for w in words if int(w))


def parse(question: str) -> Tensor:
    """The code [1, 1, 11] of an English question; raises `ConfigError` when colour or kind is missing."""
    words = question.lower().replace("?", "").replace("furthest", "farthest").replace("gray", "grey").split()
    colours = [c for c in shapes.COLOURS if c in words]
    cues = ("closest", "farthest", "left", "top", "many", "shape")  # "shape" last: other questions contain it too
    found = [cue for cue in cues if cue in words]
    if len(colours) != 1 or not found:
        raise ConfigError(
            f"cannot read {question!r}; ask like {shapes.phrase(3, 0)!r}, with one of {', '.join(shapes.COLOURS)}"
        )
    kind = "count" if found[0] == "many" else found[0]
    number, colour = torch.tensor([[shapes.KINDS.index(kind)]]), torch.tensor([[shapes.COLOURS.index(colours[0])]])
    return shapes.Questions(number, colour, number).code()


def heat(batch: Batch, length: Tensor, drop: Tensor, data: Data) -> dict[str, Sample]:
    """Maps of pair relevance [B, Q, N, N], the last Q questions of each scene, dark where a pair matters.

    Objects of a state keep their order (rows i, columns j); of cells, the share of each cell over all its pairs is laid out as the map.
    """
    shown: dict[str, Sample] = {}
    rows: list[list[str]] = []
    first = batch["question"].shape[1] - length.shape[1]
    for i in range(len(length)):
        for j in range(length.shape[1]):
            maps = torch.stack([length[i, j], drop[i, j].clamp(min=0)])
            if "image" in batch:
                maps = maps.sum(2) + maps.sum(1)
                maps = maps.unflatten(1, (int(maps.shape[1] ** 0.5), -1))
            maps = 1 - maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-9)
            title = f"scene {i} map {j}"
            rows.append([title, _question(batch, i, first + j, data), _inventory(batch, i)])
            shown[title] = Images(maps[:, None], columns=2, scale=max(1, 96 // maps.shape[-1]))
    return {
        "maps": Table(["map (left: length of g, right: fall of the answer)", "question", "objects in order"], rows),
        **shown,
    }


def _inventory(batch: Batch, scene: int) -> str:
    """The objects of a Sort-of-CLEVR state, in the order of its rows."""
    if "image" in batch or "scenes" not in pictures(batch):
        return ""
    seen = _scenes(batch["objects"][scene : scene + 1])
    pairs = zip(seen.colour[0].tolist(), seen.form[0].tolist(), strict=True)
    return ", ".join(f"{shapes.COLOURS[c]} {shapes.FORMS[f]}" for c, f in pairs)


def _springs(batch: Batch, logits: Tensor) -> Drawings:
    """Paths of the balls; links found (green), missed (grey, dashed) and made up (red)."""
    first, second = torch.triu_indices(springs.BALLS, springs.BALLS, 1)
    drawings = []
    for state, truth, guess in zip(
        batch["objects"].cpu(), batch["answer"][:, 0].cpu() > 0.5, logits[:, 0].cpu() > 0, strict=True
    ):
        order = state[:, : springs.BALLS].argmax(1).argsort()
        path = (state[order, springs.BALLS :].unflatten(1, (-1, 2)) + 1.1) * 90  # [colour, T, 2] in a box of 198
        parts = []
        for a, b, real, said in zip(first.tolist(), second.tolist(), truth.tolist(), guess.tolist(), strict=True):
            if real or said:
                missed = 'stroke="grey" stroke-dasharray="4"' if real else 'stroke="red"'
                style = 'stroke="green"' if real and said else missed
                (x, y), (u, v) = path[a, -1].tolist(), path[b, -1].tolist()
                parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{u:.1f}" y2="{v:.1f}" stroke-width="2" {style}/>')
        for colour, points in enumerate(path):
            ink = f"hsl({36 * colour},80%,45%)"
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points.tolist())
            x, y = points[-1].tolist()
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{ink}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{ink}"/>'
            )
        frame = '<rect width="198" height="198" fill="white" stroke="black"/>'
        drawings.append(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="198" height="198">{frame}{"".join(parts)}</svg>'
        )
    return Drawings(drawings)
