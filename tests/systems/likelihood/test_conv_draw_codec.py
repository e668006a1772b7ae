"""The files of conv-draw: exact in another process and with other threads, at the cost of the bound, and refused when
they cannot be decoded.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cambrian.codec.baselines import mean_psnr
from cambrian.engine.recipe import Recipe
from cambrian.errors import CambrianError, CheckpointError, ConfigError, DataError, ShapeError
from cambrian.systems.likelihood.conv_draw import ConvDRAW, _codec, decode, encode, read_header
from cambrian.systems.likelihood.conv_draw.recipe import Config, ConvDRAWRecipe
from cambrian.worlds import figures

DECODER = """
import hashlib, pathlib, sys, torch
from cambrian.systems.likelihood.conv_draw import ConvDRAW, encode
model = ConvDRAW.from_pretrained(sys.argv[1])
print(torch.get_num_threads())
for name in sys.argv[2:]:
    picture = model.decode(pathlib.Path(name).read_bytes())
    print(hashlib.sha256(picture.numpy().tobytes()).hexdigest())
    mode = "lossless" if "lossless" in name else "lossy"
    print(hashlib.sha256(encode(model, picture, mode=mode).data).hexdigest())
"""


@pytest.fixture(scope="module")
def trained() -> ConvDRAW:
    """A small model that has learnt a little: its posteriors and priors differ, so that a fault would show."""
    run: Recipe = ConvDRAWRecipe(
        Config(steps=60, batch=16, hidden=16, latent=4, draws=3, lr=6e-3, beta=20.0, beta_start=20.0),
        data=figures.load(train=960, valid=1, test=1),
    )
    assert isinstance(run, ConvDRAWRecipe)
    for run.iteration in range(60):
        run.step(run.data.train[torch.arange(16 * run.iteration, 16 * run.iteration + 16)])
    return run.model.eval()


@pytest.fixture(scope="module")
def shown() -> Tensor:
    return figures.load(train=1, valid=1, test=64, seed=5).test[torch.arange(64)]["image"]


def test_lossless_costs_the_bound(trained: ConvDRAW, shown: Tensor) -> None:
    coded = encode(trained, shown, mode="lossless")
    assert torch.equal(decode(trained, coded.data), shown)
    with torch.no_grad():
        nll, kl, _ = trained.exact().elbo(shown, torch.Generator().manual_seed(0))
    bound = float(nll.sum() + kl.sum()) / math.log(2)
    latents = sum(math.prod(trained.slot_shape(slot, 16, 16)) for slot in range(trained.slots))
    assert coded.initial < 1.2 * 12 * latents + 31 * 8
    assert 8 * coded.payload <= 1.02 * bound + coded.initial
    assert 8 * coded.payload >= 0.98 * bound
    assert float(kl.sum()) / math.log(2) > 64 * 2  # there is something to get back


def test_each_lossy_stream_decodes_to_the_encoders_picture(trained: ConvDRAW, shown: Tensor) -> None:
    sizes, quality = [], []
    for options in ({"steps": 0}, {"steps": 1}, {"steps": 3}, {"steps": 1, "mode": "lossy-sample"}):
        coded = encode(trained, shown, **options)
        assert torch.equal(decode(trained, coded.data), coded.picture)
        sizes.append(len(coded.data))
        quality.append(mean_psnr(shown.numpy(), coded.picture.numpy()))
    assert sizes[0] < 40
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[3] == sizes[1]
    assert quality[0] < quality[1] < quality[2]
    whole = encode(trained, shown)
    for rate in (0.7 * whole.bits_per_dim, 0.25 * whole.bits_per_dim):
        coded = encode(trained, shown, bits_per_dim=rate)
        assert 0 < coded.blocks < whole.blocks
        assert coded.bits_per_dim <= rate
        assert torch.equal(decode(trained, coded.data), coded.picture)


def test_another_process_with_other_threads_decodes_and_encodes_the_same_bytes(
    trained: ConvDRAW, shown: Tensor, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path / "model")
    expected = []
    for mode in ("lossless", "lossy"):
        coded = encode(trained, shown[:3], mode=mode)
        (tmp_path / f"{mode}.cmb").write_bytes(coded.data)
        again = encode(trained, coded.picture, mode=mode)
        expected += [hashlib.sha256(part).hexdigest() for part in (coded.picture.numpy().tobytes(), again.data)]
    for threads in ("1", "2"):
        command = [sys.executable, "-c", DECODER, "model", "lossless.cmb", "lossy.cmb"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )  # fmt: skip
        assert done.stdout.split() == [threads, *expected]


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 5, 7), (1, 3, 33, 18), (7, 3, 16, 16)])
def test_pictures_of_any_size_and_number(
    trained: ConvDRAW, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_codec, "TOGETHER", 4)  # several chunks, the last one not full
    monkeypatch.setattr(_codec, "lossless_chunk", lambda count: (3, 8))
    image = torch.randint(60, 200, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for mode in _codec.MODES:
        coded = encode(trained, image, mode=mode)
        found = decode(trained, coded.data)
        assert found.shape == image.shape
        assert torch.equal(found, image if mode == "lossless" else coded.picture)
    header, _ = read_header(coded.data)
    assert (header.count, header.height, header.width) == (shape[0], *shape[2:])


@pytest.mark.parametrize("options", [{"layers": 2}, {"likelihood": "bernoulli", "channels": 1}, {"prior": "standard"}])
def test_other_models_code_too(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = ConvDRAW(size=8, hidden=4, latent=2, steps=2, **options).eval()  # type: ignore[arg-type]
    image = figures.load(size=8, train=3, valid=1, test=1).train[torch.arange(3)]["image"][:, : model.channels]
    if model.likelihood == "bernoulli":
        with pytest.raises(ShapeError, match="0 and 255"):
            encode(model, image, mode="lossless")
        image = (image > 127).to(torch.uint8) * 255
    for mode in _codec.MODES:
        coded = encode(model, image, mode=mode)
        assert torch.equal(decode(model, coded.data), coded.picture)
    assert torch.equal(model.decode(model.encode(image[0], mode="lossless")), image[:1])


def test_tiles_come_apart_and_together() -> None:
    image = torch.randint(0, 256, (2, 3, 21, 40), dtype=torch.uint8)
    tiles = _codec.to_tiles(image, 16)
    assert tiles.shape == (2 * 2 * 3, 3, 16, 16)
    assert torch.equal(tiles[1], image[0, :, :16, 16:32])
    assert torch.equal(_codec.from_tiles(tiles, image.shape), image)


def test_damage_is_never_silent(trained: ConvDRAW, shown: Tensor) -> None:
    """Every truncation and many flipped bits of both kinds of stream are errors, typed."""
    rng = np.random.default_rng(0)
    for mode in ("lossless", "lossy"):
        good = encode(trained, shown[:2], mode=mode).data
        bad = [good[: int(n)] for n in rng.integers(0, len(good), 12)] + [b"", good + b"\0", good + b"x"]
        for at in [*range(16), *rng.integers(16, len(good), 12)]:
            bad.append(good[:at] + bytes([good[at] ^ 1 << int(rng.integers(8))]) + good[at + 1 :])
        for data in bad:
            with pytest.raises(CambrianError):
                decode(trained, data)


def test_another_models_stream_is_refused(trained: ConvDRAW, shown: Tensor) -> None:
    coded = encode(trained, shown[:1])
    other = ConvDRAW(hidden=16, latent=4, steps=3, scale=4)
    with pytest.raises(CheckpointError, match="the run that encoded it"):
        decode(other, coded.data)
    with pytest.raises(CheckpointError, match=r"torch 1\.13"):
        decode(trained, coded.data[:10] + struct.pack("BB", 1, 13) + coded.data[12:])
    with pytest.raises(DataError, match="not a coded picture"):
        decode(trained, b"CMBR" + coded.data[4:])
    huge = coded.data[: _codec.FIXED.size] + b"\xff\xff\xff\xff\x0f" * 3 + b"\0\0"
    with pytest.raises(DataError, match="damaged"):
        decode(trained, huge)


def test_bad_requests_are_typed_errors(trained: ConvDRAW, shown: Tensor) -> None:
    for image in (shown.float(), shown[:, :1], shown[:0], shown[0, 0]):
        with pytest.raises(ShapeError):
            encode(trained, image)
    for options in ({"mode": "best"}, {"steps": 4}, {"bits_per_dim": 0.0}, {"mode": "lossless", "steps": 1}):
        with pytest.raises(ConfigError):
            encode(trained, shown[:1], **options)  # type: ignore[arg-type]


def test_the_plan_is_a_partition_in_the_order_of_drawing(trained: ConvDRAW) -> None:
    plan = _codec.plan(trained)
    assert [b.slot for b in plan] == sorted(b.slot for b in plan)
    for slot in range(trained.slots):
        where = np.concatenate([b.where for b in plan if b.slot == slot])
        assert sorted(where.tolist()) == list(range(math.prod(trained.slot_shape(slot, 16, 16))))
    assert sum(b.expected for b in plan) == pytest.approx(float(trained.cost.double().sum()), rel=1e-6)
