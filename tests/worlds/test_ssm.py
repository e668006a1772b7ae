import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.worlds.ssm import load, turning

MODEL = turning()
KEYS = torch.arange(50) * 7919


def joint(steps):
    """Mean-zero covariance of (z_1..T, x_1..T), built by hand."""
    a, c = MODEL.transition.double(), MODEL.emission.double()
    blocks = [torch.diag(MODEL.first.double())]
    for _ in range(steps - 1):
        blocks.append(a @ blocks[-1] @ a.T + torch.diag(MODEL.process.double()))
    z = torch.zeros(2 * steps, 2 * steps, dtype=torch.float64)
    for s in range(steps):
        for t in range(s, steps):
            block = torch.linalg.matrix_power(a, t - s) @ blocks[s]
            z[2 * t : 2 * t + 2, 2 * s : 2 * s + 2] = block
            z[2 * s : 2 * s + 2, 2 * t : 2 * t + 2] = block.T
    lift = torch.block_diag(*[c] * steps)
    noise = torch.block_diag(*[torch.diag(MODEL.noise.double())] * steps)
    x = lift @ z @ lift.T + noise
    return z, z @ lift.T, x


def test_kalman_and_smoother_equal_the_joint_gaussian():
    _, x = MODEL.draw(KEYS, 5)
    z_cov, cross, x_cov = joint(5)
    flat = x.double().flatten(1)
    expected = torch.distributions.MultivariateNormal(torch.zeros(15).double(), x_cov).log_prob(flat)
    assert torch.allclose(MODEL.kalman(x).log_likelihood, expected, atol=1e-8)
    gain = torch.linalg.solve(x_cov, cross.T).T
    mean, cov = MODEL.smooth(x)
    assert torch.allclose(mean.flatten(1), flat @ gain.T, atol=1e-8)
    left = z_cov - gain @ cross.T
    assert all(torch.allclose(cov[t], left[2 * t : 2 * t + 2, 2 * t : 2 * t + 2], atol=1e-8) for t in range(5))


def test_filtering_is_smoothing_at_the_last_step_and_tracks_the_state():
    state, x = MODEL.draw(KEYS, 30)
    found, (mean, _) = MODEL.kalman(x), MODEL.smooth(x)
    assert torch.allclose(found.mean[:, -1], mean[:, -1])
    filtered, smoothed = (((m - state) ** 2).mean() for m in (found.mean, mean))
    assert smoothed < filtered < 0.3


def test_splits_are_pure_functions():
    a, b = load(train=10, valid=3, test=3), load(train=20, valid=3, test=3)
    at = torch.arange(10)
    assert torch.equal(a.train[at]["x"], b.train[at]["x"]) and not torch.equal(
        a.train[at[:3]]["x"], a.test[at[:3]]["x"]
    )


def test_wrong_shape():
    with pytest.raises(ShapeError, match=r"\[N, T, 3\]"):
        MODEL.kalman(torch.zeros(2, 5, 2))
