"""Targets: typed doors, nothing touched by looking, features against a plain forward pass, layer arithmetic by brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cambrian.errors import CapabilityError, ConfigError, DataError, NonFiniteError, ShapeError
from cambrian.inspect import Space, Target, wrap
from cambrian.inspect.hooks import capture, quiet, watch
from cambrian.inspect.layers import layer_table
from cambrian.inspect.state import CompressionState


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, stride=2, dilation=2, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def make_target(**settings: object):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(40, 1, 16, 16, generator=generator), torch.randint(3, (40,), generator=generator)
    data = {"train": (x, y), "valid": (x[:9], y[:9]), "test": (x[:20], y[:20])}
    return wrap(small_net(), space=Space.image((1, 16, 16)), classes="abc", data=data, **settings)


def test_looking_leaves_every_bit_flag_and_mode_alone():
    target = make_target()
    target.module.train()
    target.module[4].eval()
    target.module[0].weight.requires_grad_(False)
    before = copy.deepcopy(target.module.state_dict())
    x = torch.rand(7, 1, 16, 16, requires_grad=True)
    target.logits(x).sum().backward()
    target.features(x, ["0", "3", "8:in"])
    target.layers()
    target.metric()
    assert x.grad is not None and target.module[8].weight.grad is None
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    assert [part.training for part in target.module] == [True] * 4 + [False] + [True] * 4
    assert [p.requires_grad for p in target.module.parameters()] == [False] + [True] * 7
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in target.module.modules())
    assert isinstance(target, Target)


def test_features_are_what_the_layer_gave_even_before_an_inplace_activation():
    net = small_net().eval()
    x = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        conv, norm = net[0](x), net[1](net[0](x))
    for grad in (False, True):
        found = capture(net, x, ["0", "1", "4:in"], grad=grad)
        assert torch.equal(found["0"], conv) and torch.equal(found["1"], norm)
        assert bool((found["1"] < 0).any()) and not bool((found["4:in"] < 0).any())
    deep = capture(net, x, ["1"], grad=True, early=False)["1"]
    assert deep.requires_grad


def test_capture_stops_early_and_removes_hooks_when_the_network_raises():
    net = small_net().eval()
    calls: list[int] = []
    net[8].register_forward_hook(lambda *_: calls.append(1))
    capture(net, torch.rand(1, 1, 16, 16), ["3"])
    assert not calls
    with pytest.raises(RuntimeError):
        capture(net, torch.rand(1, 2, 16, 16), ["3"])
    assert not net[3]._forward_hooks
    with pytest.raises(RuntimeError), quiet(net), watch(net, ["3"]):
        net(torch.rand(1, 2, 16, 16))
    assert not net[3]._forward_hooks


def test_wrong_names_suggest_the_nearest():
    net = nn.ModuleDict({"conv_one": nn.Linear(2, 2), "conv_two": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="nearest: conv_two"):
        capture(net, torch.rand(1, 2), ["conv_tow"])
    used = nn.Sequential(nn.Linear(2, 2))
    used.spare = nn.Linear(2, 2)
    used.forward = lambda x: used[0](x)
    with pytest.raises(ConfigError, match="did not run"):
        capture(used, torch.rand(1, 2), ["spare"])


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (torch.rand(2, 3, 16, 16), "must be"),
        (torch.rand(0, 1, 16, 16), "B >= 1"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "floating"),
        (torch.full((2, 1, 16, 16), float("nan")), "NaN"),
        (torch.full((2, 1, 16, 16), 1.5), "lie in"),
        ("picture", "tensor"),
    ],
)
def test_bad_inputs_are_typed_errors(x: object, word: str):
    with pytest.raises(ShapeError, match=word):
        make_target().logits(x)


def test_bad_labels_splits_and_modules_are_typed_errors():
    target, x = make_target(), torch.rand(2, 1, 16, 16)
    for y in (torch.tensor([0, 3]), torch.tensor([0, -1]), torch.tensor([0.0, 1.0]), torch.tensor([0])):
        with pytest.raises(ShapeError, match="labels"):
            target.check(x, y)
    with pytest.raises(DataError, match="no split 'dev'"):
        next(target.batches("dev"))
    with pytest.raises(DataError, match="cannot give 99"):
        next(target.batches("test", 99))
    with pytest.raises(CapabilityError):
        wrap(lambda x: x, space=Space.vector(2, 0, 1), classes="ab")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="must give logits"):
        wrap(small_net(), space=Space.image((1, 16, 16)), classes="abcd").logits(x)
    for bad in ({"kind": "smell"}, {"shape": ()}, {"lo": 1.0, "hi": 1.0}):
        with pytest.raises(ConfigError):
            Space(**{"kind": "image", "shape": (1, 2, 2), **bad})  # type: ignore[arg-type]


def test_uint8_data_is_scaled_into_the_space():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    data = {"test": (pixels, torch.tensor([0, 1, 1]))}
    target = wrap(nn.Flatten(), space=Space.image((1, 2, 2), -1, 1), classes="ab", data=data)
    x, _, _ = next(target.batches("test"))
    assert torch.allclose(x[:, 0, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))
    target.space.check(x)


def test_layer_table_counts_and_receptive_fields_match_brute_force():
    net = small_net().eval()
    with torch.no_grad():  # positive weights: every pixel of the field has an influence
        for part in net:
            if isinstance(part, nn.Conv2d):
                part.weight.abs_()
    table = {layer.name: layer for layer in layer_table(net, torch.full((1, 1, 16, 16), 0.5))}
    assert table["0"].macs == 6 * 16 * 16 * 9 and table["4"].macs == 5 * 4 * 4 * 6 * 9 and table["8"].macs == 60
    assert table["8"].field is None and table["0"].params == 60
    net[3] = nn.AvgPool2d(2)  # same arithmetic as the maximum, but every pixel counts
    for name in ("0", "4", "6"):
        x = torch.rand(1, 1, 64, 64, requires_grad=True)  # large: away from the border nothing is cut off
        out = net[: int(name) + 1](x)
        row = out.shape[2] // 2
        (grad,) = torch.autograd.grad(out[0, :, row, row].sum(), x)
        touched = grad[0, 0].abs().sum(1).nonzero().flatten()
        field = table[name].field
        centre = field.offset + row * field.stride
        assert int(touched.min()) == centre - (field.size - 1) / 2
        assert int(touched.max()) == centre + (field.size - 1) / 2


def test_finetune_is_deterministic_restores_modes_and_refuses_nonsense():
    runs = []
    for _ in range(2):
        target = make_target()
        target.module.eval()
        target.finetune(target.module, steps=4, generator=torch.Generator().manual_seed(3))
        assert not target.module.training
        runs.append(target.module.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["0.weight"], small_net().state_dict()["0.weight"])
    generator = torch.Generator()
    with pytest.raises(ConfigError, match="either steps or epochs"):
        target.finetune(target.module, generator=generator)
    with pytest.raises(NonFiniteError, match="step 0"):
        target.finetune(target.module, steps=1, generator=generator, loss=lambda m, x, y, _: m(x).sum() / 0)
    seen = make_target(finetune=lambda module, **settings: settings)
    assert seen.finetune(seen.module, steps=3) == {"steps": 3}


# -- constraints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [torch.optim.SGD, torch.optim.Adam])
def test_held_weights_stay_bit_identical_under_decay_and_old_momentum(factory: type):
    net = nn.Linear(6, 5, bias=False)
    settings = {"momentum": 0.9} if factory is torch.optim.SGD else {}
    optimiser = factory(net.parameters(), lr=0.1, weight_decay=0.1, **settings)
    state = CompressionState()

    def step() -> None:
        optimiser.zero_grad()
        net(torch.ones(2, 6)).square().sum().backward()
        state.constrain_gradients(net)
        optimiser.step()
        state.constrain_step(net, optimiser)

    for _ in range(3):
        step()  # momentum builds up before anything is held
    keep = torch.rand(5, 6) > 0.3
    state.prune(net, "weight", keep)
    frozen = (torch.rand(5, 6) > 0.5) & keep
    state.freeze(net, "weight", frozen)
    before = net.weight.detach().clone()
    for _ in range(5):
        step()
    free = keep & ~frozen
    assert torch.equal(net.weight[~free], before[~free]) and not net.weight[~keep].any()
    assert bool((net.weight[free] != before[free]).all())
    for moment in optimiser.state[net.weight].values():
        if torch.is_tensor(moment) and moment.shape == net.weight.shape:
            assert not moment[~free].any()


def test_codebook_gradients_are_summed_over_a_cluster():
    net = nn.Linear(4, 3, bias=False)
    state = CompressionState()
    entry = state.of("weight")
    entry.codebook, entry.index = torch.tensor([-0.5, 0.25]), torch.randint(2, (3, 4))
    with torch.no_grad():
        net.weight.copy_(entry.codebook[entry.index])
    values = entry.codebook.clone().requires_grad_(True)
    x = torch.rand(2, 4)
    (expected,) = torch.autograd.grad((x @ values[entry.index].T).square().sum(), values)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().sum().backward()
    state.constrain_gradients(net)
    optimiser.step()
    state.constrain_step(net, optimiser)
    assert torch.allclose(entry.codebook, torch.tensor([-0.5, 0.25]) - 0.1 * expected, atol=1e-6)
    assert torch.equal(net.weight, entry.codebook[entry.index])


def test_state_refuses_unknown_parameters_and_pruning_after_quantising():
    net, state = nn.Linear(2, 2), CompressionState()
    state.freeze(net, "weight", torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match="prune before"):
        state.prune(net, "weight", torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ShapeError):
        state.freeze(net, "weight", torch.ones(3, 2, dtype=torch.bool))
    state.of("wieght").mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="wieght"):
        state.constrain_gradients(net)
