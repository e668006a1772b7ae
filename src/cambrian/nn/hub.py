"""Saving and loading models in the Hub's file layout: config.json, model.safetensors and a card, README.md."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cambrian.codec import files, tensors
from cambrian.errors import CheckpointError, ConfigError


class Pretrained:
    """Mixin for an `nn.Module` whose constructor takes keyword arguments with JSON values.

    `save_pretrained` writes the arguments and the weights; `from_pretrained` builds the same class and loads them. Nothing in the
    folder names code: the class is the one that `from_pretrained` is called on.
    """

    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> Path:
        """Write the model into `folder`; `card` is the README's Markdown (default: the class docstring). Returns the folder."""
        assert isinstance(self, nn.Module)
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
            config = {"architecture": type(self).__name__, "arguments": _to_json(self._arguments)}
            files.replace_json(place / "config.json", config)
            files.replace_bytes(place / "model.safetensors", tensors.encode(self.state_dict()))
            text = card or f"# {type(self).__name__}\n\n{inspect.getdoc(type(self)) or ''}\n"
            files.replace_bytes(place / "README.md", text.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write the model to {place}: {error.strerror or error}") from None
        return place

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Load what `save_pretrained` wrote. Raises `CheckpointError` for damaged files or another model's weights."""
        place = Path(folder)
        if not (place / "config.json").is_file():
            raise CheckpointError(f"{place} holds no config.json; give a folder written by save_pretrained")
        config = files.load_json(place / "config.json")
        if not isinstance(config, dict) or config.get("architecture") != cls.__name__:
            found = config.get("architecture") if isinstance(config, dict) else config
            raise CheckpointError(f"{place} holds a {found!r}, not a {cls.__name__}")
        allowed = set(inspect.signature(cls).parameters)
        arguments = config.get("arguments")
        if not isinstance(arguments, dict) or not set(arguments) <= allowed:
            raise CheckpointError(f"{place / 'config.json'} has arguments that {cls.__name__} does not take")
        try:
            model = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{place / 'config.json'} does not build a {cls.__name__}: {error}") from None
        assert isinstance(model, nn.Module)
        load_weights(model, tensors.load(place / "model.safetensors"), str(place))
        model.to(device)
        model.eval()
        return model


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load a state dict whose names, shapes and types all fit. Raises `CheckpointError` naming the first that does not."""
    own = model.state_dict()
    for name in sorted(set(own) ^ set(weights)):
        raise CheckpointError(f"{origin}: tensor {name!r} is {'missing' if name in own else 'not part of this model'}")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape or tensor.dtype != weights[name].dtype:
            raise CheckpointError(
                f"{origin}: {name} is {weights[name].dtype} {list(weights[name].shape)}, the model has {tensor.dtype} {list(tensor.shape)}"
            )
    model.load_state_dict(weights)


def _remembering(init: Any) -> Any:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_arguments" not in vars(self):
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            found = dict(list(bound.arguments.items())[1:])
            object.__setattr__(self, "_arguments", found)
        init(self, *args, **kwargs)

    return wrapped


def _to_json(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError):
        bad = [
            k for k, v in arguments.items() if not isinstance(v, (str, int, float, bool, list, tuple, dict, type(None)))
        ]
        raise ConfigError(f"this model cannot be saved: arguments {bad} are not plain values") from None
