"""The family's comparison: the same nets, learning rates, batches and rounds for all; what differs is the paper's own.

`cambrian verify --family gans --table`. In a round every generator is updated once (gap: each of its four).
"""

from __future__ import annotations

from typing import Any

from cambrian.engine.contest import Contest, Entrant, World

POINTS = {"steps": 1000, "batch": 128, "latent": 64}
STACKED = {"steps": 300, "batch": 64, "latent": 64}
NETS = {"hidden": (128, 128), "base": 16, "samples": 2000}


def rated(
    slug: str, settings: dict[str, Any] | None = None, *, name: str = "", points: dict[str, Any] | None = None,
    stacked: dict[str, Any] | None = None, with_: tuple[str, ...] = (),
) -> Entrant:  # fmt: skip
    """An entrant with the family's nets, Adam at 1e-3 on points and at 2e-4 on images, and what it needs of its own."""
    on_points = {"lr": 1e-3, **(points or {})}
    by_world = {
        "ring8": on_points,
        "grid25": on_points,
        "stacked-glyphs": {"arch": "dcgan", "lr": 2e-4, **(stacked or {})},
    }
    return Entrant(name or slug, slug, {**NETS, **(settings or {})}, by_world, with_)


PLAIN = {"labels_per_class": 0, "loss": "ns", "hidden_g": (128, 128)}
UNROLLED = {
    "ring8": {},
    "grid25": {},
    "stacked-glyphs": {"base": 16, "base_d": 16, "lr_g": 2e-4, "lr_d": 2e-4, "inner_lr": 2e-4},
}

CONTEST = Contest(
    family="gans",
    worlds=(
        World("ring8", POINTS, ("modes_touched", "quality")),
        World("grid25", POINTS, ("modes_touched", "quality")),
        World("stacked-glyphs", STACKED, ("modes_reached", "classifier_score", "frechet")),
    ),
    entrants=(
        rated("gan", PLAIN),
        rated("gan", PLAIN, name="gan, principled-gan noise", with_=("principled-gan:sigma=0.3",)),
        Entrant("unrolled-gan", "unrolled-gan", {"unroll": 5, "hidden": 128, "depth": 2}, UNROLLED),
        rated("infogan", {"codes": ("cat:10", "uniform:2")}, points={"lr_d": 1e-3}, stacked={"lr_d": 2e-4}),
        rated("ebgan", {"hidden_d": (128, 128)}),
        rated("vgan-ebm", {"optim": "adam", "size": None}, points={"lr_d": 1e-3}, stacked={"lr_d": 2e-4}),
        rated("mode-gan", name="mode-gan, regularised"),
        rated("mode-gan", {"game": "mdgan"}, name="mode-gan, manifold and diffusion"),
        rated("gap", {"pool": 0}),
        rated("dfm", {"characters": "digits"}),
        rated("ali"),
        rated("bigan", {"look": 0}),
        rated("vae-gan", points={"lr_d": 1e-3}, stacked={"lr_d": 2e-4}),
    ),
)  # fmt: skip
