"""The joint-pair game: its losses, its one call on all pairs, what is cut off from whom, and its permuted pairs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cambrian.errors import ShapeError
from cambrian.nn.adversarial import (
    ConnectedNet,
    Flat,
    JointDiscriminator,
    JointPairs,
    Tower,
    joint_discriminator_loss,
    joint_opponents_loss,
)


def net(norm="split"):
    torch.manual_seed(0)
    return JointDiscriminator(
        x_tower=Flat(scale=0.5),
        z_tower=Tower(nn.Linear(3, 6), nn.ReLU()),
        joint=ConnectedNet(inputs=(4 * 4 + 6,), outputs=(1,), hidden=(9, 9), act="lrelu", norm=norm, norm_first=False),
    )


def pairs(count=10):
    generator = torch.Generator().manual_seed(1)
    x, x_tilde = (torch.randn(count, 1, 4, 4, generator=generator) for _ in range(2))
    z_hat, z = (torch.randn(count, 3, generator=generator) for _ in range(2))
    return JointPairs(x, z_hat.requires_grad_(), x_tilde.requires_grad_(), z)


def test_losses_are_cross_entropies_with_labels_and_with_labels_swapped():
    q, p = torch.randn(7), torch.randn(7)
    one, zero = torch.ones(7), torch.zeros(7)
    entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(joint_discriminator_loss(q, p), entropy(q, one) + entropy(p, zero))
    torch.testing.assert_close(joint_opponents_loss(q, p), entropy(q, zero) + entropy(p, one))


def test_one_call_on_all_pairs_equals_two_calls():
    discriminator, both = net(), pairs()
    q, p = both.logits(discriminator)
    torch.testing.assert_close(q, discriminator(both.x, both.z_hat, (0,)))
    torch.testing.assert_close(p, discriminator(both.x_tilde, both.z, (1,)))
    assert not torch.allclose(q, discriminator(both.x, both.z_hat, (1,)) + 1.0)


def test_opponents_get_gradients_through_both_pairs_and_the_discriminators_step_gives_them_none():
    discriminator, both = net(), pairs()
    to_code, to_image = torch.autograd.grad(
        joint_opponents_loss(*both.logits(discriminator)), (both.z_hat, both.x_tilde)
    )
    assert bool((to_code.abs().sum(1) > 0).all()) and bool((to_image.flatten(1).abs().sum(1) > 0).all())
    loss = joint_discriminator_loss(*both.detached().logits(discriminator))
    loss.backward()
    assert both.z_hat.grad is None and both.x_tilde.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())


def test_permuted_pairs_keep_both_marginals_and_lose_the_pairing():
    both = pairs(200)
    lost = both.permuted(torch.Generator().manual_seed(2))
    assert torch.equal(lost.x, both.x) and torch.equal(lost.x_tilde, both.x_tilde) and torch.equal(lost.z, both.z)
    order = torch.cdist(lost.z_hat, both.z_hat).argmin(1)
    assert torch.equal(lost.z_hat, both.z_hat[order]) and torch.equal(order.sort().values, torch.arange(200))
    assert int((order == torch.arange(200)).sum()) < 10


def test_a_blind_discriminator_sees_x_alone():
    discriminator, both = net("none"), pairs()
    q, p = both.blind().logits(discriminator)
    other = JointPairs(both.x, both.z_hat + 1, both.x_tilde, both.z - 1).blind()
    assert torch.equal(q, other.logits(discriminator)[0]) and torch.equal(p, other.logits(discriminator)[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
def test_towers_in_streams_of_their_own_give_the_same_on_a_gpu():
    discriminator, both = net("none"), pairs(64)
    here = joint_discriminator_loss(*both.logits(discriminator))
    there = JointPairs(*(part.detach().cuda() for part in (both.x, both.z_hat, both.x_tilde, both.z)))
    torch.testing.assert_close(joint_discriminator_loss(*there.logits(discriminator.cuda())).cpu(), here)


def test_a_pair_is_one_x_and_one_z():
    with pytest.raises(ShapeError, match="got 4 and 5"):
        net()(torch.zeros(4, 1, 4, 4), torch.zeros(5, 3))
