"""Checks of plain values, as configurations and files hold them, against type hints; messages of one bounded line."""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

MOST_ENTRIES = 2**16  # of a list

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 2, 8, 8, 4
_REPR.maxstring, _REPR.maxother, _REPR.maxlong = 80, 80, 40


def shown(value: object) -> str:
    """Return a value's `repr` for a message, shortened where it is long or deep."""
    try:
        return _REPR.repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return f"a {type(value).__name__} of too many digits"


def shown_names(names: Iterable[object], limit: int) -> str:
    """Return names from a file for a message, separated by commas: the first few, each on one short line."""
    texts = [str(name) for name in names]
    listed = [text if text.isprintable() and len(text) <= _REPR.maxstring else shown(text) for text in texts[:limit]]
    return ", ".join(listed) + (", ..." if len(texts) > limit else "")


def told_apart(names: Sequence[str], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Return names, with their number behind those that occur twice or are taken: `x (2)`, `x (3)`."""
    is_single = [names.count(name) == 1 and name not in taken for name in names]
    return tuple(
        name if single else f"{name} ({number})"
        for number, (name, single) in enumerate(zip(names, is_single, strict=True))
    )


def require(is_met: bool, name: str, wanted: str, got: object) -> None:
    """Raise ValueError unless a condition is met; the text names what was wanted and what came."""
    if not is_met:
        raise ValueError(f"{name} must be {wanted}; got {shown(got)}")


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """Return a value that fits the type hint of its field; NumPy's scalars become Python's numbers.

    Args:
        name: Of the field.
        value: What came.
        hint: A plain type, a `Literal` of strings, `tuple[X, ...]`, or `X | None`. Whole numbers serve as numbers,
            bools do not.

    Raises:
        TypeError: Another type.
        ValueError: A name that is not among the known ones, a number that is not finite or a whole number beyond
            64 bits, or a list of more than `MOST_ENTRIES`.
    """
    base = optional_base(hint)
    if value is None and base is not hint:
        return None
    if typing.get_origin(base) is Literal:
        known = typing.get_args(base)
        require(isinstance(value, str) and value in known, name, "one of " + ", ".join(known), value)
    elif typing.get_origin(base) is tuple:
        if not isinstance(value, tuple):
            raise TypeError(f"{name} must be a list; got {shown(value)}")
        require(len(value) <= MOST_ENTRIES, name, f"a list of at most {MOST_ENTRIES} entries", value)
        return tuple(checked_value(name, entry, typing.get_args(base)[0]) for entry in value)
    elif base in (int, float):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number; got {shown(value)}")
        if base is int and not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be a whole number; got {shown(value)}")
        number: Any = value
        require(-math.inf < number < math.inf, name, "finite", value)
        if not isinstance(value, numbers.Integral):
            return float(number)
        require(-(2**63) < number < 2**63, name, "below 2^63", value)
        return int(number)
    elif not isinstance(value, base):
        wanted = "a mapping of fields" if dataclasses.is_dataclass(base) else f"a {base.__name__}"
        raise TypeError(f"{name} must be {wanted}; got {shown(value)}")
    return value


def optional_base(hint: Any) -> Any:
    """Return `X` for the type hint `X | None`, and the hint itself otherwise."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint
