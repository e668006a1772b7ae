"""Latent variables: Gaussian posteriors, flows that bend them, bounds and their estimators, and schedules."""

from cambrian.nn.latent.estimators import (
    ESTIMATORS,
    PATH_ONLY,
    Funnel,
    StreamingLogMean,
    bound_loss,
    effective_samples,
    log_mean_exp,
    normalised_weights,
)
from cambrian.nn.latent.flows import FLOWS, InverseAutoregressiveFlow, PlanarFlow, flow_for
from cambrian.nn.latent.gaussian import DiagGaussian, active_units, kl_diag, slerp
from cambrian.nn.latent.schedules import cyclic_weight, exponential_weight, floored, free_bits, linear_weight

__all__ = [
    "ESTIMATORS",
    "FLOWS",
    "PATH_ONLY",
    "DiagGaussian",
    "Funnel",
    "InverseAutoregressiveFlow",
    "PlanarFlow",
    "StreamingLogMean",
    "active_units",
    "bound_loss",
    "cyclic_weight",
    "effective_samples",
    "exponential_weight",
    "floored",
    "flow_for",
    "free_bits",
    "kl_diag",
    "linear_weight",
    "log_mean_exp",
    "normalised_weights",
    "slerp",
]
