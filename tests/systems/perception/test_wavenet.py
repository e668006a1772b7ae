from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError, MissingExtraError, ShapeError
from cambrian.nn.causal.check import assert_causal, dependence
from cambrian.systems.perception.wavenet import _compiled, _generate
from cambrian.systems.perception.wavenet._generate import Stream, choose, gumbel, nucleus
from cambrian.systems.perception.wavenet._layers import Upsample
from cambrian.systems.perception.wavenet.model import WaveNet, WaveNetRecognizer, nll

SMALL = dict(classes=16, residual=6, skip=7, blocks=2, layers=3)
KINDS = {
    "plain": {},
    "speaker": {"global_dim": 3},
    "speech": {"global_dim": 3, "local_dim": 5, "local_stride": 6},
    "contexts": {"contexts": ((3, 4, 4), (2, 5, 8)), "local_dim": 5, "local_stride": 6},
    "wide": {"kernel": 3, "inputs": "scalar", "gate": 5},
    "undilated": {"dilated": False},
}


def build(kind: str, **more: object) -> tuple[WaveNet, Tensor | None, Tensor | None]:
    torch.manual_seed(0)
    model = WaveNet(**{**SMALL, **KINDS[kind], **more}).double().eval()
    g = torch.randn(2, 3).double() if model.global_dim else None
    y = torch.randn(2, 9, 5).double() if model.local_dim else None
    return model, g, y


# -- the network -------------------------------------------------------------------------------------------------------


def test_forward_is_the_papers_equations_written_out() -> None:
    model, g, _ = build("speaker")
    idx = torch.randint(16, (2, 40))
    one_hot = F.one_hot(F.pad(idx, (model.receptive_field() - 1, 0), value=8), 16).double().transpose(1, 2)
    with torch.no_grad():
        h = F.conv1d(one_hot, model.stem.weight.permute(2, 1, 0), model.stem.bias)
        shifts = model.global_in(g).unflatten(1, (6, 2, 6))
        skips = 0.0
        for i, (layer, d) in enumerate(zip(model.layers, [1, 2, 4, 1, 2, 4], strict=True)):
            wf, wg = layer.conv.weight.permute(0, 2, 1).split(6)
            bf, bg = layer.conv.bias.split(6)
            filtered = F.conv1d(h, wf, bf, dilation=d) + shifts[:, i, 0, :, None]
            gated = F.conv1d(h, wg, bg, dilation=d) + shifts[:, i, 1, :, None]
            both = F.conv1d(torch.tanh(filtered) * torch.sigmoid(gated), layer.out.weight[:, :, None], layer.out.bias)
            skips = skips + both[:, -7:, -40:]
            h = h[..., d:] + both[:, :6] if i < 5 else h
        first, second = model.head[1], model.head[3]
        expected = F.conv1d(F.relu(F.conv1d(F.relu(skips), first.weight[..., None], first.bias)), second.weight[..., None], second.bias)  # fmt: skip
        torch.testing.assert_close(model(idx, g), expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_output_sees_its_receptive_field_and_nothing_later(kind: str) -> None:
    model, g, y = build(kind)
    g, y = (None if t is None else t[:1] for t in (g, y))
    x = torch.randint(16, (1, 40), generator=torch.Generator().manual_seed(0))
    assert_causal(lambda idx: model(idx, g, y), x)
    if kind == "contexts":
        return  # a context's reach depends on where its blocks begin; causality is what counts
    rows = dependence(lambda idx: model(idx, g, y), x)[model.receptive_field() :]
    for t, row in enumerate(rows, model.receptive_field()):
        assert int(row.nonzero().min()) == t - model.receptive_field() + 1
        assert int(row.nonzero().max()) == t


def test_a_model_that_sees_its_target_is_found_out() -> None:
    model, _, _ = build("plain")
    x = torch.randint(16, (1, 30), generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        assert_causal(lambda idx: model(F.pad(idx[:, 1:], (0, 1))), x)
    losses = {}
    for shift in (0, 1):  # pure noise of 4 bits: only who sees the target needs fewer
        torch.manual_seed(0)
        model = WaveNet(**SMALL)
        optim = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(60):
            idx = torch.randint(16, (2, 300))
            loss = nll(model(idx)[..., : 300 - shift], idx).mean()
            optim.zero_grad()
            loss.backward()
            optim.step()
        losses[shift] = loss.item()
    assert losses[0] < 1 < 3.8 < losses[1]


@pytest.mark.parametrize("kind", ["plain", "contexts"])
def test_probabilities_of_all_continuations_sum_to_one(kind: str) -> None:
    model, _, y = build(kind, classes=4)
    prime = torch.randint(4, (1, 5))
    endings = torch.tensor(list(itertools.product(range(4), repeat=3)))
    idx = torch.cat((prime.expand(64, -1), endings), 1)
    with torch.no_grad():
        bits = model.bits(idx, None, None if y is None else y[:1].expand(64, -1, -1), padded=True)[:, -3:]
    assert float((2 ** -bits.sum(1)).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_crop_gives_the_logits_of_the_whole_clip(kind: str) -> None:
    model, g, y = build(kind)
    idx = torch.randint(16, (2, 54 if y is not None else 60))
    field = model.receptive_field()
    idx = torch.cat((torch.randint(16, (2, field)), idx), 1) if kind == "contexts" else idx
    with torch.no_grad():
        whole = model(idx, g, y)
        torch.testing.assert_close(model(idx, g, y, valid=True), whole[..., field - 1 :])
        crop = model(idx[:, 8:], g, y, start=8, valid=True)
        torch.testing.assert_close(crop, whole[..., 8 + field - 1 :])
        starts = torch.tensor([8, 16])  # context stacks need equal places within their blocks
        rows = torch.stack([idx[i, s : s + field + 6] for i, s in enumerate(starts)])
        each = model(rows, g, y, start=starts, valid=True)
        for i, s in enumerate(starts.tolist()):
            torch.testing.assert_close(each[i], whole[i, :, s + field - 1 : s + field + 6])
        torch.testing.assert_close(model.bits(idx, g, y), nll(whole[..., field - 1 : -1], idx))


def test_frames_reach_the_samples_they_are_about() -> None:
    model, g, y = build("speech")
    idx = torch.randint(16, (2, 54))
    with torch.no_grad():
        before = model(idx, g, y)
        for frame in range(9):
            other = y.clone()
            other[:, frame] += 1
            changed = (model(idx, g, other) != before).any(1).any(0).nonzero()[
                :, 0
            ] + 1  # times of the samples predicted
            # linear interpolation reaches half a frame beyond the frame, 6 frame .. 6 frame + 5, on both sides
            assert int(changed.min()) == max(1, 6 * frame - 3)
            assert int(changed.max()) >= min(54, 6 * frame + 8)


def test_upsampling_starts_as_linear_interpolation_between_the_frames_middles() -> None:
    for stride in (1, 4, 5):
        layer = Upsample(inputs=1, outputs=1, stride=stride).double()
        with torch.no_grad():
            layer.conv.weight /= layer.conv.weight[0, 0, ::stride].sum()
            y = torch.randn(1, 7, 1).double()
            at = (torch.arange(7 * stride) + 0.5) / stride - 0.5
            expected = np.interp(at.numpy(), np.arange(7), y[0, :, 0].numpy())
            torch.testing.assert_close(layer(y)[0, :, 0], torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_every_parameter_learns() -> None:
    for kind in KINDS:
        model, g, y = build(kind)
        model.bits(torch.randint(16, (2, 90)), g, y).mean().backward()
        for name, parameter in model.named_parameters():
            assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), f"{kind}: {name}"
    recogniser = WaveNetRecognizer(phones=5, frame=6, **SMALL)
    samples, frames = recogniser(torch.randint(16, (2, 60)))
    assert samples.shape == (2, 16, 60) and frames.shape == (2, 5, 10)
    (samples.logsumexp(1).mean() + frames.logsumexp(1).mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in recogniser.parameters())


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("primed", [0, 7, 60])
def test_all_ways_of_generating_give_the_same_samples(kind: str, primed: int) -> None:
    model, g, y = build(kind)
    prime = torch.randint(16, (2, primed), generator=torch.Generator().manual_seed(5)) if primed else None
    made = [
        model.generate(40, g, y, prime, 0.8, top_p=0.9, batch=2, path=path, generator=torch.Generator().manual_seed(1))
        for path in ("naive", "cached", "compiled")
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert made[0].shape == (2, 40) and len(made[0].unique()) > 8


@pytest.mark.parametrize("kind", list(KINDS))
def test_cached_logits_are_those_of_the_full_forward_at_every_step(kind: str) -> None:
    model, g, y = build(kind)
    prime = torch.randint(16, (2, 3))
    single = [None if t is None else t.float() for t in (g, y)]
    with torch.no_grad():
        stream = Stream(model.float(), *single, prime, path="cached")
        seen: list[Tensor] = []
        compute = stream.machine.logits
        stream.machine.logits = lambda *a: seen.append(compute(*a)) or seen[-1]
        made = torch.cat([stream.advance(m, None) for m in (1, 20, 19)], 1)
        full = model(torch.cat((prime, made), 1), *single)[:, :, 2:-1]
        torch.testing.assert_close(torch.stack(seen, 2), full, atol=1e-4, rtol=0)

        stream = Stream(model.double(), g, y, prime, path="compiled")
        if kind != "contexts":  # with contexts a chunk ends where a block does
            made, logits = stream.machine._run(40, None, 0.0, 1.0, keep=True)
            full = model(torch.cat((prime, made), 1), g, y)[:, :, 2:-1]
            torch.testing.assert_close(logits.permute(1, 2, 0), full, atol=1e-10, rtol=0)


def test_the_compiled_loop_also_runs_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, g, y = build("speech")
    expected = model.generate(12, g, y, top_p=0.8, path="cached", generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(_compiled, "_kernel", lambda: _compiled._run)
    found = model.generate(12, g, y, top_p=0.8, path="compiled", generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)


def test_silence_stands_before_a_clip_that_begins_from_nothing() -> None:
    model, _, _ = build("plain")
    silence = torch.full((1, model.receptive_field()), 8)
    first = model.generate(30, temperature=0.0, path="cached")
    assert torch.equal(first, model.generate(30, prime=silence, temperature=0.0, path="cached"))
    with torch.no_grad():
        assert int(first[0, 0]) == int(model(silence)[0, :, -1].argmax())


@pytest.mark.parametrize("path", ["cached", "compiled"])
def test_pieces_are_the_whole_and_come_as_they_are_made(path: str) -> None:
    model, g, y = build("speech")
    whole = model.generate(300, g, y, path=path, generator=torch.Generator().manual_seed(2))
    stream = model.generate(300, g, y, path=path, stream=True, chunk=77, generator=torch.Generator().manual_seed(2))
    first = next(stream)
    assert first.shape == (2, 77)
    pieces = [first, *stream]
    assert max(p.shape[1] for p in pieces) == 77 and torch.equal(torch.cat(pieces, 1), whole)
    some = model.generate(100, g, y, path=path, generator=torch.Generator().manual_seed(2))
    assert torch.equal(some, whole[:, :100])


def test_without_numba_the_queues_take_over_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = build("plain")
    with_it = model.generate(20, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(_generate, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="cambrian\\[fast\\]"):
        without = model.generate(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_it, without)
    with pytest.raises(MissingExtraError, match="fast"):
        model.generate(20, path="compiled")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(5, path="cached")


def test_draws_have_the_softmax_frequencies() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]]).double()
    noise = gumbel(20_000, 1, 4, torch.Generator().manual_seed(0))
    for heat, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        drawn = torch.stack([choose(logits, row, heat, top_p) for row in noise]).flatten()
        expected = torch.softmax(nucleus(logits / heat, top_p), -1)[0]
        found = torch.bincount(drawn, minlength=4) / 20_000
        torch.testing.assert_close(found.double(), expected, atol=0.012, rtol=0)
    assert int(choose(logits, None, 0.0, 1.0)) == 0


def test_the_nucleus_is_the_smallest_set_that_holds_enough() -> None:
    logits = torch.log(torch.tensor([0.4, 0.1, 0.3, 0.2]))
    kept = {p: (nucleus(logits, p) > -torch.inf).tolist() for p in (0.1, 0.4, 0.6, 0.75, 1.0)}
    assert kept[0.1] == [True, False, False, False]
    assert kept[0.6] == [True, False, True, False]
    assert kept[0.75] == [True, False, True, True]
    assert kept[1.0] == [True] * 4


# -- the public door ---------------------------------------------------------------------------------------------------


def test_bad_inputs_are_typed_errors() -> None:
    model, g, y = build("speech")
    idx = torch.randint(16, (2, 30))
    for bad in (
        (idx.float(), g, y), (idx[0], g, y), (idx + 16, g, y), (idx - 16, g, y), (idx, None, y), (idx, g, None),
        (idx, g[:1], y), (idx, g, y[..., :2]), (idx, g, y.long()), (idx, g * float("nan"), y), (idx, g, y[:, :0]),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            model(*bad)
    with pytest.raises(ShapeError, match="receptive field"):
        model(idx[:, :5], g, y, valid=True)
    for bad in (
        dict(temperature=-1.0),
        dict(top_p=0.0),
        dict(path="fast"),
        dict(chunk=0),
        dict(temperature=float("nan")),
    ):
        with pytest.raises(ConfigError):
            model.generate(3, g, y, **bad)
    with pytest.raises(ConfigError):
        model.generate(-1, g, y)
    with pytest.raises(ShapeError):
        model.generate(3, g, y, prime=torch.tensor([1, 2]))
    with pytest.raises(ConfigError):
        WaveNet(inputs="words")
    contexts, _, y = build("contexts")
    with pytest.raises(ShapeError, match="same place"):
        contexts(torch.randint(16, (2, 90)), None, y, start=torch.tensor([0, 1]), valid=True)
    with pytest.raises(ShapeError):
        WaveNetRecognizer(phones=3, frame=40, **SMALL)(torch.randint(16, (1, 20)))


def test_weights_round_trip(tmp_path: Path) -> None:
    for kind in ("contexts", "wide"):
        model, g, y = build(kind)
        model.float().save_pretrained(tmp_path / kind)
        again = WaveNet.from_pretrained(tmp_path / kind)
        idx = torch.randint(16, (2, 20))
        given = [None if t is None else t.float() for t in (g, y)]
        with torch.no_grad():
            assert torch.equal(model(idx, *given), again(idx, *given))
