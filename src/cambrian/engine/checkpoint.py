"""Checkpoints: safetensors and JSON, complete or absent, checked by hash.

`checkpoints/step-00000100/` holds `tensors.safetensors`, `state.json` and `manifest.json` (sizes and SHA-256 of both).
The folder is written under a temporary name, fsynced, and renamed: a crash leaves the previous checkpoints as they were.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.codec import files, tensors
from cambrian.engine import state as trees
from cambrian.errors import CheckpointError, NonFiniteError

FORMAT = 1
_STEP = re.compile(r"step-(\d{8})")
_PARTS = ("tensors.safetensors", "state.json")


class Checkpoints:
    """The checkpoints of one run, newest last; at most `keep` are kept."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps at which a checkpoint folder stands (its content is checked on loading)."""
        if not self.directory.is_dir():
            return []
        return sorted(int(m[1]) for p in self.directory.iterdir() if (m := _STEP.fullmatch(p.name)) and p.is_dir())

    def path(self, step: int) -> Path:
        """The folder of the checkpoint at `step`."""
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`. Raises `NonFiniteError` rather than keep a state with NaN parameters."""
        tree, named = trees.flatten(state)
        bad = tensors.first_non_finite({k: t for k, t in named.items() if k.startswith("state.recipe.parts")})
        if bad is not None:
            raise NonFiniteError(
                f"{bad.removeprefix('state.recipe.parts.')} holds NaN or infinity at step {step}; this state was not saved, the "
                "last checkpoint is intact; lower the learning rate or clip gradients, then resume"
            )
        payloads = dict(zip(_PARTS, (tensors.encode(named), files.dump_json(tree)), strict=True))
        sums = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in payloads.items()
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        beside = self.directory / f".step-{step:08d}.{os.getpid()}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            for name, data in payloads.items():
                files.write_bytes(beside / name, data)
            files.write_bytes(
                beside / "manifest.json", files.dump_json({"format": FORMAT, "step": step, "files": sums})
            )
            files.fsync_directory(beside)
            self._put(beside, self.path(step))
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {error.strerror or error}; "
                "earlier checkpoints are intact"
            ) from error
        self._retire()
        return self.path(step)

    def _put(self, beside: Path, final: Path) -> None:
        if final.exists():
            aside = final.with_name(f".{final.name}.old.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
            os.rename(beside, final)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(beside, final)
        files.fsync_directory(self.directory)

    def _retire(self) -> None:
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(step), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed writer left behind; call it while holding the run's lock."""
        if self.directory.is_dir():
            for path in self.directory.glob(".*.tmp"):
                old = _STEP.search(path.name)
                if path.name.endswith(".old.tmp") and old and not self.path(int(old[1])).exists():
                    os.rename(path, self.path(int(old[1])))
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def load(self, step: int) -> dict[str, Any]:
        """The state saved at `step`. Raises `CheckpointError` when anything differs from what was written."""
        folder = self.path(step)
        manifest = files.load_json(folder / "manifest.json")
        try:
            if manifest["format"] != FORMAT or manifest["step"] != step:
                raise CheckpointError(f"{folder} is of checkpoint format {manifest['format']}, step {manifest['step']}")
            for name in _PARTS:
                self._verify(folder / name, manifest["files"][name])
        except (KeyError, TypeError):
            raise CheckpointError(f"{folder / 'manifest.json'} is malformed") from None
        tree = files.load_json(folder / "state.json", limit=1 << 30)
        return trees.unflatten(tree, tensors.load(folder / "tensors.safetensors"))

    @staticmethod
    def _verify(path: Path, entry: Mapping[str, Any]) -> None:
        try:
            if path.stat().st_size != entry["bytes"]:
                raise CheckpointError(
                    f"{path} is truncated or altered: {path.stat().st_size} of {entry['bytes']} bytes"
                )
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        if digest != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum differs from the manifest")

    def latest(self) -> tuple[int, dict[str, Any]]:
        """The newest checkpoint that is whole: (step, state). Raises `CheckpointError` when there is none."""
        reasons: list[str] = []
        for step in reversed(self.steps()):
            try:
                return step, self.load(step)
            except CheckpointError as error:
                reasons.append(str(error))
        raise CheckpointError(reasons[0] if reasons else f"no checkpoint under {self.directory}")
