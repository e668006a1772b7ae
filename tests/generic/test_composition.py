"""Every training method on every recipe: trains, resumes bit-equal, improves over step 0. The table is docs/composition.md.

`CAMBRIAN_WRITE_COMPOSITION=1 pytest tests/generic/test_composition.py` writes the table; without it the table is compared.
"""

import os
import re
from pathlib import Path

import pytest
import torch

from cambrian.engine import registry
from cambrian.engine import state as trees
from cambrian.engine.loop import Loop, evaluate
from cambrian.engine.run import spec_for
from cambrian.errors import CapabilityError, ConfigError, NonFiniteError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
RECIPES = sorted(s for s, c in registry.cards().items() if "recipe" in c.roles and c.family != "plugin")
METHODS = sorted(s for s, c in registry.cards().items() if "training-method" in c.roles and c.family != "plugin")
WORKS = "trains, resumes, improves"


def same(a, b):
    (tree_a, tensors_a), (tree_b, tensors_b) = trees.flatten(a), trees.flatten(b)
    return tree_a == tree_b and all(torch.equal(t, tensors_b[n]) for n, t in tensors_a.items())


def combine(slug, method):
    """What happens: a short text for the table."""
    spec, config = spec_for(slug, preset="smoke", with_=[method])

    def fresh():
        return Loop(spec.make(config=config))

    try:
        straight = fresh()
    except (CapabilityError, ConfigError) as error:
        return f"does not apply: {error}"
    before = evaluate(straight.recipe)
    middle = None
    try:
        while straight.recipe.iteration < config.steps:
            straight.advance()
            if straight.recipe.iteration == (config.steps + 1) // 2:
                middle = trees.flatten(straight.state_dict())
                middle = (middle[0], {k: v.clone() for k, v in middle[1].items()})
    except (NonFiniteError, CapabilityError, ConfigError) as error:
        return f"stops: {type(error).__name__}"
    resumed = fresh()
    resumed.load_state_dict(trees.unflatten(*middle))
    while resumed.recipe.iteration < config.steps:
        resumed.advance()
    assert same(straight.state_dict(), resumed.state_dict()), f"{slug} with {method} does not resume exactly"
    metric, direction = registry.load(slug, "recipe").headline
    gain = evaluate(straight.recipe)[metric] - before[metric]
    return WORKS if (gain > 0) == (direction == "higher") and gain else "trains, resumes, does not improve at smoke"


def read_page():
    cells = {}
    head = []
    for line in PAGE.read_text().splitlines() if PAGE.exists() else []:
        row = [c.strip() for c in line.strip().strip("|").split("|")]
        if line.startswith("| recipe"):
            head = row[1:]
        elif line.startswith("| `"):
            cells.update({(row[0].strip("`"), m.strip("`")): text for m, text in zip(head, row[1:])})
    return cells


def write_page(cells):
    lines = ["# Which training methods go with which recipes", "",
             "Made by `tests/generic/test_composition.py` at the smoke preset: the recipe is trained with the method (its default options), stopped half way and",
             "resumed from the saved state (which must end bit-equal), and its headline figure is compared with that of step 0. Smoke runs last seconds, so a",
             "method that slows learning at first, or whose default options suit other models, can miss the last mark.", "",
             "| recipe | " + " | ".join(f"`{m}`" for m in METHODS) + " |", "|---|" + "---|" * len(METHODS)]  # fmt: skip
    for slug in RECIPES:
        lines.append(f"| `{slug}` | " + " | ".join(cells.get((slug, m), "") for m in METHODS) + " |")
    PAGE.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slug", RECIPES)
def test_method_on_recipe(slug, method):
    found = re.sub(r"\s+", " ", combine(slug, method)).replace("|", "/")
    cells = read_page()
    if os.environ.get("CAMBRIAN_WRITE_COMPOSITION"):
        write_page({**cells, (slug, method): found})
        return
    assert cells.get((slug, method)) == found, "write docs/composition.md again (see the module's docstring)"
