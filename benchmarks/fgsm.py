"""FGSM against the peers that are installed, and the reused gradient of adversarial training against three passes.

Run: python benchmarks/fgsm.py     (pip install foolbox; pip install --no-deps torchattacks)
"""

from __future__ import annotations

import copy
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.attack import Goal, direction, input_gradient
from cambrian.inspect.bench import compare
from cambrian.nn.zoo.vgg import VGG
from cambrian.systems.attack.fgsm.model import adversarial_objective, fgsm

EPS = 8 / 255


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return VGG(plan="A", classes=10, channels=1, size=32, bn=True, width=0.125, head="gap")


def attacks() -> None:
    """Whole calls: ours checks the input, judges success on clean-correct samples and proves the bounds."""
    net, x = network().eval(), torch.rand(256, 1, 32, 32)
    target = wrap(net, space=Space.image((1, 32, 32)), classes="0123456789")
    y = target.logits(x).argmax(1)

    def bare() -> Tensor:
        with target.quiet() as module:
            grad, _, _ = input_gradient(module, x, y, Goal())
        return (x + EPS * direction(grad, "inf")).clamp(0, 1)

    peers = {}
    if importlib.util.find_spec("foolbox"):
        import foolbox

        model = foolbox.PyTorchModel(copy.deepcopy(net), bounds=(0, 1))
        method = foolbox.attacks.LinfFastGradientAttack(random_start=False)
        peers["foolbox"] = (lambda: fgsm(target, x, y, EPS).x_adv, lambda: method(model, x, y, epsilons=EPS)[1])
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        other = torchattacks.FGSM(copy.deepcopy(net), eps=EPS)
        peers["torchattacks"] = (bare, lambda: other(x, y))
    plain = copy.deepcopy(net)  # parameter gradients left on, as in a hand-written attack
    peers["by hand"] = (bare, lambda: by_hand(plain, x, y))
    for name, (ours, theirs) in peers.items():
        gap = float((ours() - theirs()).abs().max())
        assert gap == 0.0, f"{name} differs by {gap}"
        print(f"equal to {name} (max difference 0), 256 images of 32x32:", compare({"ours": ours, name: theirs}))


def by_hand(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    moved = x.clone().requires_grad_(True)
    net.zero_grad()
    F.cross_entropy(net(moved), y).backward()
    return (x + EPS * moved.grad.sign()).clamp(0, 1)


def adversarial_training() -> None:
    """Gradients of one training step."""
    ours, theirs = network().double(), network().double()
    x, y = torch.rand(64, 1, 32, 32).double(), torch.arange(64) % 10

    def reuse(net: nn.Module, x: Tensor) -> None:
        net.zero_grad()
        space = Space.image((1, 32, 32))
        adversarial_objective(net, lambda: (F.cross_entropy(net(x), y), {}), eps=EPS, space=space)[0].backward()

    def three_passes(net: nn.Module, x: Tensor) -> None:
        moved = by_hand(net, x, y)
        net.zero_grad()
        (0.5 * F.cross_entropy(net(x), y) + 0.5 * F.cross_entropy(net(moved), y)).backward()

    ours.train(), theirs.train()
    reuse(ours, x), three_passes(theirs, x)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-10)
    ours.float(), theirs.float()
    x = x.float()
    result = compare({"reused": lambda: reuse(ours, x), "three passes": lambda: three_passes(theirs, x)})
    print("adversarial training step, batch 64:", result)


def main() -> None:
    torch.set_num_threads(1)
    attacks()
    adversarial_training()


if __name__ == "__main__":
    main()
