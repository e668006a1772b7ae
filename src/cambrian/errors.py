"""The errors a user can meet: one sentence each, with what was wrong, the value seen and what to do."""

from __future__ import annotations


class CambrianError(Exception):
    """Base of every error that Cambrian raises on purpose; the command line prints it without a traceback."""


class ConfigError(CambrianError, ValueError):
    """A configuration value, preset, method or slug is unknown or out of range."""


class DataError(CambrianError, ValueError):
    """Data on disk or handed in cannot be used; the message names the record."""


class ShapeError(CambrianError, ValueError):
    """A tensor handed to a model has the wrong rank, size, type or range."""


class CheckpointError(CambrianError):
    """A checkpoint or weight file is damaged, hostile or of another model."""


class RunError(CambrianError):
    """A run cannot be found, is in use by another process, or is not in the state that the verb needs."""


class NonFiniteError(CambrianError, ArithmeticError):
    """A loss, gradient or parameter became NaN or infinite; training stopped."""


class CapabilityError(CambrianError, TypeError):
    """A verb or method was applied to a system that does not offer what it needs."""


class MissingExtraError(CambrianError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed for this and is not installed; run: pip install 'cambrian[{extra}]'")
