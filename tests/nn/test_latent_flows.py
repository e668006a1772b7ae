from __future__ import annotations

import pytest
import torch

from cambrian.errors import ConfigError
from cambrian.nn.latent import flow_for


@pytest.fixture(params=["planar", "iaf"])
def flow(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return flow_for(request.param, latent=3, layers=4).double()


def test_determinant_equals_autograds(flow: torch.nn.Module) -> None:
    torch.manual_seed(1)
    z, context = torch.randn(6, 3).double(), 2.0 * torch.randn(6, flow.context).double()
    with torch.no_grad():
        _, found = flow(z, context)
    for row, here, expected in zip(z, context, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v, c=here: flow(v, c)[0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)
        assert torch.isfinite(expected)  # so the map has an inverse


def test_samples_share_their_datums_context(flow: torch.nn.Module) -> None:
    z, context = torch.randn(5, 2, 3).double(), torch.randn(2, flow.context).double()
    bent, log_det = flow(z, context)
    assert bent.shape == (5, 2, 3)
    assert log_det.shape == (5, 2)
    one, det = flow(z[3, 1], context[1])
    torch.testing.assert_close(bent[3, 1], one)
    torch.testing.assert_close(log_det[3, 1], det)


def test_each_feature_of_a_masked_step_sees_those_before_it() -> None:
    torch.manual_seed(0)
    step = flow_for("iaf", latent=4, layers=1).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda z: step(z, torch.zeros(step.context).double())[0], torch.randn(4).double()
    )
    assert not jacobian.triu(1).any()
    assert jacobian.tril().ne(0).sum() == 10


def test_a_planar_flow_that_is_told_little_changes_little() -> None:
    planar = flow_for("planar", latent=3, layers=4)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    context = 1e-3 * torch.randn(5, planar.context, generator=torch.Generator().manual_seed(1))
    bent, log_det = planar(z, context)
    torch.testing.assert_close(bent, z, atol=1e-4, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros(5), atol=1e-4, rtol=0)


def test_none_and_unknown_flows() -> None:
    assert flow_for("none", latent=2, layers=3) is None
    with pytest.raises(ConfigError, match="planar"):
        flow_for("radial", latent=2, layers=3)
