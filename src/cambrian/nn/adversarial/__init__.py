"""Adversarial games: players and their losses, layers, convolutional blocks, unrolling and latent inversion."""

from __future__ import annotations

from cambrian.nn.adversarial.connected import ConnectedNet
from cambrian.nn.adversarial.dcgan import DCGANDiscriminator, DCGANGenerator, DownBlock, UpBlock, stages_for
from cambrian.nn.adversarial.inversion import invert, lbfgs
from cambrian.nn.adversarial.joint import (
    JointDiscriminator,
    JointPairs,
    Tower,
    joint_discriminator_loss,
    joint_opponents_loss,
)
from cambrian.nn.adversarial.layers import (
    FAKE,
    REAL,
    GaussianNoise,
    MaxoutLinear,
    MinibatchDiscrimination,
    SplitBatchNorm,
    VirtualBatchNorm,
    WeightNormConv2d,
    WeightNormLinear,
    initialise_from_data,
    maxout,
)
from cambrian.nn.adversarial.losses import (
    HistoricalAverage,
    discriminator_loss,
    feature_matching,
    game_value,
    generator_loss,
    least_squares_discriminator,
    least_squares_generator,
    margin_loss,
    semi_supervised_loss,
    source_logit,
)
from cambrian.nn.adversarial.players import (
    MovingAverage,
    Player,
    discriminator_accuracy,
    gradient_norm,
    parameters_of,
    part,
    play,
)
from cambrian.nn.adversarial.unroll import InnerAdam, InnerSGD, Unrolled, forbid_running_statistics, unroll

__all__ = [
    "FAKE",
    "REAL",
    "ConnectedNet",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DownBlock",
    "GaussianNoise",
    "HistoricalAverage",
    "InnerAdam",
    "InnerSGD",
    "JointDiscriminator",
    "JointPairs",
    "MaxoutLinear",
    "MinibatchDiscrimination",
    "MovingAverage",
    "Player",
    "SplitBatchNorm",
    "Tower",
    "Unrolled",
    "UpBlock",
    "VirtualBatchNorm",
    "WeightNormConv2d",
    "WeightNormLinear",
    "discriminator_accuracy",
    "discriminator_loss",
    "feature_matching",
    "forbid_running_statistics",
    "game_value",
    "generator_loss",
    "gradient_norm",
    "initialise_from_data",
    "invert",
    "joint_discriminator_loss",
    "joint_opponents_loss",
    "lbfgs",
    "least_squares_discriminator",
    "least_squares_generator",
    "margin_loss",
    "maxout",
    "parameters_of",
    "part",
    "play",
    "semi_supervised_loss",
    "source_logit",
    "stages_for",
    "unroll",
]
