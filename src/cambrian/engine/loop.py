"""The training loop: takes a recipe from its iteration to the next, in exactly reproducible order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from cambrian.data.split import Batch
from cambrian.engine import devices
from cambrian.engine.order import SampleOrder
from cambrian.engine.recipe import Recipe, Scalars


class Loop:
    """One recipe, its sample order and the random state around it.

    torch's global generators are swapped in for each step and out again, so that training neither disturbs nor depends on the
    caller's random numbers.
    """

    def __init__(self, recipe: Recipe[Any], *, precision: str = "fp32") -> None:
        self.recipe = recipe
        self.precision = precision
        train = recipe.data.train
        self.order = None if train is None else SampleOrder(len(train), int(recipe.config.batch), recipe.seed)
        self._random = _seeded_state(recipe.seed)

    def advance(self) -> dict[str, float]:
        """One training iteration; returns its scalars. Raises `NonFiniteError`."""
        recipe = self.recipe
        with self.random_state(), devices.precision(self.precision, recipe.device):
            for module in recipe.modules().values():
                module.train()
            scalars = as_floats(recipe.step(self.batch(recipe.iteration)))
        recipe.check_finite(scalars)
        for method in recipe.methods:
            method.after_step(recipe, scalars)
        recipe.iteration += 1
        return scalars

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of training step `step`, on the device."""
        if self.order is None or self.recipe.data.train is None:
            return {}
        index, key = self.order.take(step)
        part = self.recipe.world.share(len(index))
        index, key = index[part], key[part]
        batch = {**self.recipe.data.train[index], "index": index, "key": key}
        return {name: tensor.to(self.recipe.device, non_blocking=True) for name, tensor in batch.items()}

    @contextlib.contextmanager
    def random_state(self) -> Generator[None]:
        """Run with the loop's own torch generators in place of the global ones."""
        outside = _global_state()
        _set_global_state(self._random)
        try:
            yield
        finally:
            self._random = _global_state()
            _set_global_state(outside)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on."""
        return {"recipe": self.recipe.state_dict(), "random": dict(self._random)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.recipe.load_state_dict(state["recipe"])
        self._random = {**self._random, **{k: v.cpu() for k, v in state["random"].items()}}


def as_floats(scalars: Scalars) -> dict[str, float]:
    """Scalars as Python floats."""
    return {name: float(value) for name, value in scalars.items()}


@contextlib.contextmanager
def inference(recipe: Recipe[Any], seed: int) -> Generator[torch.Generator]:
    """Evaluation mode without gradients, on random numbers of its own; gives the generator. Training state is untouched."""
    modes = {module: module.training for part in recipe.modules().values() for module in part.modules()}
    outside = _global_state()
    _set_global_state(_seeded_state(seed))
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            yield torch.Generator().manual_seed(seed)
    finally:
        for module, mode in modes.items():
            module.training = mode
        _set_global_state(outside)


def evaluate(recipe: Recipe[Any], split: str = "test", seed: int = 12345) -> dict[str, float]:
    """The recipe's figures on `split`; the same seed gives the same figures."""
    with inference(recipe, seed) as generator:
        return {name: float(value) for name, value in recipe.evaluate(split, generator).items()}


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag, so that a run can finish its step and save. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.raised = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: object) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def fit(
    loop: Loop, steps: int, *, each: Callable[[int, dict[str, float]], bool | None] = lambda step, scalars: None
) -> None:
    """Advance until `steps` iterations are done; `each(step, scalars)` is called after every one and may return True to stop."""
    while loop.recipe.iteration < steps:
        scalars = loop.advance()
        if each(loop.recipe.iteration, scalars):
            return


def _seeded_state(seed: int) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.Generator().manual_seed(seed * 104729 + 3).get_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.Generator("cuda").manual_seed(seed * 104729 + 3).get_state()
    return state


def _global_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_global_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
