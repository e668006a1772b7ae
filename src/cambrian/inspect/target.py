"""What compress, explain and attack act on: a classifier with its input space, its data and its way of being
trained.

`Target` is the structural type; `wrap` makes one from any `nn.Module` and `ModuleTarget` is what it returns. A
recipe offers its own with `return wrap(self.model, space=Space.image(shape), classes=names, data=self.data,
loss=self.loss)`.

The module takes inputs in `space` (pixels, normalisation is INSIDE the module), so that `eps = 8/255` means the
same everywhere.

Shapes: B batch, K classes, `space.shape` one input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect.finetune import Loss, finetune
from cambrian.inspect.hooks import capture, quiet
from cambrian.inspect.layers import Layer, layer_table

if TYPE_CHECKING:
    from cambrian.inspect.state import CompressionState

KINDS = ("image", "vector", "tokens", "audio")
SPLITS = ("train", "valid", "test")
NEEDS = ("grad_x", "grad_h", "logits", "labels_only", "decoder", "masks", "retrain", "image")
"""What a method may need: gradients in inputs or features, scores, labels alone, a decoder, object masks, training data,
pictures.
"""
Batch = tuple[Tensor, Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Space:
    """The inputs a network takes: `shape` of one input (image: C,H,W), the box `[lo, hi]`, the step of a stored
    value.
    """

    kind: str
    shape: tuple[int, ...]
    lo: float = 0.0
    hi: float = 1.0
    quantum: float | None = None
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"space kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if not self.shape or any(size < 1 for size in self.shape):
            raise ConfigError(f"space shape must be positive sizes of one input without the batch, got {self.shape}")
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.lo < self.hi):
            raise ConfigError(f"space needs finite lo < hi, got [{self.lo}, {self.hi}]")

    @classmethod
    def image(cls, shape: Sequence[int], lo: float = 0.0, hi: float = 1.0) -> Space:
        """8-bit pictures `[C,H,W]` scaled to `[lo, hi]`."""
        names = {1: ("grey",), 3: ("red", "green", "blue")}.get(shape[0], tuple(f"c{i}" for i in range(shape[0])))
        return cls("image", tuple(shape), lo, hi, (hi - lo) / 255, names)

    @classmethod
    def vector(cls, size: int, lo: float, hi: float) -> Space:
        return cls("vector", (size,), lo, hi)

    @property
    def width(self) -> float:
        """`hi - lo`; attack sizes are fractions of it."""
        return self.hi - self.lo

    def check(self, x: Tensor) -> None:
        """Raise `ShapeError` unless `x` is a finite batch `[B, *shape]` of this space (integers for tokens)."""
        if not isinstance(x, Tensor):
            raise ShapeError(f"inputs must be a tensor, got {type(x).__name__}")
        if x.dim() != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape or not len(x):
            raise ShapeError(f"inputs must be [B, {', '.join(map(str, self.shape))}] with B >= 1, got {list(x.shape)}")
        if x.is_floating_point() == (self.kind == "tokens"):
            wanted = "integers" if self.kind == "tokens" else "floating point"
            raise ShapeError(f"inputs of kind {self.kind} must be {wanted}, got {x.dtype}; scale uint8 pixels first")
        low, high = float(x.detach().min()), float(x.detach().max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ShapeError("inputs contain NaN or infinity; clean them first")
        slack = 1e-6 * self.width
        if low < self.lo - slack or high > self.hi + slack:
            raise ShapeError(f"inputs must lie in [{self.lo}, {self.hi}], got [{low:.4g}, {high:.4g}]")

    def scale(self, x: Tensor) -> Tensor:
        """uint8 `[0,255]` to this space; floating point values are taken as they are."""
        if x.dtype == torch.uint8 and self.kind != "tokens":
            return x.to(torch.get_default_dtype()) * (self.width / 255) + self.lo
        return x


@runtime_checkable
class Target(Protocol):
    """The structural type that every compressor, explainer and attacker takes."""

    module: nn.Module
    space: Space
    classes: list[str]
    state: CompressionState | None  # what compressors before left to hold
    relevance: dict[str, Tensor] | None  # what an explainer before found of each channel

    def logits(self, x: Tensor, module: nn.Module | None = None) -> Tensor: ...
    def features(self, x: Tensor, names: Sequence[str], grad: bool = False) -> dict[str, Tensor]: ...
    def layers(self) -> list[Layer]: ...
    def example(self) -> Tensor: ...
    def size(self, split: str) -> int: ...
    def draw(self, split: str, index: Tensor) -> Batch: ...
    def batches(self, split: str, n: int | None = None, seed: int = 0, size: int = 256) -> Iterator[Batch]: ...
    def finetune(self, module: nn.Module, **settings: Any) -> nn.Module: ...
    def metric(self, module: nn.Module | None = None, split: str = "test") -> dict[str, float]: ...
    def check(self, x: Tensor, y: Tensor | None = None) -> None: ...
    def quiet(self) -> AbstractContextManager[nn.Module]: ...
    def offers(self) -> dict[str, str | None]: ...


class ModuleTarget:
    """A `Target` around a plain module; see `wrap` for the arguments."""

    def __init__(
        self,
        module: nn.Module,
        *,
        space: Space,
        classes: Sequence[str],
        data: Any = None,
        fields: tuple[str, str] = ("image", "label"),
        finetune: Callable[..., nn.Module] | None = None,
        loss: Loss | None = None,
        metrics: Callable[[nn.Module, str], dict[str, float]] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise CapabilityError(f"a target needs an nn.Module, got {type(module).__name__}")
        self.module, self.space, self.classes = module, space, [str(name) for name in classes]
        self._splits = _splits(data, fields)
        self._fields, self._finetune, self._loss, self._metrics = fields, finetune, loss, metrics
        self.relevance: dict[str, Tensor] | None = None
        self.state: CompressionState | None = None

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def replaced(self, module: nn.Module, state: CompressionState | None = None) -> ModuleTarget:
        """The same data, space and training with another network (a compressed one), and the constraints on its weights."""
        made = copy.copy(self)
        made.module, made.relevance, made.state = module, None, state
        return made

    def with_split(self, name: str, x: Tensor, y: Tensor, meta: dict[str, Tensor] | None = None) -> ModuleTarget:
        """The same network with other samples as split `name`: `x [N,...]` in the space, `y [N]`, `meta` by name."""
        self.check(x, y)
        made = copy.copy(self)
        inputs, labels = self._fields
        made._splits = {**self._splits, name: _Columns({inputs: x, labels: y, **(meta or {})})}
        return made

    def offers(self) -> dict[str, str | None]:
        """What methods may ask of this target (`NEEDS`): None where it is there, else the reason why it is not."""
        reasons: dict[str, str | None] = dict.fromkeys(NEEDS)
        if self.space.kind == "tokens":
            reasons["grad_x"] = "its inputs are tokens, which have no gradient"
        if not self.classes:
            reasons["logits"] = reasons["labels_only"] = "it has no classes"
        if "train" not in self._splits:
            reasons["retrain"] = "it has no training data"
        if not any(self._knows(split, "mask") for split in ("test", "valid")):
            reasons["masks"] = "its data does not say where the object is"
        reasons["decoder"] = "it is a classifier, not a generative model"
        if self.space.kind != "image":
            reasons["image"] = f"its inputs are no pictures but of kind {self.space.kind}"
        return reasons

    def _knows(self, split: str, field: str) -> bool:
        return split in self._splits and field in self._splits[split][torch.zeros(1, dtype=torch.int64)]

    def quiet(self) -> AbstractContextManager[nn.Module]:
        """Eval mode without parameter gradients for the time of a `with`; modes and flags are restored."""
        return quiet(self.module)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise `ShapeError` for inputs outside the space, or labels that are not int64 `[B]` below the number of
        classes.
        """
        self.space.check(x)
        if y is None:
            return
        if y.dtype != torch.int64 or y.shape != (len(x),):
            raise ShapeError(f"labels must be int64 [{len(x)}], got {y.dtype} {list(y.shape)}")
        if int(y.min()) < 0 or int(y.max()) >= len(self.classes):
            raise ShapeError(f"labels must lie in 0..{len(self.classes) - 1}, got {int(y.min())}..{int(y.max())}")

    def logits(self, x: Tensor, module: nn.Module | None = None) -> Tensor:
        """`[B,K]`, differentiable in `x`; the module is in eval mode and its mode is restored."""
        self.space.check(x)
        network = self.module if module is None else module
        with quiet(network):
            out = network(x)
        if not isinstance(out, Tensor) or out.shape != (len(x), len(self.classes)):
            seen = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(f"the module must give logits [{len(x)}, {len(self.classes)}], got {seen}")
        return out

    def features(self, x: Tensor, names: Sequence[str], grad: bool = False) -> dict[str, Tensor]:
        """Outputs of the named modules (`"name:in"`: their input); the forward pass stops after the last one needed."""
        self.space.check(x)
        with quiet(self.module):
            return capture(self.module, x, names, grad=grad)

    def layers(self) -> list[Layer]:
        """Every leaf module that runs, in order: shapes, parameters, multiply-accumulates, receptive field."""
        return layer_table(self.module, self.example())

    def example(self) -> Tensor:
        """One valid input: the middle of the box (zeros for tokens)."""
        shape = (1, *self.space.shape)
        if self.space.kind == "tokens":
            return torch.zeros(shape, dtype=torch.int64, device=self.device)
        return torch.full(shape, (self.space.lo + self.space.hi) / 2, device=self.device)

    def size(self, split: str) -> int:
        return len(self._split(split))

    def batches(self, split: str, n: int | None = None, seed: int = 0, size: int = 256) -> Iterator[Batch]:
        """`(x, y, meta)` in the space's units: the whole split in order, or `n` samples drawn without return by
        `seed`.
        """
        chosen, total = self._split(split), self.size(split)
        order = torch.arange(total)
        if n is not None:
            if not 1 <= n <= total:
                raise DataError(f"split {split!r} has {total} samples, cannot give {n}")
            order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]
        for index in order.split(size):
            yield self._batch(chosen, index)

    def draw(self, split: str, index: Tensor) -> Batch:
        """The samples at these positions of a split."""
        return self._batch(self._split(split), index)

    def finetune(self, module: nn.Module, **settings: Any) -> nn.Module:
        """Train `module` in place further, on the target's own data; see `cambrian.inspect.finetune.finetune`."""
        if self._finetune is not None:
            return self._finetune(module, **settings)
        settings.setdefault("loss", self._loss)
        return finetune(module, self, **settings)

    def metric(self, module: nn.Module | None = None, split: str = "test") -> dict[str, float]:
        """`accuracy` and mean cross-entropy `loss` on a split, and whatever the recipe adds."""
        network = self.module if module is None else module
        right, loss, count = 0.0, 0.0, 0
        with torch.no_grad():
            for x, y, _ in self.batches(split):
                logits = self.logits(x, network)
                right += float((logits.argmax(1) == y).sum())
                loss += float(F.cross_entropy(logits, y, reduction="sum"))
                count += len(y)
        extra = self._metrics(network, split) if self._metrics else {}
        return {"accuracy": right / count, "loss": loss / count, **extra}

    def _split(self, name: str) -> Any:
        if name not in self._splits:
            have = ", ".join(self._splits) or "none (pass data= to wrap)"
            raise DataError(f"the target has no split {name!r}; it has {have}")
        return self._splits[name]

    def _batch(self, split: Any, index: Tensor) -> Batch:
        batch = dict(split[index])
        inputs, labels = self._fields
        if inputs not in batch or labels not in batch:
            raise DataError(f"the target's data needs the fields {inputs!r} and {labels!r}, it has {sorted(batch)}")
        x, y = batch.pop(inputs), batch.pop(labels)
        return self.space.scale(x).to(self.device), y.to(self.device), batch


def wrap(
    module: nn.Module,
    *,
    space: Space,
    classes: Sequence[str],
    data: Any = None,
    fields: tuple[str, str] = ("image", "label"),
    finetune: Callable[..., nn.Module] | None = None,
    loss: Loss | None = None,
    metrics: Callable[[nn.Module, str], dict[str, float]] | None = None,
) -> ModuleTarget:
    """Make a `Target` from any module whose forward maps a batch of `space` to logits.

    `data` is a `cambrian.data` Data (splits `train`, `valid`, `test`), or a dict of split name to `(inputs,
    labels)` tensors; `fields` name the inputs and labels in a batch, uint8 inputs are scaled to the space.
    `loss(module, x, y, meta) -> scalar` is the recipe's own training loss with its augmentation (default
    cross-entropy); `finetune(module, steps=..., constraint=..., ...)` replaces the whole fine-tuning loop;
    `metrics(module, split)` adds figures to `metric()`. A module without class logits (a discriminator) can be
    wrapped too: then `features` works and `logits` raises.
    """
    return ModuleTarget(
        module,
        space=space,
        classes=classes,
        data=data,
        fields=fields,
        finetune=finetune,
        loss=loss,
        metrics=metrics,
    )


class _Columns:
    """A split made of tensors by field."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise DataError(f"a split needs as many inputs as labels and at least one, got {sizes}")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def _splits(data: Any, fields: tuple[str, str]) -> dict[str, Any]:
    if data is None:
        return {}
    if isinstance(data, dict):
        return {
            name: _Columns(dict(zip(fields, pair, strict=True))) if isinstance(pair, tuple) else pair
            for name, pair in data.items()
        }
    found = {name: getattr(data, name, None) for name in SPLITS}
    return {name: split for name, split in found.items() if split is not None}
