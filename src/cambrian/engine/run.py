"""A run: a directory with everything that a training produced, and the ways to use it afterwards."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from cambrian.codec import files
from cambrian.data.source import resolve
from cambrian.engine import devices, methods, registry
from cambrian.engine.checkpoint import Checkpoints
from cambrian.engine.config import from_json, nearest, to_json
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.recipe import Recipe, SingleProcess, actions, config_type
from cambrian.engine.samples import Sample
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, DataError, RunError
from cambrian.nn.hub import Pretrained


def runs_root() -> Path:
    """Where runs live: `$CAMBRIAN_RUNS`, or `runs` in the working directory."""
    return Path(os.environ.get("CAMBRIAN_RUNS", "runs"))


@dataclass(frozen=True)
class RunSpec:
    """What determines a run: system, configuration, seed, data and methods."""

    slug: str
    config: dict[str, Any]
    preset: str = "laptop"
    seed: int = 0
    data: str | None = None
    methods: list[str] = field(default_factory=list[str])
    precision: str = "fp32"
    device: str = "cpu"

    def make(
        self, *, device: torch.device | None = None, world: SingleProcess | None = None, config: Any = None
    ) -> Recipe[Any]:
        """A fresh recipe as specified."""
        cls = registry.load(self.slug, "recipe")
        made = config if config is not None else cast(Any, from_json(config_type(cls), self.config))
        data = cls.load_data(made, resolve(self.data, cls.default_data))
        chosen = device if device is not None else devices.pick(self.device)
        ways = methods.parse_all(self.methods, "training-method")
        recipe = cls(made, data=data, seed=self.seed, device=chosen, methods=ways, world=world)
        for module in recipe.modules().values():
            module.to(chosen)
        return recipe


class Run:
    """A run on disk: `config.json`, `run.json`, `metrics.jsonl`, `checkpoints/`, `artifacts/`, `report.html`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        info = files.load_json(path / "run.json")
        config = files.load_json(path / "config.json")
        try:
            keys = {k: info[k] for k in ("slug", "preset", "seed", "data", "methods", "precision", "device")}
            self.spec = RunSpec(config=dict(config), **keys)
            self.info: dict[str, Any] = info
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path / 'run.json'} is not a run that Cambrian wrote: {error}") from None
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._recipe: Recipe[Any] | None = None

    @classmethod
    def create(cls, spec: RunSpec, *, root: Path | None = None, extra: Mapping[str, Any] | None = None) -> Run:
        """Make the directory of a new run. Raises `RunError` when it cannot be written."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path = (root or runs_root()) / spec.slug / f"{stamp}-{secrets.token_hex(2)}"
        values = {k: v for k, v in asdict(spec).items() if k != "config"}
        info = {
            **values,
            "status": "new",
            "created": stamp,
            "versions": versions(),
            "commit": commit(),
            **(extra or {}),
        }
        try:
            (path / "artifacts").mkdir(parents=True)
            files.replace_json(path / "config.json", spec.config)
            files.replace_json(path / "run.json", info)
        except OSError as error:
            raise RunError(
                f"cannot write a run under {path.parent}: {error.strerror or error}; set CAMBRIAN_RUNS"
            ) from None
        return cls(path)

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def artifacts(self) -> Path:
        """Where samples and encoded files go."""
        return self.path / "artifacts"

    def update(self, **values: Any) -> None:
        """Change fields of `run.json` atomically."""
        self.info = {**self.info, **values}
        files.replace_json(self.path / "run.json", self.info)

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the run for writing. Raises `RunError` when another process does."""
        with (self.path / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"run {self.id} is being written by another process; wait for it or stop it first"
                ) from None
            yield

    def metrics(self) -> list[dict[str, Any]]:
        """The logged records, in order of steps; a line cut off by a crash is skipped."""
        path = self.path / "metrics.jsonl"
        records: list[dict[str, Any]] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def recipe(self, step: int | None = None) -> Recipe[Any]:
        """The trained recipe, from the newest whole checkpoint (or that of `step`)."""
        if self._recipe is None or step is not None:
            loop = self.restore(step=step)
            self._recipe = loop.recipe
        return self._recipe

    def restore(
        self, *, step: int | None = None, device: torch.device | None = None, world: SingleProcess | None = None
    ) -> Loop:
        """The training loop as it stood at a checkpoint. Raises `CheckpointError` or `DataError`."""
        if self.spec.slug not in registry.cards() or "recipe" not in registry.card(self.spec.slug).roles:
            raise RunError(f"run {self.id} is a {self.info.get('verb', self.spec.slug)} result, not a trained recipe")
        state = self.checkpoints.load(step) if step is not None else self.checkpoints.latest()[1]
        recipe = self.spec.make(device=device, world=world)
        print_seen = self.info.get("fingerprint")
        if print_seen is not None and recipe.data.fingerprint() != print_seen:
            raise DataError(f"the data of run {self.id} ({recipe.data.source}) has changed since it was trained")
        loop = Loop(recipe, precision=self.spec.precision)
        try:
            loop.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"the checkpoint of run {self.id} does not fit {self.spec.slug}: {reason}") from None
        return loop

    def evaluate(self, split: str = "test", *, data: str | os.PathLike[str] | None = None) -> dict[str, float]:
        """Figures on `split` of the run's data, or of other data of the same kind and shape."""
        recipe = self.recipe()
        if data is not None:
            own = recipe.data
            recipe.data = recipe.load_data(recipe.config, resolve(data, recipe.default_data))
            try:
                return evaluate(recipe, split)
            finally:
                recipe.data = own
        return evaluate(recipe, split)

    def sample(self, n: int = 16, *, seed: int = 0) -> Sample:
        """`n` samples of the trained model."""
        recipe = self.recipe()
        if n < 1:
            raise ConfigError(f"the number of samples must be at least 1, not {n}")
        with inference(recipe, seed) as generator:
            return recipe.sample(n, generator)

    def do(self, name: str, **fields: Any) -> Any:
        """Run an action of the system: `run.do("interpolate", n=8)`."""
        recipe = self.recipe()
        known = actions(type(recipe))
        name = name.replace("-", "_")
        if name not in known:
            raise CapabilityError(
                f"{self.spec.slug} has no action {name!r}{nearest(name, list(known))}; it has: {', '.join(known) or 'none'}"
            )
        with inference(recipe, int(fields.get("seed", 0) or 0)):
            return known[name](recipe, **fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "spec" not in self.__dict__:
            raise AttributeError(name)
        if name in registry.card(self.spec.slug).actions:
            return lambda **fields: self.do(name, **fields)  # type: ignore[reportUnknownLambdaType]
        raise AttributeError(f"a run of {self.spec.slug} has neither attribute nor action {name!r}")

    def target(self) -> Any:
        """The trained classifier, as compress, explain and attack take it; of a verb's result, what that verb left."""
        from cambrian.engine.subjects import target_of

        return target_of(self)

    def save_pretrained(self, folder: str | os.PathLike[str], network: str | None = None) -> Path:
        """Export a network in the Hub's layout, with a card that tells the run's figures and the measured claim.

        `network` is the recipe's attribute (default: its first). Raises `CapabilityError` for an unknown one.
        """
        from cambrian.engine.model_card import model_card

        found = {name: part for name, part in self.recipe().modules().items() if isinstance(part, Pretrained)}
        chosen = network or next(iter(found), "")
        if chosen not in found:
            raise CapabilityError(
                f"{self.spec.slug} has no network {chosen!r} to export; it has: {', '.join(found) or 'none'}"
            )
        return found[chosen].save_pretrained(Path(folder), card=model_card(self.spec.slug, self.info, self.spec.config))

    def __repr__(self) -> str:
        return f"Run({self.spec.slug}/{self.id}, {self.info['status']})"


def find(name: str | os.PathLike[str]) -> Run:
    """A run by path, id, unique prefix of an id, or `last`. Raises `RunError`."""
    path = Path(name)
    if (path / "run.json").is_file():
        return Run(path)
    everything = all_paths()
    if str(name) == "last" and everything:
        return Run(everything[-1])
    matches = [p for p in everything if p.name == str(name)] or [p for p in everything if p.name.startswith(str(name))]
    if len(matches) == 1:
        return Run(matches[0])
    if matches:
        raise RunError(
            f"{str(name)!r} names {len(matches)} runs: {', '.join(p.name for p in matches[:5])}; give more of the id"
        )
    raise RunError(f"no run {str(name)!r} under {runs_root()}{nearest(str(name), [p.name for p in everything])}; see 'cambrian runs'")  # fmt: skip


def all_paths(root: Path | None = None) -> list[Path]:
    """Every run directory, oldest first."""
    base = root or runs_root()
    found = [p.parent for p in base.glob("*/*/run.json") if not p.parent.name.startswith(".")]
    return sorted(found, key=_age)


def _age(path: Path) -> tuple[str, int, str]:
    """Orders runs by the second in their id, then by when their configuration was written (once, at the start)."""
    with contextlib.suppress(OSError):
        return path.name[:15], (path / "config.json").stat().st_mtime_ns, path.name
    return path.name[:15], 0, path.name


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    from cambrian import __version__

    return {"cambrian": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def commit() -> str | None:
    """The git commit of the package's own checkout, if it is one."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return found.stdout.strip() or None
    return None


def spec_for(
    slug: str,
    *,
    preset: str = "laptop",
    seed: int = 0,
    data: str | os.PathLike[str] | None = None,
    with_: Sequence[str] = (),
    precision: str = "fp32",
    device: str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> tuple[RunSpec, Any]:
    """The specification of a run and its configuration, from what a user says. Raises `ConfigError`."""
    from cambrian.engine.config import override

    cls = registry.load(slug, "recipe")
    if preset not in cls.presets:
        raise ConfigError(f"{slug} has no preset {preset!r}; presets: {', '.join(cls.presets)}")
    config = override(cls.presets[preset], settings or {})
    ways = methods.describe(methods.parse_all(list(with_), "training-method"))
    path = None if data is None else str(Path(data).resolve()) if Path(data).exists() else str(data)
    return RunSpec(cls.slug, to_json(config), preset, seed, path, ways, precision, str(device)), config
