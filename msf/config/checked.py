"""The base of every configuration class: fields that describe themselves, check themselves and are stored as JSON."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self


def described(default: Any, help_text: str | None, flag: str | None = None, *, is_stored: bool = True) -> Any:
    """Declare a field of a configuration.

    Args:
        default: Its default, which stands nowhere else.
        help_text: Text of its command-line flag; None: it has no flag.
        flag: Name of the flag where the field's name would not do.
        is_stored: Whether it belongs into a checkpoint; else it is the caller's, anew in every call.
    """
    return field(default=default, metadata={"help": help_text, "flag": flag, "is_stored": is_stored})


def require(is_met: bool, name: str, wanted: str, got: object) -> None:
    """Raise ValueError in the project's form unless the condition is met."""
    if not is_met:
        raise ValueError(f"{name} must be {wanted}; got {got!r}")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of the configuration classes: literal fields hold a known name, numbers are finite.

    numpy's scalars are taken as the numbers that they are.
    """

    def __post_init__(self) -> None:
        """Check every field by its type, then what belongs together."""
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            hint = hints[entry.name]
            if value is not None or optional_base(hint) is hint:
                object.__setattr__(self, entry.name, _checked(entry.name, value, optional_base(hint)))
        self._check()

    def _check(self) -> None:
        """Check ranges and combinations; overridden by the classes that have any."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as stored in `config.json`."""
        return {
            entry.name: value.to_dict() if isinstance(value := getattr(self, entry.name), Checked) else value
            for entry in dataclasses.fields(self)
            if entry.metadata.get("is_stored", True)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build from nested plain values; missing fields take their defaults.

        Args:
            values: Field names and values.
            where: Name of the whole, for messages.

        Raises:
            ValueError: Unknown fields (the text lists the known ones) or values out of range.
            TypeError: A value of the wrong type, or a field without default that is missing.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"{where} must be a mapping of fields; got {type(values).__name__}")
        hints = typing.get_type_hints(cls)
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, where, "made of " + ", ".join(sorted(known)), unknown)
        return cls(**{name: _read(name, value, hints[name]) for name, value in values.items()})


def _checked(name: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        known = typing.get_args(hint)
        require(value in known, name, "one of " + ", ".join(known), value)
    elif hint is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool; got {value!r}")
    elif hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number; got {value!r}")
        if hint is int and not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be a whole number; got {value!r}")
        require(math.isfinite(value), name, "finite", value)
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def _read(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Checked):
        return hint.from_dict(value, name)
    return tuple(value) if typing.get_origin(hint) is tuple and isinstance(value, list) else value


def optional_base(hint: Any) -> Any:
    """Return `X` for the type hint `X | None`, and the hint itself otherwise."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint
