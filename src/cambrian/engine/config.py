"""Configurations: frozen dataclasses whose fields are typed, documented, checked, and set from text.

A configuration holds plain values only: no class paths, no callables, so that a file which carries one can name no code.
"""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from cambrian.errors import ConfigError

C = TypeVar("C")
T = TypeVar("T")


def option(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[T] | None = None,
) -> T:
    """A field of a configuration: its default, its one-line help and the values it takes (`low` and `high` are inclusive)."""
    metadata = {"help": help, "low": low, "high": high, "choices": tuple(choices) if choices else None}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True)
def config(cls: type[C]) -> type[C]:
    """Make `cls` a frozen dataclass that checks types and ranges on construction, then calls its `check()` if it has one.

    Raises `ConfigError` from the constructor.
    """

    def __post_init__(self: Any) -> None:
        kinds = hints(cls)
        for item in dataclasses.fields(self):
            value = _coerce(item, getattr(self, item.name), kinds[item.name])
            object.__setattr__(self, item.name, value)
        check = getattr(self, "check", None)
        if check is not None:
            check()

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True)(cls)
    for item in dataclasses.fields(made):  # type: ignore[arg-type]
        if "help" not in item.metadata:
            raise TypeError(f"{cls.__name__}.{item.name} must be declared with option(default, help)")
        if item.name == "check":
            raise TypeError(f"{cls.__name__}: no option may be called check, which is the method for conditions")
    return made


_HINTS: dict[type, dict[str, Any]] = {}


def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a configuration class."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def _union_members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    if kind is type(None):
        return value is None
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            _fits(v, get_args(kind)[0]) for v in typing.cast(tuple[Any, ...], value)
        )
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, kind)


def type_name(kind: Any) -> str:
    """`int`, `float | None`, `tuple[int, ...]` and so on, as help and errors show it."""
    return " | ".join("None" if k is type(None) else getattr(k, "__name__", str(k)) if get_origin(k) is None else str(k)
                      for k in _union_members(kind))  # fmt: skip


def _coerce(item: dataclasses.Field[Any], value: Any, kind: Any) -> Any:
    members = _union_members(kind)
    if isinstance(value, list):
        value = tuple(typing.cast(list[Any], value))
    if isinstance(value, int) and not isinstance(value, bool) and float in members and int not in members:
        value = float(value)
    if any(get_origin(k) is tuple and get_args(k)[0] is float for k in members) and isinstance(value, tuple):
        value = tuple(float(v) if isinstance(v, int) else v for v in typing.cast(tuple[Any, ...], value))
    if not any(_fits(value, k) for k in members):
        raise ConfigError(f"{item.name} must be {type_name(kind)}, not {value!r}")
    members_of_value = typing.cast(tuple[Any, ...], value if isinstance(value, tuple) else (value,))
    for number in members_of_value:
        _check_range(item, number)
    return typing.cast(Any, value)


def _check_range(item: dataclasses.Field[Any], value: Any) -> None:
    low, high, choices = (item.metadata.get(k) for k in ("low", "high", "choices"))
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{item.name} must be a number, not nan")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low is not None and value < low:
            raise ConfigError(f"{item.name} must be at least {low}, not {value}")
        if high is not None and value > high:
            raise ConfigError(f"{item.name} must be at most {high}, not {value}")
    if choices and value not in choices and value is not None:
        near = nearest(str(value), [str(c) for c in choices])
        raise ConfigError(f"{item.name} must be one of {', '.join(map(str, choices))}, not {value!r}{near}")


def nearest(name: str, known: Sequence[str]) -> str:
    """` (did you mean X?)` for a misspelt name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def parse_value(name: str, text: str, kind: Any) -> Any:
    """Read the text of `--set name=text` as the field's type. Floats may be fractions such as `8/255`."""
    for member in _union_members(kind):
        try:
            return _PARSERS.get(member, _parse_tuple)(text, member)
        except (ValueError, ZeroDivisionError):
            continue
    raise ConfigError(f"{name} must be {type_name(kind)}, not {text!r}")


def _parse_bool(text: str, _: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _parse_float(text: str, _: Any) -> float:
    return float(fractions.Fraction(text)) if "/" in text else float(text)


def _parse_none(text: str, _: Any) -> None:
    if text.lower() not in ("none", "null"):
        raise ValueError(text)


def _parse_tuple(text: str, kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is not tuple:
        raise ValueError(text)
    inner = get_args(kind)[0]
    parts = [p for p in text.strip("()[] ").replace(";", ",").split(",") if p.strip()]
    return tuple(_PARSERS[inner](part.strip(), inner) for part in parts)


_PARSERS: dict[Any, Callable[[str, Any], Any]] = {
    bool: _parse_bool,
    int: lambda text, _: int(text.replace("_", "")),
    float: _parse_float,
    str: lambda text, _: text,
    type(None): _parse_none,
}


def known_field(cls: type, name: str) -> str:
    """`name` if `cls` has that field; `ConfigError` with the nearest field otherwise. Hyphens read as underscores."""
    names = [f.name for f in dataclasses.fields(cls)]
    name = name.replace("-", "_")
    if name not in names:
        raise ConfigError(f"unknown field {name!r}{nearest(name, names)}; fields: {', '.join(names)}")
    return name


def override(base: C, settings: Mapping[str, Any]) -> C:
    """`base` with fields replaced; text values are parsed by the field's type. Raises `ConfigError`."""
    cls = type(base)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        name = known_field(cls, key)
        kind = hints(cls)[name]
        if isinstance(value, str) and str not in _union_members(kind):
            value = parse_value(name, value, kind)
        values[name] = value
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """`["a=1", "b=2"]` as a dict; `ConfigError` for a pair without `=`."""
    out: dict[str, str] = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name.strip():
            raise ConfigError(f"write a setting as name=value, not {pair!r}")
        out[name.strip()] = value
    return out


def to_json(value: Any) -> dict[str, Any]:
    """A configuration as a JSON object (tuples become lists)."""
    return {f.name: _listed(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _listed(value: Any) -> Any:
    return list(typing.cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value


def from_json(cls: type[C], values: Mapping[str, Any]) -> C:
    """Read what `to_json` wrote; unknown names and wrong types are `ConfigError`."""
    return cls(**{known_field(cls, name): value for name, value in values.items()})


def describe(cls: type) -> list[dict[str, Any]]:
    """One row per field: name, type, default, allowed values, help."""
    rows: list[dict[str, Any]] = []
    for item in dataclasses.fields(cls):
        meta = item.metadata
        limits = [f">= {meta['low']}"] if meta["low"] is not None else []
        limits += [f"<= {meta['high']}"] if meta["high"] is not None else []
        limits += ["one of " + ", ".join(map(str, meta["choices"]))] if meta["choices"] else []
        kind = type_name(hints(cls)[item.name])
        rows.append({"name": item.name, "type": kind, "default": item.default, "allowed": " ".join(limits), "help": meta["help"]})  # fmt: skip
    return rows
