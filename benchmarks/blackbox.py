"""One-pass Jacobian rows against the full Jacobian, and the saliency-map attack against the Adversarial Robustness Toolbox.

Run: python benchmarks/blackbox.py     (pip install adversarial-robustness-toolbox)
"""

from __future__ import annotations

import copy
import importlib.util

import torch
from torch import Tensor, nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.nn import zoo
from cambrian.systems.attack.blackbox import full_jacobian, jsma, label_gradient

CLASSES = 36


def network(channels: int, size: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build("lenet-5", classes=classes, channels=channels, size=size).eval().requires_grad_(False)


def jacobian_rows() -> None:
    """A round's augmentation directions for 16 colour pictures, 36 classes."""
    net, x = network(3, 32, CLASSES), torch.rand(16, 3, 32, 32)
    labels = net(x).argmax(1)

    def full() -> Tensor:
        return full_jacobian(net, x)[torch.arange(len(x)), labels]

    gap = float((label_gradient(net, x, labels) - full()).abs().max())
    assert gap < 1e-5, f"rows differ by {gap}"
    result = compare({"one pass": lambda: label_gradient(net, x, labels), "jacrev": full}, repeats=5)
    print(f"Jacobian rows, 16 pictures, {CLASSES} classes (max difference {gap:.0e}):", result)


def saliency() -> None:
    """Whole attacks: the same pixels in the same order."""
    if not importlib.util.find_spec("art"):
        print("adversarial-robustness-toolbox is not installed: no comparison of JSMA")
        return
    from art.attacks.evasion import SaliencyMapMethod
    from art.estimators.classification import PyTorchClassifier

    net, x = network(1, 20, 10), torch.rand(64, 1, 20, 20)
    target = wrap(net, space=Space.image((1, 20, 20)), classes="0123456789")
    wanted = (target.logits(x).argmax(1) + 1) % 10
    peer = PyTorchClassifier(
        copy.deepcopy(net), nn.CrossEntropyLoss(), (1, 20, 20), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    method = SaliencyMapMethod(peer, theta=1.0, gamma=0.1, batch_size=64, verbose=False)
    settings = {"theta": 1.0, "gamma": 0.1, "kind": "gradient"}

    def theirs() -> Tensor:
        return torch.from_numpy(method.generate(x.numpy(), wanted.numpy()))

    gap = float((jsma(target, x, wanted, **settings) - theirs()).abs().max())
    assert gap < 1e-6, f"JSMA differs by {gap}"
    result = compare({"ours": lambda: jsma(target, x, wanted, **settings), "art": theirs}, repeats=5)
    print(f"JSMA, 64 pictures of 20x20 (max difference {gap:.0e}):", result)


def main() -> None:
    torch.set_num_threads(1)
    jacobian_rows()
    saliency()


if __name__ == "__main__":
    main()
