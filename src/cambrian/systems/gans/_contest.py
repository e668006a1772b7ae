"""The family's comparison: the same nets, learning rates, batches and rounds for all; what differs is the paper's own.

`cambrian verify --family gans --table`. A round is one generator update of each system (gap: one of each member).
"""

from __future__ import annotations

from cambrian.engine.contest import Contest, Entrant, World

POINTS = {"steps": 2000, "batch": 128, "latent": 64}
STACKED = {"steps": 800, "batch": 64, "latent": 64}

CONTEST = Contest(
    family="gans",
    worlds=(
        World("ring8", POINTS, ("modes_touched", "quality")),
        World("grid25", POINTS, ("modes_touched", "quality")),
        World("stacked-glyphs", STACKED, ("modes_reached", "classifier_score", "frechet")),
    ),
    entrants=(
        Entrant(
            "gan",
            "gan",
            {
                "labels_per_class": 0,
                "loss": "ns",
                "arch": "dcgan",
                "hidden": (128, 128),
                "hidden_g": (128, 128),
                "base": 16,
            },
            {"ring8": {"lr": 1e-3}, "grid25": {"lr": 1e-3}, "stacked-glyphs": {"lr": 2e-4}},
        ),
        Entrant(
            "unrolled-gan",
            "unrolled-gan",
            {"unroll": 5},
            {"stacked-glyphs": {"base": 16, "base_d": 16, "lr_g": 2e-4, "lr_d": 2e-4, "inner_lr": 2e-4}},
        ),
    ),
)
