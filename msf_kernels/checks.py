"""Input checks that every operator's `api.py` shares: host-only, and the message names argument, wish and fact.

Nothing here reads a tensor's values, so that a check never waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ORDERS = ("legacy", "new")  # how queries, keys and values of several heads are packed
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_tensor(name: str, value: object, axes: str | None, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    """Check type, dtype and number of axes.

    Args:
        name: Argument name for the message.
        value: What came.
        axes: Wanted axes such as `"[N, C, H, W]"`; their number is checked. None: any number.
        dtypes: Allowed dtypes.

    Raises:
        TypeError: Not a tensor, or another dtype.
        ValueError: Another number of axes.
    """
    if not isinstance(value, Tensor):
        wanted = "a tensor" if axes is None else f"a tensor {axes}"
        raise TypeError(f"{name} must be {wanted}; got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must have dtype {allowed}; got {value.dtype}")
    if axes is not None and value.dim() != axes.count(",") + 1:
        raise ValueError(f"{name} must be {axes}; got shape {list(value.shape)}")


def require_shape(name: str, value: Tensor, axes: str, *allowed: Sequence[int]) -> None:
    """Check a shape against the allowed ones.

    Args:
        name: Argument name for the message.
        value: The tensor.
        axes: Wanted axes in letters, for the message.
        *allowed: Shapes of which one must match.

    Raises:
        ValueError: None matches.
    """
    if value.shape in allowed:  # the usual case, a tuple
        return
    shape = tuple(value.shape)
    if not any(shape == tuple(candidate) for candidate in allowed):
        wanted = " or ".join(str(list(candidate)) for candidate in allowed)
        raise ValueError(f"{name} must be {axes} = {wanted}; got shape {list(shape)}")


def require_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors are on one device.

    Raises:
        ValueError: They are not.
    """
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}; got {value.device}")


def require_same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors have one dtype.

    Raises:
        TypeError: They have not.
    """
    if value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}; got {value.dtype}")


def require_int(name: str, value: object, minimum: int, below: int | None = None) -> None:
    """Check for a Python integer (not a bool) in `[minimum, below)`.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    if value < minimum or (below is not None and value >= below):
        end = "" if below is None else f" and < {below}"
        raise ValueError(f"{name} must be >= {minimum}{end}; got {value}")


def require_positive(name: str, value: object) -> None:
    """Check for a finite Python number above zero.

    Raises:
        TypeError: Not a number.
        ValueError: Not finite, or not above zero.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0; got {value}")


def require_finite(name: str, value: object) -> None:
    """Check for a finite Python number.

    Raises:
        TypeError: Not a number.
        ValueError: Not finite.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    # Comparisons, not math.isfinite: torch.compile traces them for numbers that it keeps symbolic.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite; got {value}")


def require_bool(name: str, value: object) -> None:
    """Check for a Python bool.

    Raises:
        TypeError: Anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {type(value).__name__}")


def require_order(order: object) -> None:
    """Check the name of a head order.

    Raises:
        TypeError: Not a string.
        ValueError: Not one of `ORDERS`.
    """
    if not isinstance(order, str):
        raise TypeError(f"order must be a string; got {type(order).__name__}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")


def as_float(name: str, value: object) -> float:
    """Return a real number as a Python float.

    Args:
        name: Argument name for the message.
        value: Python number, numpy scalar, or array or tensor without axes (whose value is read to the host).

    Raises:
        TypeError: Anything else.
    """
    number = _host_scalar(value)
    if not isinstance(number, (int, float, torch.SymInt, torch.SymFloat)) or isinstance(number, bool):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    return float(number)


def as_int(name: str, value: object) -> int:
    """Return a whole number as a Python integer.

    Args:
        name: Argument name for the message.
        value: Python integer, numpy integer, or integer array or tensor without axes (whose value is read to the host).

    Raises:
        TypeError: Anything else; floating numbers too.
    """
    number = _host_scalar(value)
    if not isinstance(number, (int, torch.SymInt)) or isinstance(number, bool):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    return int(number)


def as_tensor(value: object) -> object:
    """Return a numpy array or scalar as a tensor of its own memory, and anything else as it is."""
    if isinstance(value, Tensor) or not hasattr(value, "__array_interface__"):
        return value
    return torch.tensor(value)


def _host_scalar(value: object) -> object:
    if isinstance(value, (int, float)) or getattr(value, "ndim", None) != 0:
        return value
    item: object = value.item()  # type: ignore[attr-defined]
    return item
