"""An ensemble attack on a batch against a loop over pictures, stacked networks, and the L2 attack against foolbox.

Run: python benchmarks/transferable_attacks.py     (pip install foolbox)
"""

from __future__ import annotations

import copy
import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.inspect import Space, wrap
from cambrian.inspect.attack import Goal
from cambrian.inspect.bench import compare
from cambrian.inspect.carlini_wagner import carlini_wagner
from cambrian.inspect.target import ModuleTarget
from cambrian.nn import zoo
from cambrian.systems.attack.transferable_attacks import Ensemble, ensemble_attack

SPACE = Space.image((1, 16, 16))


def target(seed: int, net: str = "lenet-1998") -> ModuleTarget:
    torch.manual_seed(seed)
    facts = {"classes": 10, "channels": 1, "size": 16, "mean": [0.5], "std": [0.5]}
    return wrap(zoo.fitted(net, **facts).eval(), space=SPACE, classes="0123456789")


def looped(targets: list[ModuleTarget], x: Tensor, wanted: Tensor, lr: float, steps: int) -> Tensor:
    """As it is often written: one picture and one network at a time, torch's Adam, parameter gradients left on."""
    out = []
    for one, label in zip(x.split(1), wanted.split(1), strict=True):
        moved = one.clone().requires_grad_(True)
        adam = torch.optim.Adam([moved], lr=lr)
        for _ in range(steps):
            adam.zero_grad()
            chance = sum(F.softmax(t.module(moved), 1) for t in targets) / len(targets)
            (-chance[0, label].log()).sum().backward()
            adam.step()
            with torch.no_grad():
                moved.clamp_(0, 1)
        out.append(moved.detach())
    return torch.cat(out)


def batched() -> None:
    """32 pictures, three networks, five steps."""
    targets = [target(0), target(1, "vgg-small"), target(2, "mlp")]
    x = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = (targets[0].logits(x).argmax(1) + 1) % 10

    def ours() -> Tensor:
        return ensemble_attack(targets, x, wanted * 0, Goal(wanted), lr=0.01, steps=5).x_adv

    def loop() -> Tensor:
        return looped(targets, x, wanted, 0.01, 5)

    gap = (ours() - loop()).abs()
    assert float(gap.mean()) < 1e-4, f"the loop differs by {float(gap.mean())}"
    print("batch against a loop over pictures:", compare({"batch": ours, "loop": loop}, repeats=5))


def stacked() -> None:
    """Gradients of eight networks of one architecture for 8 and 64 pictures."""
    targets = [target(seed) for seed in range(8)]
    for count in (8, 64):
        x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        y = targets[0].logits(x).argmax(1)
        plain, stack = Ensemble(targets), Ensemble(targets, stack=True)
        with plain.quiet(), stack.quiet():
            gap = float((plain.gradient(x, y, Goal())[0] - stack.gradient(x, y, Goal())[0]).abs().max())
            assert gap < 1e-4, f"stacked networks differ by {gap}"
            runs = {
                "stacked": lambda s=stack, a=x, b=y: s.gradient(a, b, Goal()),
                "one by one": lambda p=plain, a=x, b=y: p.gradient(a, b, Goal()),
            }
            print(f"eight networks stacked, {count} pictures:", compare(runs, repeats=7))


def least_distortion() -> None:
    """Carlini and Wagner, three searches of 30 steps."""
    if not importlib.util.find_spec("foolbox"):
        print("foolbox is not installed: no comparison of the L2 attack")
        return
    import foolbox

    one = target(0)
    x = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = one.logits(x).argmax(1)
    model = foolbox.PyTorchModel(copy.deepcopy(one.module), bounds=(0, 1))
    peer = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=30, stepsize=0.05, initial_const=0.1, abort_early=False
    )

    def ours() -> Tensor:
        return carlini_wagner(one, x, y, steps=30, searches=3, lr=0.05, first=0.1).x_adv

    def theirs() -> Tensor:
        return peer(model, x, foolbox.criteria.Misclassification(y), epsilons=None)[1]

    moved = theirs()
    found = (moved != 0).flatten(1).any(1)
    gap = float((ours() - moved)[found].abs().max()) if bool(found.any()) else float("nan")
    assert gap < 1e-3, f"foolbox differs by {gap}"
    print(f"L2 attack, 64 pictures (max difference {gap:.0e}):", compare({"ours": ours, "foolbox": theirs}, repeats=7))


def main() -> None:
    torch.set_num_threads(1)
    batched()
    stacked()
    least_distortion()


if __name__ == "__main__":
    main()
