"""VAE/GAN: each player gets the gradient of its own loss alone, the terms are what they say, and edits move codes."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Gallery, Images, Plot
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.latent import DiagGaussian
from cambrian.systems.gans.vae_gan import VAEGAN, Config, Terms, VAEGANRecipe, gaussian_error, solved, throttle
from cambrian.systems.gans.vae_gan._judging import judged_edits, names_of
from cambrian.systems.gans.vae_gan.model import mean_difference

TINY = Config(steps=3, batch=8, base=4, latent=6, hidden=(12, 12), samples=20, size=16, texture=False, gamma=0.1)


def _data(count: int = 40, seed: int = 0, attributes: int = 3) -> Data:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)
    fields = {"image": image, "label": torch.zeros(count, dtype=torch.int64)}
    fields["attributes"] = (torch.rand(count, attributes, generator=draw) < 0.5).float()
    split = TensorSplit(**fields)
    info = {"shape": (3, 8, 8), "classes": [], "scale": 255, "attributes": list("abc"[:attributes])}
    return Data("noise", "images", split, split, split, info)


def _recipe(data: Data | None = None, seed: int = 0, **settings: object) -> VAEGANRecipe:
    return VAEGANRecipe(dataclasses.replace(TINY, **settings), data=data or _data(), seed=seed)


def _run(recipe: VAEGANRecipe) -> list[dict[str, float]]:
    loop = Loop(recipe)
    return [loop.advance() for _ in range(recipe.config.steps)]


# -- oracles ---------------------------------------------------------------------------------------------------------


def test_gaussian_error_is_minus_the_log_density_without_its_constant() -> None:
    x, other = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    density = DiagGaussian(other.flatten(1), torch.zeros(5, 48)).log_prob(x.flatten(1))
    constant = 24 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(gaussian_error(x, other), -density.mean() - constant, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gaussian_error(x, other, 0.5), 4 * gaussian_error(x, other))


@pytest.mark.parametrize("kind", ["ns", "minimax"])
@pytest.mark.parametrize("joint", [True, False])
def test_each_player_gets_the_gradient_of_its_own_loss_alone(kind: str, joint: bool) -> None:
    recipe = _recipe(loss=kind, joint_norm=joint)
    x = recipe.real(recipe.data.split("train")[torch.arange(8)])
    start = recipe.rng.get_state()
    players = {player.name: player for player in recipe.players(x, {})}
    assert list(players) == ["encoder", "generator", "discriminator"]
    for name, player in players.items():
        recipe.rng.set_state(start)
        twin = copy.deepcopy(recipe.model)
        z_p = twin.prior(8, recipe.rng)
        q = twin.encode(x)
        again, sampled = twin.generate(torch.cat((q.sample(recipe.rng), z_p))).chunk(2)
        sources = (0,) if joint else (0, 1, 1)
        features = twin.discriminator.features(torch.cat((x, again, sampled)), sources)
        real, *fake = (twin.discriminator.head(part).sigmoid() for part in features.chunk(3))
        there, back, _ = features.chunk(3)
        error = 0.5 * (there - back).square().sum(1).mean()
        fake = torch.cat(fake)
        if name == "encoder":
            mean, variance = q.mean, q.logvar.exp()
            loss = 0.5 * (variance + mean**2 - 1 - variance.log()).sum(1).mean() + error
        elif name == "generator":
            loss = 0.1 * error + ((1 - fake).log().mean() if kind == "minimax" else -fake.log().mean())
        else:
            loss = -real.log().mean() - (1 - fake).log().mean()
        own = torch.autograd.grad(loss, list(getattr(twin, name).parameters()))
        mine = list(getattr(recipe.model, name).parameters())
        told, _ = player.loss(0)
        torch.testing.assert_close(told.detach(), loss.detach(), atol=1e-4, rtol=1e-5)
        told.backward(inputs=mine)
        for ours, theirs in zip(mine, own, strict=True):
            torch.testing.assert_close(ours.grad, theirs, atol=1e-6, rtol=1e-4)


def test_solved_hands_out_the_gradients_it_was_given() -> None:
    w = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    loss = w.square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    with torch.no_grad():
        w.mul_(10)  # the parameter may have moved since
    told = solved(loss, [w], [gradient])
    (2 * told).backward(inputs=[w])
    assert float(told.detach()) == 13.0 and w.grad.tolist() == [8.0, 12.0]


def test_the_sabotage_trains_the_encoder_and_decoder_of_a_pixel_vae() -> None:
    plain, broken = _recipe(variant="vae", steps=2), _recipe(feature_loss="pixel", gan_weight=0.0, steps=2)
    x = plain.real(plain.data.split("train")[torch.arange(8)])
    z = torch.randn(8, 6)
    for twin in (plain, broken):
        twin.model.eval()  # batch statistics of the decoder would mix samples of the prior in
    noise = [torch.Generator().manual_seed(3) for _ in range(2)]
    a = plain.model.terms(x, z, noise[0])
    b = broken.model.terms(x, z, noise[1], pixel=True)
    torch.testing.assert_close(a.encoder(), b.encoder())
    torch.testing.assert_close(0.1 * a.decoder(1.0, 1.0), b.decoder(0.1, 0.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [((0.7, 0.7), (True, True)), ((0.1, 0.7), (True, False)), ((0.7, 1.3), (False, True)), ((0.1, 1.3), (True, True))],
)
def test_the_throttle_rests_whoever_is_ahead(costs: tuple[float, float], expected: tuple[bool, bool]) -> None:
    assert throttle(*costs, equilibrium=0.68, margin=0.4) == expected


def test_attribute_vectors_are_differences_of_means() -> None:
    codes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    traits = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    expected = torch.tensor([[2.0, -5.0], [0.5, 2.5]])
    torch.testing.assert_close(mean_difference(codes, traits), expected)


def test_edits_are_judged_by_what_flips_and_what_else_changes() -> None:
    class Sees:
        def probabilities(self, images: torch.Tensor) -> torch.Tensor:
            return (images[:, :3] > 0).float()

    codes = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]])
    traits = (codes > 0).float()
    vectors = torch.tensor([[3.0, 0, 0], [0, 0.1, 0], [0, -3.0, 3.0]])  # flips; too short; drags its neighbour along
    found = judged_edits(Sees(), lambda z: z, codes, traits, vectors)
    assert found["edit_flipped"] == pytest.approx(2 / 3)
    assert found["edit_others"] == pytest.approx((0 + 0 + 0.5) / 3)


# -- behaviour -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"conditional": True}, {"margin": 0.01}, {"feature_loss": "pixel"}])
def test_variants_train_and_tell(settings: dict[str, object]) -> None:
    recipe = _recipe(**settings)
    scalars = _run(recipe)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in scalars)
    with torch.no_grad():
        recipe.model.eval()
        x = recipe.real(recipe.data.split("test")[torch.arange(4)])
        traits = recipe.data.split("test")[torch.arange(4)]["attributes"] if settings.get("conditional") else None
        assert recipe.model.reconstruct(x, traits).shape == x.shape
    assert recipe.model.sample(3).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("variant", ["vae", "gan", "vae-dis"])
def test_the_other_variants_have_only_their_own_players(variant: str) -> None:
    recipe = _recipe(variant=variant, steps=4, gan_steps=2 if variant == "vae-dis" else 0)
    scalars = _run(recipe)
    names = {key.removesuffix("_loss") for key in scalars[-1] if key.endswith("_loss")}
    assert names == {"vae": {"encoder", "generator"}, "gan": {"discriminator", "generator"}}.get(
        variant, {"encoder", "generator"}
    )
    if variant == "vae-dis":
        assert {"rival_loss", "discriminator_loss"} <= set(scalars[0]) and "rival_loss" not in scalars[2]
    assert recipe.invert(n=4, steps=2).tensor.shape == (8, 3, 8, 8)
    if variant == "gan":
        with pytest.raises(CapabilityError, match="no encoder"):
            recipe.reconstructions()
        return
    assert recipe.reconstructions(4).tensor.shape == (8, 3, 8, 8)


def test_the_borrowed_discriminator_stays_as_the_gan_left_it() -> None:
    recipe = _recipe(variant="vae-dis", steps=4, gan_steps=2)
    loop = Loop(recipe)
    loop.advance(), loop.advance()
    before = {k: v.clone() for k, v in recipe.model.discriminator.named_parameters()}
    encoder = next(recipe.model.encoder.parameters()).clone()
    loop.advance(), loop.advance()
    assert all(torch.equal(v, before[k]) for k, v in recipe.model.discriminator.named_parameters())
    assert not torch.equal(encoder, next(recipe.model.encoder.parameters()))


def test_figures_pictures_and_edits(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path))
    recipe = VAEGANRecipe(TINY, data=VAEGANRecipe.load_data(TINY, Source("world", "faces")))
    recipe.data.info["classes"] = []  # the base's judge is tried elsewhere
    with pytest.raises(CapabilityError, match="not learnt yet"):
        recipe.model.attribute_vector("glasses")
    _run(recipe)
    figures = evaluate(recipe)
    assert {"recon_error", "kl", "recon_frechet", "recon_attributes", "edit_flipped", "edit_others"} <= set(figures)
    assert figures["attribute_judge_accuracy"] >= 0.97 and figures["recon_frechet"] > 0
    with inference(recipe, 0) as generator:
        shown = recipe.sample(4, generator)
    assert isinstance(shown, Gallery) and {"samples", "reconstructions", "attributes"} <= set(shown.items)
    assert shown.items["attributes"].tensor.shape == ((2 + 4) * 8, 3, 16, 16)
    recipe.model.eval()
    x = recipe.real(recipe.data.split("test")[torch.arange(5)])
    z = recipe.model.encode(x).mean + 2 * recipe.model.attribute_vector("glasses")
    torch.testing.assert_close(recipe.model.edit(x, {"glasses": 2}), recipe.model.decode(z))
    folder = tmp_path / "model"
    recipe.model.save_pretrained(folder)
    again = VAEGAN.from_pretrained(folder).eval()
    torch.testing.assert_close(again.edit(x, {"smile": -1}), recipe.model.edit(x, {"smile": -1}))


def test_compare_shows_every_variant() -> None:
    recipe = _recipe()
    _run(recipe)
    shown = recipe.compare(steps=1, n=3)
    title = next(iter(shown.items))
    assert "vae, vae-dis, vae-gan" in title and shown.items[title].tensor.shape == (12, 3, 8, 8)
    assert isinstance(shown.items["samples of gan"], Images)


def test_points_and_labelled_images_train_too() -> None:
    points = VAEGANRecipe(
        dataclasses.replace(TINY, samples=200), data=VAEGANRecipe.load_data(TINY, Source("world", "ring8"))
    )
    _run(points)
    figures = evaluate(points)
    assert {"modes_touched", "recon_error"} <= set(figures)
    with inference(points, 0) as generator:
        assert isinstance(points.sample(20, generator), Plot)
    data = _data()
    data.info.pop("attributes")
    data.info["classes"] = ["x", "y"]
    assert names_of(data) == ["x", "y"]


def test_bad_settings_and_inputs_are_named() -> None:
    with pytest.raises(ConfigError, match="gan_steps is for"):
        dataclasses.replace(TINY, gan_steps=1)
    with pytest.raises(ConfigError, match="must leave steps"):
        dataclasses.replace(TINY, variant="vae-dis", gan_steps=3)
    with pytest.raises(ConfigError, match="variant"):
        VAEGAN(shape=(3, 8, 8), variant="vae-wgan")
    with pytest.raises(ConfigError, match="names of its attributes"):
        VAEGAN(shape=(3, 8, 8), conditional=True)
    model = VAEGAN(shape=(3, 8, 8), latent=4, base=4, attributes=("hat",), conditional=True)
    with pytest.raises(ShapeError, match=r"needs attributes \[2, 1\]"):
        model.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(CapabilityError, match="edited by its condition"):
        model.edit(torch.zeros(2, 3, 8, 8), {"hat": 1})
    with pytest.raises(ConfigError, match="attribute 'hut' is unknown"):
        model.attribute_vector("hut")
    with pytest.raises(ShapeError, match="rescale"):
        VAEGAN(shape=(3, 8, 8), latent=4, base=4).reconstruct(torch.full((1, 3, 8, 8), 200.0))
    with pytest.raises(CapabilityError, match="no such loss"):
        Terms().encoder()
