"""Output distributions: from a network's raw outputs to log-densities, samples and means.

Every head has `n_params`, `log_prob(params, target)`, `sample(params, generator, temperature)` and `mean(params)`, and
a property test: it normalises to 1, agrees with a float64 reference, and its gradient is finite at the extremes.
"""

from cambrian.nn.likelihood.bernoulli import Bernoulli
from cambrian.nn.likelihood.categorical import Categorical
from cambrian.nn.likelihood.gaussian import Gaussian
from cambrian.nn.likelihood.mixture2d import Mixture2D

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Mixture2D"]
