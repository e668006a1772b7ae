"""What is claimed of the VAE, as data."""

from __future__ import annotations

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.worlds.glyphs import DIGITS

WEIGHTED = {"objective": "iwae", "samples": 20}
ARMS = {
    "iwae": Arm(WEIGHTED),
    "vae": Arm({"objective": "elbo-sampled", "samples": 20}),
    "vae-analytic": Arm({"objective": "elbo", "samples": 20}),
}
UNIFORM = Arm({**WEIGHTED, "uniform_weights": True})

IWAE = Claim(
    name="iwae",
    statement="After as many steps, 20 importance-weighted samples give a test negative log-likelihood (1,000 importance "
    "samples) at least 0.3 nats a picture lower than the mean over 20 samples, whichever estimator that mean uses.",
    metric="nll",
    direction="lower",
    margin=0.3,
    paper="Burda et al. 2016, table 1, MNIST, one layer, k = 50: 84.78 (IWAE) against 86.35 (VAE) (unverified)",
    arms=ARMS,
    system="iwae",
    baselines=("vae", "vae-analytic"),
    sabotage=UNIFORM,
)
ACTIVE = Claim(
    name="active-units",
    statement="Training on the importance-weighted bound leaves more latent features active (variance of the posterior "
    "mean over test pictures above 0.01) than training on the mean.",
    metric="active_units",
    direction="higher",
    margin=0.0,
    paper="Burda et al. 2016, table 1, MNIST, one layer, k = 50: 25 active units (IWAE) against 20 (VAE) (unverified)",
    arms=ARMS,
    system="iwae",
    baselines=("vae", "vae-analytic"),
    sabotage=UNIFORM,
)
WAKE_SLEEP = Claim(
    name="wake-sleep",
    statement="A VAE with one sample a picture has a test bound at least 1 nat higher than the same nets trained by "
    "wake-sleep for as many steps.",
    metric="elbo",
    direction="higher",
    margin=1.0,
    paper="Kingma & Welling 2014, figure 2: the bound rises faster and ends higher than wake-sleep's at every size of z",
    arms={"vae": Arm({"activation": "tanh"}), "wake-sleep": Arm({"activation": "tanh", "objective": "wake-sleep"})},
    system="vae",
    baselines=("wake-sleep",),
    sabotage=Arm({"activation": "tanh", "objective": "wake-sleep"}),
)
ASKED = {"model": "cvae", "judge": True, "characters": DIGITS, "size": 20}
CONDITIONAL = Claim(
    name="conditional",
    statement="Samples of a conditional VAE are taken for the class asked for by an independent classifier in at least 90 % "
    "of the cases, 50 points more than of a model whose training labels were those of other pictures.",
    metric="judged",
    direction="higher",
    margin=0.5,
    paper="Kingma et al. 2014, figure 1, and Sohn et al. 2015, figure 4: samples of the class asked for, without a figure",
    arms={"told": Arm(ASKED), "misled": Arm({**ASKED, "shuffle_labels": True})},
    system="told",
    baselines=("misled",),
    sabotage=Arm({**ASKED, "shuffle_labels": True}),
    conditions=(Condition("told", "judged", ">=", 0.9), Condition("told", "judge_accuracy", ">=", 0.97)),
)
CLAIMS = (IWAE, ACTIVE, WAKE_SLEEP, CONDITIONAL)
