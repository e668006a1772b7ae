"""The attacker with its tables and pictures, and the study of what a camera destroys."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Attacker, Measurement, Progress, Study, attacker, study
from cambrian.engine.samples import Plot, Table
from cambrian.engine.targets import trained
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.attack import attack_row, in_batches, join
from cambrian.inspect.camera import HARSH, MILD, Photo, PhotoConfig, photo
from cambrian.inspect.results import AttackResult, Row
from cambrian.inspect.target import Target
from cambrian.systems.attack.physical_adversarial._pictures import photo_figure, sweep_figure
from cambrian.systems.attack.physical_adversarial._sheets import Sheet, crop_photos, fingerprint, print_sheet
from cambrian.systems.attack.physical_adversarial.model import (
    ATTACKS,
    Moves,
    Rate,
    Survey,
    destruction_of_photos,
    prefiltered,
    sweeps,
)
from cambrian.systems.perception.resnet import GLYPH_TARGETS
from cambrian.systems.perception.vgg import SMALL_COLOUR_TARGET

CAMERAS = {"usual": PhotoConfig(), "mild": MILD, "harsh": HARSH}

# -- attack ------------------------------------------------------------------------------------------------------------


@config
class Options:
    attack: str = option("least-likely", "which attack's pictures are returned", choices=ATTACKS)
    eps: float = option(8 / 255, "size, as a fraction of the input range", low=0.0, high=1.0)
    camera: str = option("usual", "how good the printer and the camera are", choices=tuple(CAMERAS))
    views: int = option(
        0, "attack through so many simulated photographs per step; 0: without knowing the camera", low=0
    )
    batch: int = option(256, "samples per pass", low=1)
    reference: bool = option(True, "report the other two attacks beside it")
    sweep: bool = option(True, "destruction under brightness, contrast, blur, noise and JPEG too")
    pairs: int = option(18, "pairs of pictures on the printed sheets", low=1)
    print_to: str = option("", "folder for sheets to print (PNG, PDF)")
    from_photo: str = option("", "folder with photographs of those sheets, and their sheet.json, to score")


@attacker("physical-adversarial")
class PhysicalAdversarial(Attacker[Options]):
    """One-step, basic iterative and least-likely-class attacks, and how many of each outlive print and camera."""

    needs = ("grad_x", "logits", "image")
    quick = {"sweep": False, "pairs": 6}

    def attack(self, target: Target, x: Tensor, y: Tensor, generator: torch.Generator) -> AttackResult:
        """The chosen attack on every input; a row per attack with its destruction rates, photographs, sweeps."""
        o = self.options
        target.check(x, y)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        camera = photo(CAMERAS[o.camera], seed)
        survey = Survey(target, x, y, camera)
        names = [o.attack, *(name for name in ATTACKS if name != o.attack and o.reference)]
        results: dict[str, AttackResult] = {}
        rows: list[Row] = []
        for name in names:
            begin = time.perf_counter()
            moves = Moves(name, o.eps, camera if o.views else None, max(1, o.views))
            results[name] = join([moves(target, a, b) for a, b in in_batches(x, y, o.batch)])
            seconds = (time.perf_counter() - begin) / len(x)
            facts = {"knowledge": "white box", "norm": "inf", "eps": o.eps, "s/image": seconds}
            row = attack_row(target, x, y, results[name], method=name, **facts)
            rows.append({**row, **_photographed(target, survey, results[name].x_adv)})
        result = results[o.attack]
        result.rows = rows
        few = slice(0, min(6, len(x)))
        result.figures["photographs"] = photo_figure(target, x[few], result.x_adv[few], y[few], camera)
        if o.sweep:
            rates = sweeps(target, x, {name: r.x_adv for name, r in results.items()}, y)
            result.figures["sweeps"] = sweep_figure(rates)
        self._on_paper(target, x, y, result)
        return result

    def _on_paper(self, target: Target, x: Tensor, y: Tensor, result: AttackResult) -> None:
        """Sheets to print, and the score of real photographs of them."""
        o = self.options
        kept = slice(0, min(o.pairs, len(x)))
        if o.print_to:
            _require_pictures(target)
            print_sheet(x[kept], result.x_adv[kept], Path(o.print_to))
        if o.from_photo:
            _require_pictures(target)
            sheet = Sheet.load(Path(o.from_photo))
            if sheet.fingerprint != fingerprint(x[: sheet.count], result.x_adv[: sheet.count]):
                raise ConfigError(
                    f"the photographs in {o.from_photo} are of other pictures; attack the same inputs, seed and options"
                )
            n = sheet.count
            clean, moved, found = crop_photos(Path(o.from_photo), sheet)
            rate = destruction_of_photos(target, x[:n], result.x_adv[:n], y[:n], clean, moved, found)
            result.rows.append({"method": f"{o.attack} on real photographs", **_columns(rate)})


def _require_pictures(target: Target) -> None:
    if target.space.kind != "image" or (target.space.lo, target.space.hi) != (0.0, 1.0):
        raise CapabilityError(f"only pictures in [0, 1] can be printed; the target takes {target.space}")


def _columns(rate: Rate, ending: str = "") -> Row:
    return {
        f"destruction{ending}": rate.rate,
        f"successes photographed{ending}": rate.count,
        f"photo accuracy{ending}": rate.accuracy,
        f"clean photo accuracy{ending}": rate.clean,
        f"photographs lost{ending}": rate.lost,
    }


def _photographed(target: Target, survey: Survey, x_adv: Tensor) -> Row:
    chosen = prefiltered(target, survey.x, x_adv, survey.y)
    everything, filtered = survey.rates(x_adv, [None, chosen])
    return {
        **_columns(everything),
        "destruction, prefiltered": filtered.rate,
        "successes, prefiltered": filtered.count,
    }


# -- the claim ---------------------------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[str, dict[str, object]]] = {
    "vgg": ("vgg", SMALL_COLOUR_TARGET),
    "resnet-mini": ("resnet", GLYPH_TARGETS["resnet-mini"]),
}


@config
class Config:
    attack: str = option("least-likely", "which attack", choices=ATTACKS)
    eps: float = option(8 / 255, "size, as a fraction of the input range", low=0.0, high=1.0)
    camera: str = option("usual", "how good printer and camera are; none: no camera", choices=(*CAMERAS, "none"))
    samples: int = option(300, "test pictures of each network", low=10)
    steps: int | None = option(None, "training steps of the networks; None: each its own", low=1)
    networks: tuple[str, ...] = option(tuple(TARGETS), "which networks are attacked")

    def check(self) -> None:
        """Conditions across fields."""
        unknown = [name for name in self.networks if name not in TARGETS]
        if unknown or not self.networks:
            raise ConfigError(f"networks must be some of {', '.join(TARGETS)}, not {unknown}")


CLAIM = Claim(
    name="destruction",
    statement="Print and camera destroy at least 10 points more of the least-likely-class attacks at 8/255 than of the "
    "one-step attacks on the same pictures, mean of two architectures.",
    metric="destruction",
    direction="higher",
    margin=0.10,
    paper="Table 2, eps 8, average case, top 1: destruction 33.3 % of the fast and 86.3 % of the least-likely attacks",
    arms={"least-likely": Arm(), "fast": Arm({"attack": "fast"})},
    system="least-likely",
    baselines=("fast",),
    sabotage=Arm({"camera": "none"}),
    conditions=(Condition("least-likely", "successes", ">=", 30), Condition("fast", "successes", ">=", 30)),
)


@study("physical-adversarial")
class PhysicalAdversarialStudy(Study[Config]):
    """Attacks small trained networks, photographs the results, and counts what the photographs destroy."""

    presets = {
        "smoke": Config(samples=24, steps=40, networks=("vgg",)),
        "laptop": Config(),
        "paper": Config(samples=2000, eps=16 / 255),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c, rates, filtered, sample = self.config, [], [], None
        for number, name in enumerate(c.networks):
            target = _target(name, seed, c.steps)
            x, y, _ = next(target.batches("test", c.samples, seed, size=c.samples))
            moved = Moves(c.attack, c.eps)(target, x, y).x_adv
            transform = _same if c.camera == "none" else photo(CAMERAS[c.camera], seed)
            found = Survey(target, x, y, transform).rates(moved, [None, prefiltered(target, x, moved, y)])
            rates.append(found[0])
            filtered.append(found[1])
            if sample is None and isinstance(transform, Photo):
                sample = Plot(photo_figure(target, x[:6], moved[:6], y[:6], transform))
            progress(number + 1, len(c.networks))
        notes = {"networks": dict(zip(c.networks, map(asdict, rates), strict=True))}
        table = Table.of([{"network": name, **row} for name, row in notes["networks"].items()])
        return Measurement(_summary(rates, filtered), sample or table, notes=notes)


def _same(x: Tensor) -> Tensor:
    return x


def _target(name: str, seed: int, steps: int | None) -> Target:
    slug, overrides = TARGETS[name]
    settings: dict[str, Any] = {**overrides, **({} if steps is None else {"steps": steps, "samples": 600})}
    return trained(slug, data="glyphs", overrides=settings, seed=seed).target()


def _summary(rates: list[Rate], filtered: list[Rate]) -> dict[str, float]:
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    judged = [r.rate for r in filtered if r.rate is not None and r.count >= 30]
    return {
        "destruction": mean([r.rate if r.rate is not None else float("nan") for r in rates]),
        "successes": float(min(r.count for r in rates)),
        "photo_accuracy": mean([r.accuracy for r in rates]),
        "clean_photo_accuracy": mean([r.clean for r in rates]),
        "lost": mean([r.lost for r in rates]),
        "prefiltered_successes": float(min(r.count for r in filtered)),
        **({"prefiltered_destruction": mean(judged)} if len(judged) == len(filtered) else {}),
    }
