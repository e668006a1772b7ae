"""A recipe: what a system does in one training iteration, and all the state that it needs to do the next.

The engine owns the loop, devices, logging and checkpoints; a recipe has none of that in its code.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data, Split
from cambrian.errors import CapabilityError, ConfigError, NonFiniteError

if TYPE_CHECKING:
    from cambrian.engine.claims import Claim
    from cambrian.engine.roles import TrainingMethod
    from cambrian.engine.samples import Sample
    from cambrian.inspect.target import Target

C = TypeVar("C")
R = TypeVar("R", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
Scalars = Mapping[str, "Tensor | float"]
ENGINE_OWNED = frozenset({"config", "data", "world", "methods", "extra"})


def recipe(slug: str, *, data: str) -> Callable[[R], R]:
    """Declare a class as the recipe of system `slug`, with the embedded dataset that it trains on by default."""

    def mark(cls: R) -> R:
        cls.slug, cls.default_data, cls.role = slug, data, "recipe"
        return cls

    return mark


def action(function: F) -> F:
    """Mark a method as an action of the trained system: `cambrian do RUN NAME --field value`."""
    function.__action__ = True  # type: ignore[attr-defined]
    return function


def actions(cls: type) -> dict[str, Callable[..., Any]]:
    """The actions of a recipe class, by name."""
    return {name: member for name, member in inspect.getmembers(cls) if getattr(member, "__action__", False)}


def config_type(cls: type) -> type:
    """The configuration class in `class X(Recipe[Config])`."""
    for base in getattr(cls, "__orig_bases__", ()):
        for argument in get_args(base):
            if isinstance(argument, type):
                return argument
    raise TypeError(f"{cls.__name__} must name its configuration class, as in Recipe[Config]")


class SingleProcess:
    """The world of one process: nothing to average."""

    rank, size = 0, 1

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Average `.grad` over processes."""

    def share(self, size: int) -> slice:
        """The part of a batch of `size` samples that this process computes."""
        return slice(0, size)


class Recipe(Generic[C]):
    """Base of every recipe; see `docs/architecture.md` for what a subclass gives.

    `methods` are training methods (`--with`), `world` the processes that train together.
    """

    slug: ClassVar[str]
    default_data: ClassVar[str]
    role: ClassVar[str]
    presets: ClassVar[Mapping[str, Any]]
    claims: ClassVar[tuple[Claim, ...]] = ()
    headline: ClassVar[tuple[str, str]]

    def __init__(
        self,
        config: C,
        *,
        data: Data | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        methods: Sequence[TrainingMethod[Any]] = (),
        world: SingleProcess | None = None,
    ) -> None:
        self.config = config
        self.data = data if data is not None else self.load_data(config, Source("world", self.default_data))
        self.seed, self.device = seed, torch.device(device)
        self.methods, self.world = list(methods), world or SingleProcess()
        self.rng = torch.Generator().manual_seed(seed * 7919 + 1)
        self.extra: dict[str, Any] = {}
        self.iteration = 0
        with torch.random.fork_rng(devices=[]):  # type: ignore[reportUnknownMemberType]
            torch.manual_seed(seed)  # type: ignore[reportUnknownMemberType]
            for method in self.methods:
                method.attach(self)
            self.build(config, self.data)
            for method in self.methods:
                method.built(self)
        self._check_state_is_visible()

    # -- what a system gives ------------------------------------------------------------------------------------

    @classmethod
    def load_data(cls, config: C, source: Source) -> Data:
        """Read `source` into the splits that this recipe trains and evaluates on."""
        raise NotImplementedError

    def build(self, config: C, data: Data) -> None:
        """Assign modules, optimisers and other stateful objects to `self`."""
        raise NotImplementedError

    def step(self, batch: Batch) -> Scalars:
        """One training iteration; returns scalars to log."""
        raise NotImplementedError

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Figures on `split`; runs in evaluation mode, without gradients."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """Something to look at."""
        raise CapabilityError(f"{self.slug} does not generate samples")

    def target(self) -> Target:
        """The trained classifier that compress, explain and attack act on."""
        raise CapabilityError(f"{self.slug} offers no classifier to compress, explain or attack")

    # -- what a system uses ------------------------------------------------------------------------------------

    def optimiser(self, factory: Callable[..., Any], params: Iterable[Any], **settings: Any) -> Any:
        """An optimiser over `params`, made by `factory(params, **settings)` or by a training method that replaces it."""
        groups = list(params)
        for method in self.methods:
            factory = method.wrap_optimiser(factory)
        return factory(groups, **settings)

    def minimise(
        self, loss: Tensor, optimiser: Any, *, clip_norm: float | None = None, clip_value: float | None = None
    ) -> None:
        """One optimiser step on `loss`: gradients go to this optimiser's parameters only, other players stay untouched."""
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=_parameters(optimiser))  # type: ignore[reportUnknownMemberType]
        self.apply_gradients(optimiser, loss=loss, clip_norm=clip_norm, clip_value=clip_value)

    def apply_gradients(
        self,
        optimiser: Any,
        *,
        loss: Tensor | float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Step on the gradients that stand in `.grad`: average, clip, transform by the methods, update."""
        params = _parameters(optimiser)
        self.world.average_gradients(params)
        if clip_value is not None:
            nn.utils.clip_grad_value_(params, clip_value)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(params, clip_norm)
        for method in self.methods:
            method.transform(params)
        if getattr(optimiser, "takes_loss", False):
            if loss is None:
                raise CapabilityError(f"{type(optimiser).__name__} needs the loss, which {self.slug} does not give")
            optimiser.step(loss=float(loss.detach() if isinstance(loss, Tensor) else loss))
        else:
            optimiser.step()

    def batches(self, split: str | Split, size: int = 256) -> Iterator[Batch]:
        """All samples of a split in order, `size` at a time, on the device: for evaluation."""
        samples = self.data.split(split) if isinstance(split, str) else split
        for start in range(0, len(samples), size):
            index = torch.arange(start, min(start + size, len(samples)))
            yield {name: tensor.to(self.device) for name, tensor in samples[index].items()}

    # -- state ---------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """Every network of the recipe, by attribute name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, nn.Module)}

    def parts(self) -> dict[str, Any]:
        """Every stateful attribute, by name: what a checkpoint holds."""
        found: dict[str, Any] = {}
        seen: set[int] = set()
        for name, part in vars(self).items():
            if name not in ENGINE_OWNED and _is_stateful(part) and id(part) not in seen:
                seen.add(id(part))
                found[name] = part
        return found

    def state_dict(self) -> dict[str, Any]:
        """All state: parts, `extra`, methods, and the iteration count."""
        parts = {name: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for name, p in self.parts().items()}  # fmt: skip
        methods = {str(i): method.state_dict() for i, method in enumerate(self.methods)}
        return {"iteration": self.iteration, "parts": parts, "extra": self.extra, "methods": methods}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, in place."""
        for name, part in self.parts().items():
            if isinstance(part, torch.Generator):
                part.set_state(state["parts"][name].cpu())
            else:
                part.load_state_dict(state["parts"][name])
        for i, method in enumerate(self.methods):
            method.load_state_dict(state["methods"][str(i)])
        self.extra = dict(state["extra"])
        self.iteration = int(state["iteration"])

    def _check_state_is_visible(self) -> None:
        for name, part in vars(self).items():
            if name in ENGINE_OWNED or _is_stateful(part) or not isinstance(part, (list, tuple, dict)):
                continue
            held = cast(Any, part)
            values: list[Any] = list(held.values()) if isinstance(part, dict) else list(held)
            if any(_is_stateful(value) for value in values):
                raise ConfigError(
                    f"{self.slug}: attribute {name!r} hides state inside a {type(held).__name__}, which no checkpoint would hold; "
                    "use nn.ModuleList or nn.ModuleDict, or give each its own attribute"
                )

    def blame(self) -> str:
        """The first parameter or gradient that is not finite, by name, for error messages."""
        for part, module in self.modules().items():
            for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
                if value.is_floating_point() and not torch.isfinite(value).all():
                    return f"{part}.{name}"
                if value.grad is not None and not torch.isfinite(value.grad).all():
                    return f"the gradient of {part}.{name}"
        return "the loss alone (all parameters are finite)"

    def check_finite(self, scalars: Mapping[str, float]) -> None:
        """Raise `NonFiniteError`, naming the step and the tensor, unless every scalar is finite."""
        for name, value in scalars.items():
            if not abs(value) < float("inf"):
                raise NonFiniteError(
                    f"{name} became {value} at step {self.iteration + 1} of {self.slug}; first non-finite tensor: "
                    f"{self.blame()}; lower the learning rate or clip gradients, then resume from the last checkpoint"
                )


class Supervised(Recipe[C]):
    """A recipe with one model, one optimiser and one loss: gives `objective`, `self.model`, `self.optim`."""

    model: nn.Module
    optim: Any
    clip_norm: float | None = None

    def objective(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """The loss to minimise, and scalars to log beside it."""
        raise NotImplementedError

    def step(self, batch: Batch) -> Scalars:
        """Minimise the objective, as wrapped by the training methods."""
        loss, scalars = self.composed_objective()(batch)
        self.minimise(loss, self.optim, clip_norm=self.clip_norm)
        return {"loss": loss.detach(), **scalars}

    def composed_objective(self) -> Callable[[Batch], tuple[Tensor, Scalars]]:
        """`objective` inside every training method's wrapper."""
        composed = self.objective
        for method in self.methods:
            composed = method.wrap_objective(self, composed)
        return composed


def _is_stateful(part: object) -> bool:
    return isinstance(part, torch.Generator) or (hasattr(part, "state_dict") and hasattr(part, "load_state_dict"))


def _parameters(optimiser: Any) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]
