"""`--with slug:option=value,...`: methods by name, with typed options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cambrian.engine import registry
from cambrian.engine.config import override, parse_settings, to_json
from cambrian.engine.recipe import config_type


def parse(text: str, role: str) -> Any:
    """One method of `role` from its text, e.g. `gradient-noise:eta=0.01,order=clip-then-noise`. Raises `ConfigError`."""
    slug, _, settings = text.partition(":")
    cls = registry.load(slug.strip(), role)
    # a comma separates options only where a name and = follow, so that values may be lists
    pairs = re.split(r",(?=\s*[A-Za-z_][\w-]*=)", settings) if settings.strip() else []
    return cls(override(config_type(cls)(), parse_settings(pairs)))


def parse_all(texts: Sequence[str], role: str) -> list[Any]:
    """Several methods, in order; a comma-separated list of names without options is split too."""
    flat = [
        part for text in texts for part in (re.split(r",(?![^,]*=)", text) if "=" not in text else _split_chain(text))
    ]
    return [parse(part, role) for part in flat if part.strip()]


def _split_chain(text: str) -> list[str]:
    """Split `a:x=1,b:y=2` before each `name:` and each bare slug, but not inside a method's options."""
    return re.split(r",(?=[a-z][a-z0-9-]*(?::|,|$))", text)


def describe(methods: Sequence[Any]) -> list[str]:
    """Canonical texts, as stored in a run: every option written out."""
    out: list[str] = []
    for method in methods:
        out.append(text_of(method.slug, to_json(method.options)))
    return out


def text_of(slug: str, settings: Mapping[str, Any]) -> str:
    """A method and its options as `--with` takes them."""
    body = ",".join(f"{name}={_text(value)}" for name, value in settings.items())
    return f"{slug}:{body}" if body else slug


def _text(value: Any) -> str:
    return "(" + ";".join(map(str, value)) + ")" if isinstance(value, (list, tuple)) else str(value)  # type: ignore[reportUnknownArgumentType]
