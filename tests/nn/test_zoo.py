"""The zoo: parameter counts published elsewhere, shapes, errors, and that feature taps see what the network saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn import zoo
from cambrian.nn.zoo.inception import Inception

# networks and the counts of their papers, or of the widely used ports
COUNTS = {
    "vgg-a": (132_863_336, {}),
    "vgg-b": (133_047_848, {}),
    "vgg-c": (133_638_952, {}),
    "vgg-d": (138_357_544, {}),
    "vgg-e": (143_667_240, {}),
    "alexnet": (61_100_840, {}),
    "resnet-18-imagenet": (11_689_512, {}),
    "resnet-18": (11_173_962, {}),
    "resnet-20": (269_722 + 2_752, {}),  # the known count of the paper's net, and two 1x1 projections with batch norm
    "resnet-56": (853_018 + 2_752, {}),
    "nin": (966_986, {}),
    "lenet-5": (431_080, {}),
    "lenet-300-100": (266_610, {}),
    "lenet-1998": (61_706, {"size": 32}),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    count, arguments = COUNTS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in zoo.build(name, **arguments).parameters()) == count


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("alexnet-64", {"width": 0.1}, (3, 64, 64)),
        ("nin", {"width": 0.1}, (3, 32, 32)),
        ("resnet-18", {"width": 0.1}, (3, 32, 32)),
        ("resnet-mini", {"channels": 1, "plain": True}, (1, 28, 28)),
        ("inception-mini", {}, (3, 32, 32)),
        ("wide-elu", {"channels": 3}, (3, 32, 32)),
        ("lenet-5", {}, (1, 28, 28)),
        ("lenet-1998", {"size": 32}, (1, 32, 32)),
        ("vgg-small", {}, (1, 28, 28)),
        ("mlp", {"bn": True, "dropout": 0.1}, (1, 28, 28)),
        ("vgg-a", {"size": 32, "width": 0.05, "bn": True}, (3, 32, 32)),
        ("vgg-c", {"size": 16, "stages": 3, "width": 0.05, "head": "gap", "channels": 1}, (1, 16, 16)),
    ],
)
def test_logits_and_gradients(name: str, arguments: dict[str, object], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = zoo.build(name, classes=7, **arguments)
    logits = model(torch.rand(4, *shape))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not dead
    with pytest.raises(ShapeError, match="takes"):
        model(torch.rand(4, shape[0] + 1, *shape[1:]))


def test_five_by_five_pair_sees_as_far_and_has_more_parameters() -> None:
    """Section 2.3: two 3x3 layers have the receptive field of one 5x5 and fewer weights at equal widths."""
    stacked = zoo.VGG(plan="B", size=32, classes=5, width=0.125, head="gap")
    single = zoo.VGG(plan="B", pair="5x5", size=32, classes=5, width=0.125, head="gap")
    count = [sum(p.numel() for p in model.parameters()) for model in (stacked, single)]
    assert count[0] < count[1]
    for model in (stacked, single):
        x = torch.rand(1, 3, 48, 48, requires_grad=True)
        last = "relu1_2" if model is stacked else "relu1_1"
        nn.init.constant_(model.body.conv1_1.weight, 1.0)
        if model is stacked:
            nn.init.constant_(model.body.conv1_2.weight, 1.0)
        model.normalise = nn.Identity()
        model.features(x, last)[0, :, 24, 24].sum().backward()
        touched = x.grad[0].sum(0).nonzero()
        assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [5, 5]


def test_without_its_shortcut_a_block_is_the_plain_stack() -> None:
    torch.manual_seed(0)
    block, plain = (zoo.BasicBlock(inputs=4, outputs=4, plain=flag).eval() for flag in (False, True))
    plain.load_state_dict(block.state_dict())
    x = torch.rand(2, 4, 6, 6)
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(plain(x), inner.relu())
    torch.testing.assert_close(block(x), (inner + x).relu())


def test_an_inception_module_keeps_its_branches_in_order() -> None:
    torch.manual_seed(0)
    module = Inception(inputs=3, widths=(1, 2, 3, 2, 4, 5)).eval()
    x = torch.rand(2, 3, 8, 8)
    out = module(x)
    assert out.shape == (2, 1 + 3 + 4 + 5, 8, 8) and module.outputs == 13
    torch.testing.assert_close(out[:, 4:8], module.five(x))
    torch.testing.assert_close(out[:, 8:], module.pooled[1](nn.functional.max_pool2d(x, 3, 1, 1)))


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "vgg-small", "resnet-mini", "inception-mini", "wide-elu"])
def test_networks_are_fitted_to_the_pictures(name: str) -> None:
    model = zoo.fitted(name, classes=5, channels=3, size=24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)).eval()
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 5)
    with pytest.raises(ConfigError, match="takes no wings"):
        zoo.fitted(name, classes=5, channels=3, size=24, mean=(0.5,), std=(0.2,), wings=2)


def test_local_response_normalisation_is_krizhevskys() -> None:
    """b_i = a_i / (2 + 1e-4 * sum of five neighbours squared)^0.75, by hand."""
    lrn = zoo.VGG(plan="A-LRN", size=32, classes=2, width=0.2, head="gap").body.lrn1_1
    a = torch.rand(1, 9, 1, 1) * 100
    by_hand = [a[0, i, 0, 0] / (2 + 1e-4 * a[0, max(0, i - 2) : i + 3].square().sum()) ** 0.75 for i in range(9)]
    torch.testing.assert_close(lrn(a).flatten(), torch.stack(by_hand))


def test_feature_tap_is_what_the_network_uses() -> None:
    torch.manual_seed(0)
    model = zoo.VGG(plan="A", size=32, classes=3, width=0.1, head="gap").eval()
    x = torch.rand(2, 3, 32, 32)
    tap = model.features(x, "relu4_1")
    assert tap.shape == (2, 51, 4, 4) and (tap >= 0).all()
    before = model.features(x, "conv4_1")
    assert (before < 0).any()  # an in-place ReLU would have overwritten it
    torch.testing.assert_close(model.classifier(model.features(x, "pool5")), model(x))
    with pytest.raises(ConfigError, match="no layer 'relu9_9'"):
        model.features(x, "relu9_9")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg-a", {"size": 28}, "vanish after 5 poolings"),
        ("vgg-a", {"pair": "5x5"}, "only for plan B"),
        ("vgg-a", {"head": "conv"}, "head must be"),
        ("vgg-z", {}, "no network"),
        ("alexnet", {"size": 32}, "vanish in AlexNet"),
        ("nin", {"layout": "tiny"}, "layout must be"),
        ("lenet-5", {"size": 12}, "too small"),
        ("lenet-5", {"activation": "swash"}, "no activation"),
        ("vgg-small", {"pools": (9,)}, "pools must be"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zoo.build(name, **arguments)


def test_integer_pixels_are_refused() -> None:
    with pytest.raises(ShapeError, match="floating point"):
        zoo.SmallConv()(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


def test_networks_are_saved_and_found_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.VGG(plan="A", size=32, classes=3, width=0.05, bn=True, mean=(0.4, 0.5, 0.6), std=(0.2,)).eval()
    found = zoo.VGG.from_pretrained(model.save_pretrained(tmp_path))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(found(x), model(x))  # normalisation included
