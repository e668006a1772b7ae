"""Trained targets for studies of verbs: trained once per configuration and seed, then cached."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from cambrian.codec import files
from cambrian.engine import registry
from cambrian.engine.checkpoint import Checkpoints
from cambrian.engine.loop import Loop, fit
from cambrian.engine.recipe import Recipe
from cambrian.engine.run import runs_root, spec_for


def trained(
    slug: str,
    *,
    preset: str = "laptop",
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    with_: Sequence[str] = (),
    data: str | None = None,
) -> Recipe[Any]:
    """A recipe trained to its last step, in evaluation mode; from the cache when it was trained before with the same settings.

    Processes that ask for the same target at once wait for the first one to train it.
    """
    spec, config = spec_for(slug, preset=preset, seed=seed, data=data, with_=with_, settings=overrides)
    loop = Loop(spec.make(config=config))
    known = [spec.slug, spec.config, seed, spec.methods, loop.recipe.data.fingerprint(), registry.code_hash(spec.slug)]
    key = json.dumps(known, sort_keys=True)
    folder = runs_root() / ".targets" / f"{spec.slug}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder, keep=1)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if checkpoints.steps() == [config.steps]:
            loop.load_state_dict(checkpoints.load(config.steps))
        else:
            fit(loop, config.steps)
            files.replace_json(folder / "target.json", {"slug": spec.slug, "config": spec.config, "seed": seed})
            checkpoints.save(config.steps, loop.state_dict())
    for module in loop.recipe.modules().values():
        module.eval()
    return loop.recipe


def kept(slug: str, facts: Mapping[str, Any], module: nn.Module, train: Callable[[nn.Module], object]) -> nn.Module:
    """`module` after `train(module)`, in evaluation mode; its weights come from the cache when system `slug`, with its
    present code, trained a module of the same `facts` (plain values: sizes, seed) before.

    For networks that no recipe trains: a study's own pictures or labels. Processes wait for one another.
    """
    key = json.dumps([slug, dict(facts), registry.code_hash(slug)], sort_keys=True)
    folder = runs_root() / ".targets" / f"{slug}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder, keep=1)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if checkpoints.steps():
            module.load_state_dict(checkpoints.load(checkpoints.steps()[-1])["module"])
        else:
            train(module)
            files.replace_json(folder / "target.json", {"slug": slug, "facts": dict(facts)})
            checkpoints.save(1, {"module": dict(module.state_dict())})
    return module.eval()
