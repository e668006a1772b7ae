import subprocess
import sys
import zlib

import pytest
import torch
from PIL import Image

from cambrian.data.source import Source
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, DataError, ShapeError
from cambrian.systems.likelihood.pixelcnn_pp import PixelCNNpp, _codec
from cambrian.systems.likelihood.pixelcnn_pp._cached import PixelCache
from cambrian.systems.likelihood.pixelcnn_pp.recipe import Config, PixelCNNppRecipe

NETS = {
    "flat": dict(stages=1, blocks=2),
    "deep": dict(stages=3, blocks=1),
    "cut": dict(stages=2, blocks=1, shortcuts=False),
    "grey-class": dict(stages=2, blocks=1, channels=1, cond_dim=3),
    "softmax": dict(stages=1, blocks=1, head="softmax"),
    "shuffled": dict(stages=1, blocks=1, shuffled=True),
}


def picture(n, channels, size=8, seed=0):
    return torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def net(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = PixelCNNpp(filters=6, mixtures=3, **NETS[name]).to(dtype)
    h = torch.randn(24, 3, dtype=dtype) if model.cond_dim else None
    model.initialise(picture(24, model.channels), h)
    return model.eval(), h


@pytest.mark.parametrize("name", NETS)
def test_no_pixel_sees_itself_or_what_follows(name):
    model, h = net(name)
    x = model.scaled(picture(1, model.channels)).requires_grad_()
    out = model.network(x, None if h is None else h[:1])
    for i, j in ((0, 0), (0, 5), (3, 0), (4, 3), (7, 7), (2, 6)):
        (g,) = torch.autograd.grad(out[0, :, i, j].square().sum(), x, retain_graph=True)
        seen = (g[0].abs().sum(0) > 0).flatten()
        assert not seen[i * 8 + j :].any(), (i, j)
        if name in ("flat", "deep") and i * 8 + j:
            assert seen[i * 8 + j - 1] or j == 0


def test_dropping_a_shift_leaks():
    model, _ = net("flat")
    x = model.scaled(picture(1, 3)).requires_grad_()
    padded = torch.cat((x, torch.ones_like(x[:, :1])), 1)
    l = model.l_left(padded)  # not shifted to the right
    (g,) = torch.autograd.grad(l[0, :, 4, 4].square().sum(), x)
    assert g[0, :, 4, 4].abs().sum() > 0


@pytest.mark.parametrize("name", NETS)
def test_the_cache_computes_what_the_network_does_and_samples_alike(name):
    model, h = net(name)
    image = picture(3, model.channels, seed=1)
    with torch.no_grad():
        x, h = model.scaled(image), None if h is None else h[:3]
        full, cache = model(x, h), PixelCache(model, 3, 8, 8, h)
        for i in range(8):
            for j in range(8):
                assert torch.allclose(cache.outputs(i, j), full[:, :, i, j], atol=1e-11), (i, j)
                cache.put(i, j, x[:, :, i, j])
    for seed in (1, 2):
        made = model.sample(3, (8, 8), h, seed=seed)
        assert torch.equal(made, model.sample(3, (8, 8), h, seed=seed, cached=False)) and made.float().std() > 5


def test_single_precision_samples_alike_too():
    model, _ = net("deep", torch.float32)
    same = [
        torch.equal(model.sample(2, (8, 8), seed=s), model.sample(2, (8, 8), seed=s, cached=False)) for s in range(3)
    ]
    assert all(same)


def test_log_prob_is_a_sum_over_pixels_of_what_the_head_says():
    model, _ = net("flat")
    image = picture(2, 3)
    x, total = model.scaled(image), torch.zeros(2, dtype=torch.float64)
    out = model(x)
    for i in range(8):
        for j in range(8):
            total += model.head.log_prob(out[:, :, i, j], x[:, :, i, j])
    assert torch.allclose(model.log_prob(image), total)


@pytest.mark.parametrize("channels, head", [(1, "dmol"), (1, "softmax")])
def test_two_by_one_pictures_sum_to_one(channels, head):
    torch.manual_seed(0)
    model = PixelCNNpp(channels=channels, filters=4, blocks=1, mixtures=2, head=head).double().eval()
    levels = torch.arange(256, dtype=torch.uint8)
    first = levels[::32].repeat_interleave(256)  # eight values of the first pixel, all of the second
    image = torch.stack((first, levels.repeat(8)), 1).view(-1, 1, 1, 2)
    with torch.no_grad():
        joint = model.log_prob(image).view(8, 256).exp().sum(1)
        x = model.scaled(image[::256])
        alone = model.head.log_prob(model(x).movedim(1, -1), x.movedim(1, -1))[:, 0, 0].exp()
    assert torch.allclose(joint, alone, atol=1e-8)


def test_completion_keeps_what_is_known():
    model, _ = net("flat")
    image, mask = picture(2, 3), torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    made = model.complete(image, mask, seed=3)
    assert torch.equal(made[:, :, :4], image[:, :, :4]) and not torch.equal(made[:, :, 4:], image[:, :, 4:])


@pytest.mark.parametrize("shape", [(8, 8), (13, 21), (1, 5)])
@pytest.mark.parametrize("name", ["flat", "shuffled", "softmax"])
def test_files_decode_exactly(name, shape):
    model, _ = net(name, torch.float32)
    image = picture(1, 3, 24)[0, :, : shape[0], : shape[1]]
    coded = _codec.encode(model, image, 8)
    assert torch.equal(model.decode(coded.data), image)
    assert 8 * coded.payload <= 1.01 * coded.bits + 80
    tiles = _codec._cut(image, 8)
    assert coded.bits == pytest.approx(-float(model.double().log_prob(tiles).sum()) / 0.6931471805599453, rel=1e-6)


def test_a_large_file_costs_what_the_network_says():
    model, _ = net("flat", torch.float32)
    image = picture(1, 3, 48)[0]
    coded = _codec.encode(model, image, 8)
    assert abs(8 * coded.payload / coded.bits - 1) < 0.01


def test_another_process_decodes(tmp_path):
    model, _ = net("flat", torch.float32)
    image = picture(1, 3, 20)[0]
    model.save_pretrained(tmp_path / "net")
    (tmp_path / "x.cmbp").write_bytes(model.encode(image, 8))
    torch.save(image, tmp_path / "x.pt")
    code = (
        "import sys, torch; from pathlib import Path; from cambrian.systems.likelihood.pixelcnn_pp import PixelCNNpp; p = Path(sys.argv[1]);"
        "torch.set_num_threads(2); m = PixelCNNpp.from_pretrained(p / 'net');"
        "assert torch.equal(m.decode((p / 'x.cmbp').read_bytes()), torch.load(p / 'x.pt'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_damaged_files_are_refused():
    model, _ = net("flat", torch.float32)
    data = model.encode(picture(1, 3)[0], 8)
    other, _ = net("deep", torch.float32)
    with pytest.raises(CheckpointError, match="another network"):
        other.decode(data)
    for bad in (b"", data[:10], b"PNG!" + data[4:], data[:-9], data[:8] + b"\x07" + data[9:]):
        with pytest.raises(DataError):
            model.decode(bad)
    for at in (12, 15, len(data) - 12, len(data) - 40):
        altered = bytearray(data)
        altered[at] ^= 0x21
        with pytest.raises(DataError, match="damaged"):
            model.decode(bytes(altered))


def test_a_hostile_header_asks_for_nothing():
    model, _ = net("flat", torch.float32)
    for height, width, tile in ((65535, 65535, 8), (8, 8, 65528), (0, 8, 8)):
        inner = _codec.HEADER.pack(1, 3, _codec.weights_hash(model), height, width, tile, 0) + b"symbols"
        with pytest.raises(DataError, match="claims"):
            model.decode(_codec.OUTER.pack(b"CMBP", zlib.crc32(inner)) + inner)


def test_bad_pictures():
    model, _ = net("deep")
    with pytest.raises(ShapeError, match="multiples of 4"):
        model.log_prob(picture(1, 3, 6))
    with pytest.raises(ShapeError, match="uint8"):
        model.log_prob(torch.rand(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="8-bit grid"):
        model(torch.rand(1, 3, 8, 8).double())
    with pytest.raises(ShapeError, match=r"\[B, 3, H, W\]"):
        model.log_prob(picture(1, 1))
    with pytest.raises(ShapeError, match="conditioning"):
        model.log_prob(picture(1, 3), torch.zeros(1, 3))
    with pytest.raises(ShapeError, match="mask"):
        model.complete(picture(1, 3), torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ConfigError):
        PixelCNNpp(head="gauss")
    with pytest.raises(ConfigError, match="photos, glyphs"):
        PixelCNNppRecipe.load_data(Config(), Source("world", "ring8"))


@pytest.fixture(scope="module", params=["photos", "glyphs"])
def trained(request):
    config = Config(steps=3, filters=6, blocks=1, crops=100, tested=20, conditional=request.param == "glyphs", batch=4)
    recipe = PixelCNNppRecipe(config, data=PixelCNNppRecipe.load_data(config, Source("world", request.param)))
    for i in range(3):
        recipe.iteration = i
        recipe.step(recipe.data.train[torch.arange(4)])
    return recipe


def test_actions_and_files(trained, tmp_path):
    with torch.no_grad():
        figures = trained.evaluate("test", torch.Generator())
    assert 0 < figures["bits_per_dim"] < 12 and 0 < figures["histogram_bits"] < 9
    for sample in (
        trained.sample(2, torch.Generator()),
        trained.complete(n=2, times=1),
        trained.histogram(n=2),
        trained.field(),
    ):
        assert sample.save(tmp_path, "s")[0].stat().st_size > 100
    path = tmp_path / "in.png"
    Image.fromarray(picture(1, 3, 19)[0].permute(1, 2, 0).numpy()).save(path)
    if trained.config.conditional:
        with pytest.raises(CapabilityError):
            trained.encode(path)
        return
    table = dict(trained.encode(path).rows)
    assert table["decodes exactly"] and table["payload / network"] < 1.02
    shown = trained.decode(tmp_path / "in.cmbp").items["picture"].tensor
    assert torch.equal((shown[0] * 255).round().to(torch.uint8), picture(1, 3, 19)[0])
    with pytest.raises(DataError, match="cannot be read"):
        trained.decode(tmp_path / "none")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        trained.encode(tmp_path / "bad.png")


def test_the_average_is_warmed_up(trained):
    new, old = torch.ones(2), torch.zeros(2)
    assert trained._average(old, new, 0)[0] == pytest.approx(0.9)
    assert trained._average(old, new, 10**6)[0] == pytest.approx(0.0005, rel=1e-2)
