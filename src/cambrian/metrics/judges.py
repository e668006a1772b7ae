"""Judges: small classifiers, trained once on real data of a world and cached, that score what generators make.

A judge that is itself wrong measures nothing, so it shows its accuracy on held-out data and refuses to score below
97 %. The cache is a folder of safetensors keyed by data, settings and seed: `$CAMBRIAN_CACHE`, or
`~/.cache/cambrian`.

Shapes: N images `[N, C, H, W]` in [0, 1], K classes (or T yes/no attributes), D features.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import DataError, ShapeError

REQUIRED_ACCURACY = 0.97
WARM = 50  # steps in which the rate rises to its top
PATIENCE, LEARNT = 30, 0.005  # training ends early once the mean loss of so many steps is this small
_VERSION = 3  # raised when the judge's net or training changes, so that no stale judge is loaded


class JudgeNet(nn.Module):
    """Three 3x3 convolutions (stride 2 but for tiny images), group norm, one hidden layer."""

    def __init__(self, *, channels: int, size: int, outputs: int, width: int = 24, features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, edge = channels, size
        for i in range(3):
            stride = 2 if edge >= 8 else 1
            outs = width * min(2**i, 2)
            layers += [nn.Conv2d(inputs, outs, 3, stride, 1), nn.GroupNorm(4, outs), nn.ReLU()]
            inputs, edge = outs, -(-edge // stride)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * edge * edge, features), nn.ReLU())
        self.head = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(2 * x - 1))


@dataclass(frozen=True)
class Judge:
    """A trained judge. `accuracy` is on data that it did not see; of attributes, the worst one's."""

    net: JudgeNet
    accuracy: float
    kind: str

    def require(self, least: float = REQUIRED_ACCURACY) -> Judge:
        """Itself, or `DataError` when it is not accurate enough to judge anybody."""
        if self.accuracy < least:
            raise DataError(
                f"the judge reaches {self.accuracy:.3f} accuracy on real data and {least} is required; "
                "train it longer or give it more labelled data"
            )
        return self

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """`[N, K]` class probabilities, or `[N, T]` probabilities of each attribute."""
        logits = torch.cat([self.net(part) for part in images.split(512)])
        return logits.softmax(1) if self.kind == "classes" else logits.sigmoid()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """`[N, D]`, the hidden layer: the space in which Frechet and kernel distances are taken."""
        return torch.cat([self.net.body(2 * part - 1) for part in images.split(512)])


def _cache_folder(folder: Path | None) -> Path:
    return folder or Path(os.environ.get("CAMBRIAN_CACHE", Path.home() / ".cache" / "cambrian")) / "judges"


def _key(parts: tuple[Tensor, ...], settings: dict[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in parts:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _load(path: Path, net: JudgeNet) -> float | None:
    """The cached accuracy, with the weights put into `net`; None when there is no sound file."""
    if not path.exists():
        return None
    try:
        tensors = safetensors.torch.load_file(path)
        accuracy = float(tensors.pop("accuracy"))
        net.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, RuntimeError):
        return None  # damaged: trained again and overwritten
    return accuracy


def _save(path: Path, net: JudgeNet, accuracy: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    tensors = {**net.state_dict(), "accuracy": torch.tensor(accuracy, dtype=torch.float64)}
    safetensors.torch.save_file(tensors, name)
    os.replace(name, path)  # so that two processes that train the same judge cannot leave half a file


def train_judge(
    images: Tensor,
    labels: Tensor,
    held_images: Tensor,
    held_labels: Tensor,
    *,
    classes: int,
    steps: int = 600,
    batch: int = 128,
    seed: int = 0,
    folder: Path | None = None,
) -> Judge:
    """A judge from real images uint8 `[N, C, H, W]` and labels: int64 `[N]` (classes) or float `[N, T]` (attributes).

    Trains at most `steps` steps of Adam (fewer once the training loss is nearly 0), measures accuracy on the
    held-out images, and caches both. Raises `ShapeError` for other types. Inputs of `Judge` methods are floats in
    [0, 1].
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise ShapeError(
            f"a judge learns from uint8 [N, C, H, W] and N labels, got {images.dtype} {tuple(images.shape)}"
        )
    kind = "classes" if labels.ndim == 1 else "attributes"
    settings = {"version": _VERSION, "classes": classes, "steps": steps, "batch": batch, "seed": seed, "kind": kind}
    path = _cache_folder(folder) / f"{_key((images, labels, held_images, held_labels), settings)}.safetensors"
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = JudgeNet(channels=images.shape[1], size=images.shape[2], outputs=classes)
        accuracy = _load(path, net)
        if accuracy is None:
            _fit(net, images, labels, steps, batch, torch.Generator().manual_seed(seed), kind)
    net.eval().requires_grad_(False)
    if accuracy is None:
        accuracy = _accuracy(Judge(net, 0.0, kind), held_images, held_labels)
        _save(path, net, accuracy)
    return Judge(net, accuracy, kind)


def judge_of(
    train: Any, test: Any, classes: int, *, limit: int = 4000, steps: int = 600, folder: Path | None = None
) -> Judge:
    """The judge of a dataset: splits that give `image` and `label` for a tensor of positions; the first `limit` of
    each.

    It is up to the caller to `require()` its accuracy.
    """
    first, held = (split[torch.arange(min(limit, len(split)))] for split in (train, test))
    parts = (first["image"], first["label"], held["image"], held["label"])
    return train_judge(*parts, classes=classes, steps=steps, folder=folder)


def _fit(
    net: JudgeNet, images: Tensor, labels: Tensor, steps: int, batch: int, generator: torch.Generator, kind: str
) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    recent = torch.zeros(PATIENCE)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / WARM) * (1 - step / steps)
        index = torch.randint(len(images), (batch,), generator=generator)
        logits = net(images[index].float() / 255)
        if kind == "classes":
            loss = F.cross_entropy(logits, labels[index])
        else:
            loss = F.binary_cross_entropy_with_logits(logits, labels[index].float())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # without, one seed in three never leaves chance on glyphs
        optimiser.step()
        recent[step % PATIENCE] = loss.detach()
        if step >= PATIENCE and float(recent.mean()) < LEARNT:
            break  # judged by the training loss: the held-out images must not choose


def _accuracy(judge: Judge, images: Tensor, labels: Tensor) -> float:
    probabilities = judge.probabilities(images.float() / 255)
    if judge.kind == "classes":
        return float((probabilities.argmax(1) == labels).double().mean())
    return float(((probabilities > 0.5) == (labels > 0.5)).double().mean(0).min())
