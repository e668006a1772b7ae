"""What a system can be besides a recipe: a training method, a compressor, an explainer, an attacker, a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from cambrian.data.split import Batch
from cambrian.engine.recipe import Recipe, Scalars, config_type
from cambrian.errors import CapabilityError
from cambrian.inspect.results import AttackResult, Compression, Explanation

if TYPE_CHECKING:
    from cambrian.engine.claims import Claim
    from cambrian.engine.samples import Sample
    from cambrian.inspect.target import Target

C = TypeVar("C")
R = TypeVar("R", bound=type)
Objective = Callable[[Batch], "tuple[Tensor, Scalars]"]
Progress = Callable[[int, int], None]


def _role(role: str) -> Callable[[str], Callable[[R], R]]:
    def declare(slug: str) -> Callable[[R], R]:
        def mark(cls: R) -> R:
            cls.slug, cls.role = slug, role
            return cls

        return mark

    return declare


training_method = _role("training-method")
compressor = _role("compressor")
explainer = _role("explainer")
attacker = _role("attacker")
study = _role("study")


class Method(Generic[C]):
    """A method with options: `--with slug:option=value,...`."""

    slug: ClassVar[str]
    role: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """What compressors, explainers and attackers need of a target: names of `inspect.target.NEEDS`."""
    quick: ClassVar[Mapping[str, Any]] = {}
    """Options with which the method takes seconds, for `cambrian matrix`."""

    def __init__(self, options: C | None = None) -> None:
        self.options: C = options if options is not None else config_type(type(self))()

    def require(self, target: Target) -> None:
        """Raise `CapabilityError` with every reason why the method does not apply to a target."""
        reasons = self.lacks(target)
        if reasons:
            raise CapabilityError(f"{self.slug} does not apply to this target: {'; '.join(reasons)}")

    @classmethod
    def lacks(cls, target: Target) -> list[str]:
        """Why the method does not apply to a target; empty when it does."""
        offered = target.offers()
        return [reason for need in cls.needs if (reason := offered[need]) is not None]


class TrainingMethod(Method[C]):
    """Changes how any recipe trains. Whatever it remembers is in its `state_dict` (or in that of the optimiser it makes)."""

    def attach(self, recipe: Recipe[Any]) -> None:
        """Called before the recipe builds; raise `CapabilityError` when the method cannot apply to it."""

    def built(self, recipe: Recipe[Any]) -> None:
        """Called once the recipe has built its networks: the place for hooks on them."""

    def after_step(self, recipe: Recipe[Any], scalars: Scalars) -> None:
        """Called after each training iteration with what it logged: the place for schedules."""

    def optimiser(self, factory: Callable[..., Any], params: list[Any], settings: dict[str, Any]) -> Any:
        """Make the optimiser; the default is the recipe's own."""
        return factory(params, **settings)

    def transform(self, parameters: Sequence[Tensor]) -> None:
        """Change gradients in place, after clipping and before the optimiser."""

    def objective(self, recipe: Recipe[Any], batch: Batch, objective: Objective) -> tuple[Tensor, Scalars]:
        """Wrap the loss of a supervised recipe."""
        return objective(batch)

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""

    def wrap_optimiser(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        """The factory that a recipe's optimisers go through."""
        if not _overrides(self, "optimiser"):
            return factory

        def make(params: list[Any], **settings: Any) -> Any:
            return self.optimiser(factory, params, settings)

        return make

    def wrap_objective(self, recipe: Recipe[Any], objective: Objective) -> Objective:
        """The objective that a supervised recipe minimises."""
        if not _overrides(self, "objective"):
            return objective
        return lambda batch: self.objective(recipe, batch, objective)

    def require_supervised(self, recipe: Recipe[Any]) -> None:
        """For methods that wrap the objective: refuse recipes that have none."""
        if not hasattr(recipe, "composed_objective"):
            raise CapabilityError(f"{self.slug} changes a supervised loss, and {recipe.slug} has none")


def _overrides(method: TrainingMethod[Any], name: str) -> bool:
    mine: object = getattr(type(method), name)
    base: object = getattr(TrainingMethod, name)
    return mine is not base


class Compressor(Method[C]):
    """Makes a trained model smaller.

    In a chain `target.state` holds what the compressor before did to each weight (None: nothing); respect it, and give
    the state back in the `Compression`.
    """

    def stages(self) -> tuple[str, ...]:
        """What it does with its options, of "restructure", "prune" and "quantise": quantised weights are final, so a
        chain may do nothing of the first two after the third.
        """
        return ()

    def compress(self, target: Target, directory: Path, generator: torch.Generator) -> Compression:
        """The smaller model, its encoded file under `directory`, and a table row of figures."""
        raise NotImplementedError


class Explainer(Method[C]):
    """Shows why a trained model answers as it does."""

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """Tables and pictures."""
        raise NotImplementedError


class Attacker(Method[C]):
    """Makes inputs that a trained model gets wrong."""

    def attack(self, target: Target, x: Tensor, y: Tensor, generator: torch.Generator) -> AttackResult:
        """Adversarial versions of `x` [B,...] with labels `y` [B], inside the norm bound and the box."""
        raise NotImplementedError


@dataclass(frozen=True)
class Measurement:
    """What a study found: figures by name, and something to look at."""

    metrics: dict[str, float]
    sample: Sample | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any])


class Study(Method[C]):
    """A measurement that is not a training run of the system itself."""

    presets: ClassVar[Mapping[str, Any]]
    claims: ClassVar[tuple[Claim, ...]] = ()

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self.config: C = config

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Measure with this seed; `directory` is scratch space, `progress(done, total)` reports."""
        raise NotImplementedError
