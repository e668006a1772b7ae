"""How reconstructions, edits and conditional samples are judged: by a net that knows the data's attributes.

The judge is trained on real pictures only and has nothing of the discriminator. Labels of pictures without attributes
count as one yes-or-no attribute per class.

Shapes: N pictures in [0, 1], T attributes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data import images as pictures
from cambrian.data.split import Batch, Data
from cambrian.metrics.classifier_score import frechet_distance
from cambrian.metrics.judges import REQUIRED_ACCURACY, Judge, train_judge
from cambrian.systems.gans.vae_gan.model import VAEGAN

LEARNT_FROM, HELD, EDITED = 4000, 1000, 200
STEPS = 1000
MOST = 64  # classes that are taken for attributes


def names_of(data: Data) -> list[str]:
    """The attributes of `data`, or its classes where it has no attributes and not too many classes; else none."""
    if data.kind != "images":
        return []
    classes = data.info["classes"]
    return list(data.info.get("attributes", classes if 2 <= len(classes) <= MOST else []))


def traits_of(data: Data, batch: Batch) -> Tensor:
    """float32 `[N, T]` of 0 and 1, in the order of `names_of`."""
    if "attributes" in data.info:
        return batch["attributes"]
    return F.one_hot(batch["label"], len(data.info["classes"])).float()


def attribute_judge(data: Data) -> Judge:
    """The judge of the attributes of `data`, trained once and cached."""
    parts: list[Tensor] = []
    for name, most in (("train", LEARNT_FROM), ("test", HELD)):
        split = data.split(name)
        found = split[torch.arange(min(most, len(split)))]
        parts += [found["image"], traits_of(data, found)]
    return train_judge(*parts, classes=parts[1].shape[1], steps=STEPS)


def judged_reconstructions(data: Data, judge: Judge, held: Batch, again: Tensor) -> dict[str, float]:
    """Frechet distance of reconstructions `again [N, ...]` of `held` to the originals, and attributes kept."""
    if judge.accuracy < REQUIRED_ACCURACY:
        return {"attribute_judge_accuracy": judge.accuracy}
    truth = traits_of(data, held) > 0.5
    seen = judge.features(pictures.unit(held["image"])), judge.features(again)
    kept = (judge.probabilities(again) > 0.5) == truth
    return {
        "attribute_judge_accuracy": judge.accuracy,
        "recon_frechet": frechet_distance(*seen),
        "recon_attributes": float(kept.float().mean()),
    }


def judged_edits(judge: Judge, decoded: Callable[[Tensor], Tensor], codes: Tensor, traits: Tensor, vectors: Tensor) -> dict[str, float]:  # fmt: skip
    """Flip each attribute in turn: the share of pictures where it flipped, and where others changed with it.

    `codes [N, Z]` of pictures with `traits [N, T]`, `vectors [T, Z]`; `decoded` gives pictures in [0, 1].
    """
    before = judge.probabilities(decoded(codes)) > 0.5
    flipped, others = [], []
    for number, vector in enumerate(vectors):
        amount = 1.0 - 2.0 * traits[:, number : number + 1]  # towards what it has not
        after = judge.probabilities(decoded(codes + amount * vector)) > 0.5
        flipped.append(float((after[:, number] != (traits[:, number] > 0.5)).float().mean()))
        rest = torch.arange(len(vectors)) != number
        others.append(float((after != before)[:, rest].float().mean()))
    return {"edit_flipped": sum(flipped) / len(flipped), "edit_others": sum(others) / len(others)}


def judged_conditions(judge: Judge, made: Tensor, asked: Tensor) -> dict[str, float]:
    """Likeness of the attributes asked for `[N, T]` and those that the judge sees, both as numbers in [-1, 1]."""
    seen, wanted = 2 * judge.probabilities(made) - 1, 2 * asked - 1
    cosine = F.cosine_similarity(seen, wanted, dim=1).mean()
    return {"attribute_cosine": float(cosine), "attribute_mse": float((seen - wanted).square().sum(1).mean())}


def codes_of(model: VAEGAN, x: Tensor) -> Tensor:
    """Posterior means `[N, Z]` of `[N, *shape]`."""
    return torch.cat([model.encode(part).mean for part in x.split(250)])
