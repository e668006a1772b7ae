"""The explainer, and the studies of place and of correspondence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.data.images import unit
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.roles import (
    Explainer,
    Measurement,
    Progress,
    Study,
    explainer,
    study,
)
from cambrian.engine.samples import Plot
from cambrian.engine.targets import kept
from cambrian.errors import CapabilityError
from cambrian.inspect.maps import boxes, explain_row, overlay_figure, pointing_hits, randomised
from cambrian.inspect.results import Explanation
from cambrian.inspect.target import ModuleTarget, Space, Target, wrap
from cambrian.nn import zoo
from cambrian.systems.explain._scenes import scene_target, understood
from cambrian.systems.explain.occlusion._figures import panel_figure, projection_figure
from cambrian.systems.explain.occlusion._projection import correspondence, top_activations
from cambrian.systems.explain.occlusion.model import VALUES, WAYS, cover, occlude, occlusion_map, spread, stand_in
from cambrian.systems.explain.saliency.model import QUANTITIES
from cambrian.worlds import faces

# -- explain -----------------------------------------------------------------------------------------------------------


@config
class Options:
    size: int = option(6, "edge of the square, in pixels", low=1)
    stride: int = option(2, "pixels between two places", low=1)
    value: str = option(
        "data", "what the square shows; data is the mean colour of the training pictures", choices=VALUES
    )
    of: str = option("prob", "the score that is watched", choices=QUANTITIES)
    way: str = option(
        "centre", "how places become a map; average is the mean over the squares on a pixel", choices=WAYS
    )
    label: str = option("true", "watch the true class or the predicted one", choices=("true", "predicted"))
    layer: str = option("auto", "whose features are projected (auto: the last convolution or activation with maps)")
    features: int = option(6, "how many of its features are projected, the liveliest first; 0: none", low=0)
    images: int = option(64, "test pictures that are measured", low=1)
    randomise: bool = option(True, "compare with the maps of the network with fresh weights")


@explainer("occlusion")
class Occlusion(Explainer[Options]):
    """Occlusion maps in the common table, the paper's panel for some pictures, and projections of features."""

    needs = ("logits", "image")
    quick = {"images": 16, "features": 2}

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """One row; figures "panel" (picture, probability, answer, strongest map), "maps" and "features" (where the
        network has feature maps and ReLUs).
        """
        o, seed = self.options, int(torch.randint(2**31, (1,), generator=generator))
        x, y, meta = next(target.batches("test", min(o.images, target.size("test")), seed, size=o.images))
        if o.label == "predicted":
            y = target.logits(x).argmax(1)
        masks = boxes(meta["mask"].to(x.device)) if "mask" in meta else None
        row = explain_row(
            target, x, y, self.maps, method=f"occlusion {o.size}x{o.size}", quantity=o.of, masks=masks,
            generator=torch.Generator().manual_seed(seed) if o.randomise else None,
            counts={"forward": len(x) * self._places(x), "backward": 0},
        )  # fmt: skip
        few = slice(0, min(5, len(x)))
        found = occlude(target, x[few], y[few], o.size, o.stride, o.value)
        titles = [target.classes[int(label)] for label in y[few]]
        figures = {"panel": panel_figure(target, x[few], found, o.size, titles)}
        figures["maps"] = overlay_figure(target, x[few], {"occlusion": self.maps(target, x[few], y[few])}, titles)
        if o.features:
            try:
                figures["features"] = self._features(target)
            except CapabilityError as error:
                row["note"] = str(error)
        return Explanation([row], figures)

    def maps(self, target: Target, x: Tensor, y: Tensor) -> Tensor:
        """The map with these options, `[B,1,H,W]`."""
        o = self.options
        return occlusion_map(target, x, y, o.size, o.stride, o.value, of=o.of, way=o.way)

    def _places(self, x: Tensor) -> int:
        return int(
            torch.tensor([-(-(edge - self.options.size) // self.options.stride) + 1 for edge in x.shape[2:]]).prod()
        )

    def _features(self, target: Target) -> Any:
        """Projections of the features of the layer whose largest activations are the largest."""
        o = self.options
        layer = o.layer if o.layer != "auto" else projected_layer(target)
        x, _, _ = target.draw("test", torch.arange(min(200, target.size("test"))))
        lively = target.features(x, [layer])[layer].flatten(2).amax((0, 2)).argsort(descending=True)[: o.features]
        tops = top_activations(target, layer, lively.tolist(), n=min(9, target.size("test")), limit=2000)
        return projection_figure(target, layer, tops)


def projected_layer(target: Target) -> str:
    """The last layer with feature maps that has a receptive field. Raises `CapabilityError` when there is none."""
    for layer in reversed(target.layers()):
        if (
            len(layer.shape_out) == 4
            and layer.shape_out[2] > 1
            and layer.field is not None
            and "Pool" not in layer.kind
        ):
            return layer.name
    raise CapabilityError("projections start at feature maps, and the network has none")


# -- the claims --------------------------------------------------------------------------------------------------------


@config
class Config:
    experiment: str = option("place", "what to measure", choices=("place", "correspondence"))
    map: str = option("occlusion", "place: the map, or a control", choices=("occlusion", "random", "centre", "fresh"))
    permute: bool = option(
        False, "place: shuffle the grid, so that places and drops have nothing to do with each other"
    )
    size: int = option(4, "edge of the square, in pixels", low=1)
    stride: int = option(2, "pixels between two places", low=1)
    value: str = option("data", "what the square shows", choices=VALUES)
    distractors: int = option(2, "place: smaller characters of other classes in each scene", low=0)
    relief: float = option(2.5, "place: strength of the ground's texture; 0: nearly black", low=0.0, high=4.0)
    part: str = option("eye", "correspondence: what is covered", choices=("eye", "nose", "random"))
    images: int = option(128, "test pictures of the network's correct answers", low=10)
    target_steps: int = option(400, "training steps of the explained network", low=1)
    target_samples: int = option(5000, "pictures that it is trained on", low=100)


PLACE = Claim(
    name="place",
    statement="The place where the square hurts most lies on the object at least 50 points more often than the best of random "
    "map, centre, and the network with fresh weights.",
    metric="pointing",
    direction="higher",
    margin=0.50,
    paper="Figure 7, without figures: the probability drops when the square covers the object, and the label moves",
    arms={
        "occlusion": Arm(),
        "random": Arm({"map": "random"}),
        "centre": Arm({"map": "centre"}),
        "fresh": Arm({"map": "fresh"}),
    },
    system="occlusion",
    baselines=("random", "centre", "fresh"),
    sabotage=Arm({"permute": True}),
)
FACES: dict[str, object] = {"experiment": "correspondence", "size": 6, "target_steps": 200}
CORRESPONDENCE = Claim(
    name="correspondence",
    statement="Covering the same eye changes the signs of features of different faces at least 15 % more alike than covering "
    "a random place.",
    metric="delta",
    direction="lower",
    margin=0.85,
    compare="ratio",
    paper="Table 1, layer 5: eyes 0.067 and 0.069, nose 0.079, random 0.107",
    arms={
        "eye": Arm(FACES),
        "random": Arm({**FACES, "part": "random"}),
    },
    system="eye",
    baselines=("random",),
    sabotage=Arm({**FACES, "part": "random"}),
)


@study("occlusion")
class OcclusionStudy(Study[Config]):
    """Trains a small network on scenes and asks whether the map finds the object; or one on faces, and compares parts."""

    presets = {
        "smoke": Config(images=12, target_steps=60, target_samples=800),
        "laptop": Config(),
        "paper": Config(images=1000, stride=1, target_steps=3000, target_samples=12_000),
    }
    claims = (PLACE, CORRESPONDENCE)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        found = self._place(seed) if self.config.experiment == "place" else self._correspondence(seed)
        progress(1, 1)
        return found

    def _place(self, seed: int) -> Measurement:
        c = self.config
        style = {"distractors": c.distractors, "relief": c.relief}
        target = scene_target("occlusion", seed, samples=c.target_samples, steps=c.target_steps, **style)
        accuracy = target.metric()["accuracy"]
        x, y, masks = understood(target, max(1, min(c.images, round(accuracy * target.size("test")))), seed)
        generator = torch.Generator().manual_seed(seed)
        if c.map in ("occlusion", "fresh"):
            source = target if c.map == "occlusion" else randomised(target, generator)
            found = occlude(source, x, y, c.size, c.stride, c.value)
            maps = self._map(found, x, generator)
        else:
            found, maps = None, control_map(x, c.map, generator)
        row = explain_row(target, x, y, lambda *_: maps, method=c.map, masks=masks, fill="blur", maps=maps)
        metrics = {
            name.replace(" ", "_"): row[name] for name in ("deletion AUC", "insertion AUC", "pointing", "mask mass")
        }
        metrics |= {"accuracy": accuracy, "box_share": float(masks.float().mean())}
        metrics["pointing_2px"] = float(pointing_hits(maps, masks, 2.0).float().mean())
        if found is not None:
            metrics |= beside(found, masks, c.size)
        titles = [target.classes[int(label)] for label in y[:6]]
        shown = overlay_figure(target, x[:6], {c.map: maps[:6]}, titles)
        if found is not None:
            shown = panel_figure(target, x[:6], found, c.size, titles)
        return Measurement(metrics, Plot(shown))

    def _map(self, found: dict[str, Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        drop = found["clean"][:, None, None] - found["prob"]
        if self.config.permute:
            order = torch.rand(len(x), drop[0].numel(), generator=generator).argsort(1)
            drop = drop.flatten(1).gather(1, order).view_as(drop)
        return spread(drop, found["tops"], found["lefts"], self.config.size, *x.shape[2:])

    def _correspondence(self, seed: int) -> Measurement:
        c = self.config
        target, positions = face_target("occlusion", seed, samples=c.target_samples, steps=c.target_steps)
        x, _, meta = next(target.batches("test", c.images, seed, size=c.images))
        places = part_places(meta["landmarks"], c.part, c.size, x.shape[2], torch.Generator().manual_seed(seed))
        masks = cover(*x.shape[2:], c.size, *places)
        metrics = {"accuracy": target.metric()["accuracy"]}
        fill = stand_in(target, x, c.value)
        for name in positions:
            delta, _ = correspondence(target, x, masks, name, fill)
            metrics[f"delta_{name.rsplit('.', 1)[-1]}"] = float(delta)
        metrics["delta"] = float(delta)
        covered = torch.where(masks, fill, x)
        return Measurement(metrics, Plot(overlay_figure(target, covered[:8], {c.part: masks[:8].float()})))


def beside(found: dict[str, Tensor], masks: Tensor, size: int) -> dict[str, float]:
    """What the squares do on the object and beside it: the share of pictures whose probability is lower with the square's
    centre in the box than with the square off it, the mean drops, and how often the answer changes.
    """
    tops, lefts, prob = found["tops"], found["lefts"], found["prob"]
    height, width = masks.shape[2:]
    rows, columns = (tops + size // 2).clamp(max=height - 1), (lefts + size // 2).clamp(max=width - 1)
    inside = masks[:, 0][:, rows][:, :, columns]
    grid = torch.cartesian_prod(tops, lefts)
    squares = cover(height, width, size, grid[:, 0], grid[:, 1]).flatten(1).float()
    off = (masks.flatten(1).float() @ squares.T == 0).view_as(prob)
    mean = lambda values, where: (values * where).sum((1, 2)) / where.sum((1, 2)).clamp_min(1)  # noqa: E731
    on, away = mean(prob, inside), mean(prob, off)
    moved = (found["label"] != found["label"].mode(dim=1).values.mode(dim=1).values[:, None, None]).float()
    return {
        "lower_on_object": float((on < away).float().mean()),
        "drop_on": float((found["clean"] - on).mean()),
        "drop_off": float((found["clean"] - away).mean()),
        "moved_on": float(mean(moved, inside).mean()),
        "moved_off": float(mean(moved, off).mean()),
    }


def control_map(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """A map `[B,1,H,W]` that knows nothing of the picture: "random" noise, or highest at the "centre"."""
    height, width = x.shape[2:]
    if kind == "random":
        return torch.rand(len(x), 1, height, width, generator=generator).to(x)
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    return -(rows[:, None] ** 2 + columns[None, :] ** 2).sqrt().expand(len(x), 1, -1, -1).contiguous().to(x)


# -- faces -------------------------------------------------------------------------------------------------------------


def face_target(slug: str, seed: int, *, samples: int, steps: int) -> tuple[ModuleTarget, list[str]]:
    """A batch-norm network that tells sex and smile of cartoon faces, and its activations from the first to the last."""
    data = faces.load(size=32, train=samples, test=1000, seed=seed)
    pixels = unit(data.train[torch.arange(min(1000, samples))]["image"]).transpose(0, 1).flatten(1)
    settings = {"mean": pixels.mean(1).tolist(), "std": pixels.std(1).tolist()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = zoo.fitted("vgg-small", classes=4, channels=3, size=32, **settings)
    target = wrap(module, space=Space.image((3, 32, 32)), classes=data.info["classes"], data=data)

    def train(fresh: nn.Module) -> None:
        target.finetune(fresh, steps=steps, lr=0.1, lr_scale=1.0, generator=torch.Generator().manual_seed(seed))

    kept(slug, {"world": "faces", "samples": samples, "steps": steps, "seed": seed}, module, train)
    return target, [row.name for row in target.layers() if row.kind == "ReLU"]


def part_places(
    landmarks: Tensor, part: str, size: int, edge: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Top and left `[B]` of a square over a part of each face (landmarks `[B,5,2]`, coordinates -1..1), or anywhere."""
    if part == "random":
        places = torch.randint(edge - size + 1, (2, len(landmarks)), generator=generator)
        return places[0], places[1]
    pixel = (landmarks[:, {"eye": 0, "nose": 2}[part]] + 1) * edge / 2
    corner = (pixel - size / 2).round().long().clamp(0, edge - size)
    return corner[:, 1], corner[:, 0]
