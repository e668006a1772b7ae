"""The pair layer with its first layer taken apart, against building every [o_i; o_j; q]: forward and backward of one update."""

from __future__ import annotations

import torch

from cambrian.inspect.bench import compare
from cambrian.nn.pairs import PairSum, concatenated_sum

SIZES = {
    "laptop claim": (32, 6, 8, (64, 64)),
    "one question": (32, 6, 1, (64, 64)),
    "paper width of g": (4, 25, 8, (256,) * 4),
}


def main() -> None:
    """Check equality of sums and gradients, then time both."""
    for name, (scenes, objects, questions, widths) in SIZES.items():
        torch.manual_seed(0)
        layer = PairSum(obj_dim=10, q_dim=11, widths=widths)
        seen, asked = torch.randn(scenes, objects, 10), torch.randn(scenes, questions, 11)
        parameters = list(layer.parameters())

        def ours(layer=layer, seen=seen, asked=asked, parameters=parameters):
            out = layer(seen, asked)
            return out.detach(), torch.autograd.grad(out.sum(), parameters)

        def reference(layer=layer, seen=seen, asked=asked, parameters=parameters):
            out = concatenated_sum([layer.first, *layer.rest], seen, asked)
            return out.detach(), torch.autograd.grad(out.sum(), parameters)

        (a, grads), (b, others) = ours(), reference()
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
        assert all((x - y).abs().max() <= 1e-4 * y.abs().max() for x, y in zip(grads, others, strict=True))
        print(f"{name}: {compare({'factored': ours, 'concatenated': reference}, threads=1)}")


if __name__ == "__main__":
    main()
