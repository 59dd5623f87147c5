"""The base of every configuration class: fields that describe themselves, check themselves and are stored as JSON."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from msf.plain_values import checked_value, require


def described(default: Any, help_text: str | None, flag: str | None = None, *, is_stored: bool = True) -> Any:
    """Declare a field of a configuration.

    Args:
        default: Its default, which stands nowhere else.
        help_text: Text of its command-line flag; None: it has no flag.
        flag: Name of the flag where the field's name would not do.
        is_stored: Whether it belongs into a checkpoint; else it is the caller's, anew in every call.
    """
    return field(default=default, metadata={"help": help_text, "flag": flag, "is_stored": is_stored})


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of the configuration classes: every field holds a value of its type, numbers are finite."""

    def __post_init__(self) -> None:
        """Check every field by its type, then what belongs together."""
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            if hints[entry.name] is not Any:
                value = checked_value(entry.name, getattr(self, entry.name), hints[entry.name])
                object.__setattr__(self, entry.name, value)
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
        unknown = sorted(map(str, set(values) - known))
        require(not unknown, where, "made of " + ", ".join(sorted(known)), unknown)
        absent = [
            entry.name
            for entry in dataclasses.fields(cls)
            if entry.name not in values
            and entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
            and entry.init
        ]
        if absent and cls.__dataclass_params__.init:  # type: ignore[attr-defined]
            raise TypeError(f"{where} must have the fields {', '.join(absent)}")
        return cls(**{name: _read(name, value, hints[name]) for name, value in values.items()})


def _read(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Checked):
        return hint.from_dict(value, name)
    return tuple(value) if typing.get_origin(hint) is tuple and isinstance(value, list) else value
