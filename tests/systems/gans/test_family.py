"""What the systems of this family share: nets, worlds, judging, the recipe, and how the registry sees it."""

import pytest
import torch

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine import registry
from cambrian.engine.config import config, option
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.recipe import recipe
from cambrian.engine.samples import Gallery, Plot
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL, ConnectedNet, Player, discriminator_loss, generator_loss
from cambrian.systems.gans import _worlds
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._judging import Panel, judged
from cambrian.systems.gans._nets import GenerativeModel, discriminator_for, generator_for


@config
class Config:
    """A plain game."""

    steps: int = option(4, "rounds", low=1)
    batch: int = option(16, "samples", low=2)
    samples: int = option(64, "samples judged", low=2)


class Plain(GenerativeModel):
    """Two nets."""

    def __init__(self, *, shape, latent=8, arch="connected", hidden=(16, 16), base=4):
        super().__init__(shape=shape, latent=latent)
        self.generator = generator_for(shape, arch=arch, latent=latent, hidden=hidden, base=base)
        self.discriminator = discriminator_for(shape, arch=arch, hidden=hidden, base=base)


@recipe("plain", data="ring8")
class PlainRecipe(AdversarialRecipe[Config]):
    """The ordinary game."""

    def build(self, config, data):
        self.model = Plain(shape=data.info["shape"])
        self.g_optim = self.adam(self.model.generator, lr=1e-3)
        self.d_optim = self.adam(self.model.discriminator, lr=1e-3)
        self.watch()

    def players(self, x, batch):
        fake = self.model.generate(self.latent(len(x)))

        def d_loss(turn):
            return discriminator_loss(*self.model.discriminator(torch.cat((x, fake.detach())), (REAL, FAKE)).chunk(2))

        return [
            Player("d", self.d_optim, d_loss),
            Player("g", self.g_optim, lambda turn: generator_loss(self.model.discriminator(fake, (FAKE,)))),
        ]


@pytest.mark.parametrize("world", ["ring8", "digits"])
def test_the_recipe_plays_judges_and_shows(world):
    settings = Config()
    made = PlainRecipe(settings, data=_worlds.load(Source("world", world)))
    loop = Loop(made)
    scalars = [loop.advance() for _ in range(settings.steps)]
    assert {"d_loss", "g_loss", "d_grad", "g_grad"} <= set(scalars[-1])
    figures = evaluate(made)
    assert 0 <= figures["d_accuracy"] <= 1
    assert ("modes_touched" in figures) == (world == "ring8")
    assert len(made.extra["frames"]) == settings.steps  # one at each step of a run shorter than the number of frames
    with inference(made, 0) as generator:
        shown = made.sample(8, generator)
    assert isinstance(shown, Plot if world == "ring8" else Gallery)


def test_actions_for_images_refuse_points():
    with pytest.raises(CapabilityError, match="needs images"):
        PlainRecipe(Config()).interpolate()


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 16, 16)])
@pytest.mark.parametrize("arch", ["connected", "dcgan"])
def test_nets_fit_samples_of_any_shape(shape, arch):
    up = generator_for(shape, arch=arch, latent=5, hidden=(9, 7), base=4)
    down = discriminator_for(shape, arch=arch, hidden=(9, 7), base=4, outputs=3)
    x = up(torch.randn(6, 5)).detach()
    assert x.shape == (6, *shape)
    assert down(x).shape == (6, 3) and len(down.features(x)) == 6
    assert len(shape) == 1 or float(x.abs().max()) <= 1


def test_one_pass_over_two_sources_equals_two_passes():
    net = ConnectedNet(inputs=(3,), outputs=(1,), hidden=(8, 8), act="lrelu", norm="split", norm_first=False)
    real, fake = torch.randn(10, 3), torch.randn(10, 3) + 2
    both = net(torch.cat((real, fake)), (REAL, FAKE))
    torch.testing.assert_close(both, torch.cat((net(real, (REAL,)), net(fake, (FAKE,)))))
    assert not torch.allclose(both, net(torch.cat((real, fake)), (REAL,)))


def test_a_generator_normalises_drawn_and_encoded_latents_each_for_itself():
    net = generator_for((1, 8, 8), arch="dcgan", latent=4, hidden=(8,), base=4)
    drawn, encoded = torch.randn(6, 4), torch.randn(6, 4) + 3
    both = net(torch.cat((drawn, encoded)), sources=(REAL, FAKE))
    torch.testing.assert_close(both, torch.cat((net(drawn), net(encoded, sources=(FAKE,)))))
    assert not torch.allclose(both, net(torch.cat((drawn, encoded))))


def test_bad_shapes_and_ranges_are_named():
    model = Plain(shape=(1, 8, 8))
    with pytest.raises(ShapeError, match=r"\[batch >= 1, 1, 8, 8\]"):
        model.check(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ShapeError, match="rescale"):
        model.check(torch.full((2, 1, 8, 8), 255.0))
    with pytest.raises(ShapeError, match="square"):
        generator_for((1, 8, 9), arch="dcgan", latent=4, hidden=(8,), base=4)
    with pytest.raises(ConfigError, match="arch"):
        generator_for((1, 8, 8), arch="mlp", latent=4, hidden=(8,), base=4)
    with pytest.raises(ConfigError, match="hidden layer"):
        ConnectedNet(inputs=(2,), outputs=(2,), hidden=())


def test_a_saved_model_comes_back(tmp_path):
    model = Plain(shape=(1, 8, 8)).eval()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Plain.from_pretrained(tmp_path).sample(3, seed=4), model.sample(3, seed=4))


def test_a_panel_multiplies_the_channels_of_a_stack():
    class Fixed:
        accuracy = 1.0

        def probabilities(self, images):
            level = images.mean((1, 2, 3)).round().long()
            return torch.nn.functional.one_hot(level, 4).float()

        def features(self, images):
            return images.flatten(1)

    levels = torch.tensor([[3, 0, 2], [1, 2, 0]])
    images = levels.float()[:, :, None, None].expand(-1, -1, 2, 2)
    panel = Panel(Fixed(), 3)
    assert panel.probabilities(images).argmax(1).tolist() == [3 * 16 + 0 * 4 + 2, 1 * 16 + 2 * 4 + 0]
    assert panel.features(images).shape == (2, 12)


def test_images_without_labels_get_no_score():
    split = TensorSplit(image=torch.zeros(4, 1, 8, 8, dtype=torch.uint8), label=torch.zeros(4, dtype=torch.int64))
    data = Data("folder", "images", split, split, split, {"shape": (1, 8, 8), "classes": []})
    assert judged(data, torch.zeros(4, 1, 8, 8)) == {}


def test_inherited_actions_stand_on_the_card():
    assert {"interpolate", "arithmetic", "neighbours"} <= set(registry.card("gan").actions)
    assert {"compare", "invert"} <= set(registry.card("unrolled-gan").actions)
    assert any(path.name == "_strips.py" for path in registry.card("unrolled-gan").shared)


def test_generated_samples_are_judged_with_the_statistics_they_trained_with():
    made = PlainRecipe(Config(), data=_worlds.load(Source("world", "digits")))
    loop = Loop(made)
    for _ in range(4):
        loop.advance()
    made.model.eval()
    x = made.model.generate(made.latent(8)).detach()
    assert not torch.equal(made.source_logits(x, FAKE), made.source_logits(x, REAL))


def test_a_discriminator_of_images_can_be_probed():
    made = PlainRecipe(Config(), data=_worlds.load(Source("world", "digits")))
    target = made.target()
    x, _, _ = next(iter(target.batches("test", 16, 0)))
    assert target.features(x, ["layers.1"])["layers.1"].shape == (16, 16)
    with pytest.raises(CapabilityError, match="needs images"):
        PlainRecipe(Config()).target()
