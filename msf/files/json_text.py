"""JSON from a file that anybody may have written: bounded in size and depth, plain finite values only."""

from __future__ import annotations

import json
from typing import Any

MAX_JSON_BYTES = 2**24
MAX_DEPTH = 64
_MAX_DIGITS = 40


def parse_json(text: str | bytes, where: str, wanted: str) -> Any:
    """Return the content of a JSON text.

    Args:
        text: The text; bytes are UTF-8, UTF-16 or UTF-32.
        where: Name of the file, for the message.
        wanted: What it must hold, for the message.

    Raises:
        ValueError: No JSON, larger than `MAX_JSON_BYTES`, nested deeper than `MAX_DEPTH`, numbers that are not finite
            or have more than 40 digits, or text that is not Unicode.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{where} must hold {wanted}; got {len(text)} bytes, where {MAX_JSON_BYTES} are read")
    try:
        content = json.loads(text, parse_int=_whole_number, parse_float=_number, parse_constant=_number)
        _check(content)
    except RecursionError:
        raise ValueError(f"{where} must hold {wanted}; got values nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:  # JSON or Unicode
        raise ValueError(f"{where} must hold {wanted}; got: {error}") from error
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if not -float("inf") < value < float("inf"):
        raise ValueError(f"the number {text[:_MAX_DIGITS]}, which is not finite")
    return value


def _check(content: Any) -> None:
    waiting = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"values nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            value.encode()  # a half of a surrogate pair could be neither printed nor written
