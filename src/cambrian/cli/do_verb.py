"""Run an action of a trained run's system: 'cambrian do last interpolate --n 8'. 'cambrian show SLUG' lists the actions."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from cambrian.cli.console import json_option, print_json
from cambrian.cli.sample_verb import save
from cambrian.errors import CapabilityError, ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the action and its fields."""
    parser.add_argument("run")
    parser.add_argument("action")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the run's artifacts)")
    json_option(parser)
    parser.add_argument("fields", nargs=argparse.REMAINDER, help="--field value ...")


def parse_fields(function: Any, words: list[str]) -> dict[str, Any]:
    """`--field value` pairs, typed by the action's signature. Raises `ConfigError`."""
    from typing import get_type_hints

    from cambrian.engine.config import nearest, parse_value

    kinds = get_type_hints(function)
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    fields: dict[str, Any] = {}
    pending = list(words)
    while pending:
        word = pending.pop(0)
        name, joined, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in known:
            raise ConfigError(f"unknown field {word!r}{nearest(name, known)}; fields: {', '.join(known)}")
        if not joined:
            if not pending:
                raise ConfigError(f"field --{name} needs a value")
            value = pending.pop(0)
        fields[name] = parse_value(name, value, kinds.get(name, str))
    return fields


def run(args: argparse.Namespace) -> int:
    """Run the action; print its result or the files that show it."""
    from cambrian.engine import registry
    from cambrian.engine.config import nearest
    from cambrian.engine.recipe import actions
    from cambrian.engine.run import find
    from cambrian.engine.samples import Sample

    words = list(args.fields)
    as_json = args.json or "--json" in words
    words = [w for w in words if w != "--json"]
    out = args.out
    if "--out" in words:
        at = words.index("--out")
        out = Path(words[at + 1])
        del words[at : at + 2]
    found = find(args.run)
    known = actions(registry.load(found.spec.slug, "recipe"))
    name = args.action.replace("-", "_")
    if name not in known:
        raise CapabilityError(f"{found.spec.slug} has no action {name!r}{nearest(name, list(known))}; it has: {', '.join(known) or 'none'}")  # fmt: skip
    result = found.do(name, **parse_fields(known[name], words))
    if isinstance(result, Sample):
        stem = re.sub(r"[^a-z0-9]+", "-", name)
        paths = save(result, out or found.artifacts, stem)
        result = {"run": found.id, "action": name, "files": [str(p) for p in paths]}
        if not as_json:
            print("\n".join(map(str, paths)))
            return 0
    print_json(result)
    return 0
