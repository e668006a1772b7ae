"""BIM against foolbox and ART; the batched camera against the same steps by Pillow, one picture at a time.

Run: python benchmarks/physical_adversarial.py     (pip install foolbox adversarial-robustness-toolbox)
"""

from __future__ import annotations

import copy
import importlib.util
import io

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.inspect.camera import Layout, PhotoConfig, photo, viewpoint
from cambrian.nn.zoo.vgg import VGG
from cambrian.systems.attack.physical_adversarial import bim, iterations

EPS, ALPHA = 8 / 255, 1 / 255


def network() -> nn.Module:
    torch.manual_seed(0)
    return VGG(plan="A", classes=10, channels=3, size=32, bn=True, width=0.125, head="gap", stages=3)


def attacks() -> None:
    """Whole calls at equal work: `iterations(eps)` steps for every picture; ours proves ball and box as well."""
    net, x = network().eval(), torch.rand(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = wrap(net, space=Space.image((3, 32, 32)), classes="0123456789")
    y, steps = target.logits(x).argmax(1), iterations(EPS)
    peers = {}
    if importlib.util.find_spec("foolbox"):
        import foolbox

        model = foolbox.PyTorchModel(copy.deepcopy(net), bounds=(0, 1))
        method = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=ALPHA, steps=steps, random_start=False)
        peers["foolbox"] = lambda: method(model, x, y, epsilons=EPS)[1]
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import BasicIterativeMethod
        from art.estimators.classification import PyTorchClassifier

        loss, box = nn.CrossEntropyLoss(), (0.0, 1.0)
        wrapped = PyTorchClassifier(
            copy.deepcopy(net), loss=loss, input_shape=(3, 32, 32), nb_classes=10, clip_values=box
        )
        other = BasicIterativeMethod(wrapped, EPS, ALPHA, max_iter=steps, batch_size=128, verbose=False)
        peers["ART"] = lambda: torch.from_numpy(other.generate(x.numpy(), y.numpy()))
    ours = lambda: bim(target, x, y, EPS).x_adv  # noqa: E731
    for name, theirs in peers.items():
        moved = (ours() - theirs()).abs()
        assert float((moved > 1e-6).float().mean()) < 1e-4, (
            f"{name} differs"
        )  # signs of gradients that are 0 but for rounding
        print(
            f"BIM, {steps} steps, 128 pictures of 3x32x32 against {name}:",
            compare({"ours": ours, name: theirs}, repeats=7),
        )


def one_by_one(x: torch.Tensor, config: PhotoConfig, views: torch.Tensor, side: int) -> torch.Tensor:
    """The camera's steps with Pillow and NumPy: what a loop over pictures costs (its random numbers are its own)."""
    rng, layout, crops = np.random.default_rng(0), Layout.of(*x.shape[2:]), []
    edge = round(layout.margin * config.dots)
    for picture, view in zip(x, views, strict=True):
        ink = picture.permute(1, 2, 0).numpy() ** 2
        ink = np.repeat(np.repeat(1 - ink, config.dots, 0), config.dots, 1) * (config.inks - 1)
        ink = np.floor(ink + rng.random(ink.shape)) / (config.inks - 1)
        page = Image.new("RGB", (2 * edge + ink.shape[1], 2 * edge + ink.shape[0]), "white")
        page.paste(Image.fromarray(((1 - ink).clip(0, 1) * 255).astype(np.uint8)), (edge, edge))
        scale = np.diag([config.dots, config.dots, 1.0])
        back = (scale @ np.linalg.inv(view.numpy())).flatten()
        scene = page.transform((side, side), Image.Transform.PERSPECTIVE, back[:8] / back[8], Image.Resampling.BILINEAR)
        raw = np.asarray(scene.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / 255
        raw = raw + np.sqrt(raw / config.electrons) * rng.standard_normal(raw.shape, np.float32)
        file = io.BytesIO()
        Image.fromarray((np.sqrt(raw.clip(0, 1)) * 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        seen = Image.open(file)
        base = np.array([[1, 0, layout.margin], [0, 1, layout.margin], [0, 0, 1]])
        cut = (view.numpy() @ base).flatten()
        crop = seen.transform((x.shape[3], x.shape[2]), Image.Transform.PERSPECTIVE, cut[:8] / cut[8])
        crops.append(torch.from_numpy(np.asarray(crop, np.float32) / 255).permute(2, 0, 1))
    return torch.stack(crops)


def camera() -> None:
    """Equal geometry; the loop leaves out the Bayer filter and the search for marks, so the batch does more."""
    x = nn.functional.interpolate(torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=32)
    config = PhotoConfig(known=True)
    side = photo(config, 0).shoot(x[:1]).photos.shape[2]
    from cambrian.data.random import sample_keys

    views = viewpoint(config, Layout.of(32, 32), side, sample_keys(0, 0, torch.arange(64)))
    batched = lambda: photo(config, 0)(x)  # noqa: E731
    looped = lambda: one_by_one(x, config, views, side)  # noqa: E731
    gap = (batched() - looped()).abs().mean()
    assert float(gap) < 0.15, f"the two cameras see different things: {float(gap)}"
    print(
        "camera, 64 pictures of 3x32x32, batch against Pillow:", compare({"batch": batched, "loop": looped}, repeats=3)
    )
    search = PhotoConfig()
    print("with the search for marks:", compare({"batch": lambda: photo(search, 0)(x), "loop": looped}, repeats=3))


def main() -> None:
    torch.set_num_threads(1)
    attacks()
    camera()


if __name__ == "__main__":
    main()
