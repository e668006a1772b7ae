"""Trained smoke runs of every recipe, made once per session and shared by the generic tests."""

from __future__ import annotations

import time

import pytest

from cambrian.engine.loop import Loop, evaluate
from cambrian.engine.run import spec_for

_CACHE: dict = {}


class Trained:
    """A recipe trained at smoke: metrics before and after, per-step scalars, final state, CPU seconds."""

    def __init__(self, slug, seed=0, **settings):
        started = time.process_time()
        spec, config = spec_for(slug, preset="smoke", seed=seed, settings=settings)
        self.config = config
        self.loop = Loop(spec.make(config=config))
        self.before = evaluate(self.loop.recipe)
        self.scalars = []
        self.gradients = set()
        while self.loop.recipe.iteration < config.steps:
            self.scalars.append(self.loop.advance())
            self._note_gradients()
        self.after = evaluate(self.loop.recipe)
        self.cpu = time.process_time() - started

    def _note_gradients(self):
        for part, module in self.loop.recipe.modules().items():
            for name, p in module.named_parameters():
                if p.grad is not None and bool((p.grad != 0).any()) and bool(p.grad.isfinite().all()):
                    self.gradients.add(f"{part}.{name}")


@pytest.fixture
def trained():
    def get(slug):
        if slug not in _CACHE:
            _CACHE[slug] = Trained(slug)
        return _CACHE[slug]

    return get
