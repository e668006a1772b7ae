"""The engine's promises, tried on every recipe at the smoke preset."""

import json

import pytest
import torch

from cambrian.codec import files
from cambrian.engine import registry
from cambrian.engine import state as trees
from cambrian.engine.checkpoint import Checkpoints
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.run import spec_for
from cambrian.engine.samples import Sample
from cambrian.errors import CapabilityError, ConfigError

RECIPES = sorted(s for s, c in registry.cards().items() if "recipe" in c.roles and c.family != "plugin")
SMOKE_SECONDS = 20.0  # CPU time of two evaluations and a smoke training, generous: shared machines swing


def fingerprint(value):
    """Bit-exact text of a state: every tensor's bytes."""
    tree, tensors = trees.flatten(value)
    sums = {
        name: hash(t.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()) if t.numel() else 0
        for name, t in tensors.items()
    }
    return json.dumps(
        [tree, sorted(sums.items()), sorted((n, str(t.dtype), list(t.shape)) for n, t in tensors.items())]
    )


def fresh(slug, seed=0):
    spec, config = spec_for(slug, preset="smoke", seed=seed)
    return Loop(spec.make(config=config))


@pytest.mark.parametrize("slug", RECIPES)
def test_smoke_training_improves_the_headline(slug, trained):
    done = trained(slug)
    metric, direction = registry.load(slug, "recipe").headline
    gain = done.after[metric] - done.before[metric]
    assert gain > 0 if direction == "higher" else gain < 0, (done.before, done.after)
    assert done.cpu < SMOKE_SECONDS


@pytest.mark.parametrize("slug", RECIPES)
def test_every_parameter_gets_a_finite_gradient(slug, trained):
    done = trained(slug)
    frozen = {
        f"{n}.{k}"
        for n, m in done.loop.recipe.modules().items()
        for k, p in m.named_parameters()
        if not p.requires_grad
    }
    everything = {f"{n}.{k}" for n, m in done.loop.recipe.modules().items() for k, _ in m.named_parameters()}
    idle = getattr(type(done.loop.recipe), "without_gradient", ())  # averages and target networks
    missing = {name for name in everything - frozen - done.gradients if not name.startswith(tuple(idle))}
    assert not missing


@pytest.mark.parametrize("slug", RECIPES)
def test_same_seed_twice_is_bit_equal_and_resume_is_exact(slug, trained, tmp_path):
    done = trained(slug)
    steps = done.config.steps
    final = fingerprint(done.loop.state_dict())
    stops = sorted({0, 1, steps // 2, max(steps - 1, 0), steps})
    if done.loop.order is not None and done.loop.order.per_epoch < steps:
        stops = sorted({*stops, done.loop.order.per_epoch, done.loop.order.per_epoch + 1})
    # one pass that stops, saves, and goes on from the file at every stop: many resumes in a row
    loop = fresh(slug)
    store = Checkpoints(tmp_path, keep=1)
    scalars = []
    for stop in [*stops, steps]:
        while loop.recipe.iteration < stop:
            scalars.append(loop.advance())
        store.save(stop, loop.state_dict())
        loop = fresh(slug)
        loop.load_state_dict(store.latest()[1])
        assert loop.recipe.iteration == stop
    assert scalars == done.scalars
    assert fingerprint(loop.state_dict()) == final
    assert evaluate(loop.recipe) == done.after


@pytest.mark.parametrize("slug", RECIPES)
def test_evaluating_and_sampling_leave_training_untouched(slug, trained):
    loop = trained(slug).loop
    before = fingerprint(loop.state_dict())
    evaluate(loop.recipe)
    try:
        with inference(loop.recipe, 1) as generator:
            shown = loop.recipe.sample(4, generator)
        assert isinstance(shown, Sample) and len(shown.html()) > 20
    except CapabilityError:
        pass
    assert fingerprint(loop.state_dict()) == before


@pytest.mark.parametrize("slug", RECIPES)
def test_state_is_plain_json_and_tensors(slug, trained):
    tree, tensors = trees.flatten(trained(slug).loop.state_dict())
    assert files.parse_json(files.dump_json(tree)) is not None and tensors


@pytest.mark.parametrize("slug", RECIPES)
def test_another_seed_trains_another_model(slug, trained):
    loop = fresh(slug, seed=1)
    loop.advance()
    assert loop.state_dict()["recipe"]["parts"].keys() == trained(slug).loop.state_dict()["recipe"]["parts"].keys()
    other = fresh(slug, seed=2)
    other.advance()
    assert fingerprint(loop.state_dict()) != fingerprint(other.state_dict())


@pytest.mark.parametrize("slug", RECIPES)
@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_presets_are_valid(slug, preset):
    spec, config = spec_for(slug, preset=preset)
    assert config.steps >= 1 and spec.config["steps"] == config.steps


@pytest.mark.parametrize("slug", RECIPES)
def test_misspelt_field_is_a_typed_error(slug):
    with pytest.raises(ConfigError, match="did you mean steps"):
        spec_for(slug, settings={"stesp": 3})
