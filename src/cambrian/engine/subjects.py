"""What a run gives the verbs to act on, so that verbs chain: the target of any run, of a verb's result too.

- a training run: its classifier;
- a result of compress: the same data, with the network of the encoded file;
- a result of attack: the same network, with the adversarial inputs in place of the split that was attacked;
- a result of explain: the same network and data, with the relevance that was found for each channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cambrian.codec import tensors
from cambrian.engine import own
from cambrian.engine.run import Run, find
from cambrian.errors import CapabilityError, CheckpointError, RunError
from cambrian.inspect import surgery
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import ModuleTarget

INPUTS, RELEVANCE = "inputs.safetensors", "relevance.safetensors"


def target_of(run: Run) -> ModuleTarget:
    """The target of a run. Raises `CapabilityError` when it has none, `CheckpointError` when a file is damaged."""
    verb = run.info.get("verb")
    if verb is None:
        return own.target_of(run) if run.spec.slug == own.SLUG else _trained(run)
    parent = target_of(_parent(run))
    if verb == "compress":
        return _compressed(run, parent)
    if verb == "attack":
        return _attacked(run, parent)
    path = run.artifacts / RELEVANCE
    parent.relevance = tensors.load(path) if path.exists() else None
    return parent


def _trained(run: Run) -> ModuleTarget:
    recipe: Any = run.recipe()
    for module in recipe.modules().values():
        module.eval()
    if not hasattr(recipe, "target"):
        raise CapabilityError(
            f"{run.spec.slug} trains no classifier; compress, explain and attack have nothing to act on"
        )
    return recipe.target()


def _parent(run: Run) -> Run:
    beside = run.path.parent / run.info["parent"]
    if (beside / "run.json").is_file():
        return Run(beside)
    try:
        return find(run.info["parent"])
    except RunError:
        raise RunError(f"run {run.id} came from {run.info['parent']}, which is no longer there") from None


def _compressed(run: Run, parent: ModuleTarget) -> ModuleTarget:
    name = run.info.get("file")
    if not name or not (run.path / name).is_file():
        raise CheckpointError(f"run {run.id} has no encoded file; compress the parent again")
    module = restore(parent, run.path / name)
    return parent.replaced(module, CompressionState.of_file(run.path / name, module))


def restore(parent: ModuleTarget, path: Path) -> Any:
    """The network of a `.cmb` file, from the network that was compressed; its layers may have become smaller."""
    return surgery.load(path, parent.module)


def _attacked(run: Run, parent: ModuleTarget) -> ModuleTarget:
    found = tensors.load(run.artifacts / INPUTS)
    meta = {name.removeprefix("meta."): value for name, value in found.items() if name.startswith("meta.")}
    return parent.with_split(str(run.info.get("split", "test")), found["x_adv"], found["y"], meta)


def inputs(x: Tensor, x_adv: Tensor, y: Tensor, meta: dict[str, Tensor]) -> bytes:
    """The file that an attack leaves: clean and adversarial inputs, labels, and what the data knew beside."""
    beside = {f"meta.{name}": value for name, value in meta.items() if len(value) == len(x)}
    return tensors.encode({"x": x, "x_adv": x_adv, "y": y, **beside})
