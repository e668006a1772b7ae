"""Nested state (`state_dict`s of modules, optimisers, buffers) as JSON plus named tensors, and back, without loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import CheckpointError

MAX_DEPTH = 64


def flatten(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A JSON tree in which `{"$tensor": name}` stands for each tensor, and the tensors by name."""
    tensors: dict[str, Tensor] = {}
    return _encode(value, "state", tensors), tensors


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`. Raises `CheckpointError` for anything that `flatten` does not write."""
    return _decode(tree, tensors, 0)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {"$tensor": path}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(np.ascontiguousarray(value))  # type: ignore[reportUnknownMemberType]
        return {"$array": path}
    if isinstance(value, np.generic):
        value = cast(Any, value.item())  # type: ignore[reportUnknownMemberType]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(v, f"{path}.{i}", tensors) for i, v in enumerate(cast(list[Any], value))]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        pairs = list(cast(Mapping[Any, Any], value).items())
        encoded = [(k, _encode(v, f"{path}.{_name(k)}", tensors)) for k, v in pairs]
        if all(isinstance(k, str) and not k.startswith("$") for k, _ in encoded):
            return dict(encoded)
        return {"$items": [[_encode(k, "", {}), v] for k, v in encoded]}
    raise TypeError(
        f"{path} holds a {type(value).__name__}, which a checkpoint cannot keep; give plain values or tensors"
    )


def _name(key: Any) -> str:
    return str(key).replace("/", "_").replace("..", "__")


def _decode(tree: Any, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CheckpointError("the state tree is nested too deeply")
    if isinstance(tree, list):
        return [_decode(item, tensors, depth + 1) for item in cast(list[Any], tree)]
    if not isinstance(tree, dict):
        return tree
    node = cast(dict[str, Any], tree)
    tag = next((k for k in node if k.startswith("$")), None)
    if tag is None:
        return {key: _decode(item, tensors, depth + 1) for key, item in node.items()}
    return _decode_tagged(tag, node, tensors, depth)


def _decode_tagged(tag: str, node: dict[str, Any], tensors: Mapping[str, Tensor], depth: int) -> Any:
    content = node[tag]
    if len(node) == 1:
        if tag in ("$tensor", "$array") and isinstance(content, str) and content in tensors:
            return tensors[content] if tag == "$tensor" else tensors[content].numpy()
        if tag == "$float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "$tuple" and isinstance(content, list):
            return tuple(_decode(item, tensors, depth + 1) for item in cast(list[Any], content))
        if tag == "$items" and isinstance(content, list):
            pairs = cast(list[Any], content)
            if all(isinstance(pair, list) and len(cast(list[Any], pair)) == 2 for pair in pairs):
                return {_decode(k, tensors, depth + 1): _decode(v, tensors, depth + 1) for k, v in pairs}
    raise CheckpointError(f"the state tree holds {tag!r} in a form that Cambrian does not write")
