"""Tensors and NumPy arrays from a caller, made one: dense, on a device, with values."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msf.plain_values import shown

NumpyArray = np.ndarray[Any, np.dtype[Any]]

N_LISTED = 4  # items named in a message


def as_tensor(name: str, values: object) -> Tensor:
    """Return a tensor, or a NumPy array as one, which shares its memory where NumPy's layout and byte order allow.

    Args:
        name: Argument name for the message.
        values: Tensor or array of any shape.

    Raises:
        TypeError: Neither of them; a tensor that is sparse, nested, quantised, complex or without values; or an array
            that is masked, or of objects, text, dates or another type without a counterpart.
    """
    if isinstance(values, np.ndarray):
        return _from_numpy(name, values)
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch tensor or a NumPy array; got {type(values).__name__}")
    if values.layout != torch.strided or values.is_nested or values.is_quantized or values.device.type == "meta":
        kind = f"{values.layout}, {values.dtype}, on {values.device}"
        raise TypeError(f"{name} must be a dense tensor with values; got one of another kind ({kind})")
    if values.is_complex():
        raise TypeError(f"{name} must be real; got {values.dtype}")
    return values


def as_labels(values: object) -> Tensor:
    """Return labels as a tensor: a tensor or an array as it is, a sequence of whole numbers as int64.

    Raises:
        TypeError: Anything else.
        ValueError: A number beyond 64 bits.
    """
    if isinstance(values, Tensor | np.ndarray):
        return as_tensor("labels", values)
    try:
        if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
            raise TypeError
        if any(isinstance(value, bool | np.bool_) for value in values):
            raise TypeError
        numbers = [operator.index(value) for value in values]
    except TypeError:
        raise TypeError(f"labels must be a tensor, an array or a list of whole numbers; got {shown(values)}") from None
    if numbers and not -(2**63) <= min(numbers) <= max(numbers) < 2**63:
        raise ValueError(f"labels must fit 64 bits; got {shown(values)}")
    return torch.tensor(numbers, dtype=torch.int64)


def rows_not_finite(values: Tensor) -> list[int]:
    """Return the rows of the first axis that hold a value which is NaN or infinite."""
    return (~values.detach().isfinite()).reshape(len(values), -1).any(dim=1).nonzero().flatten().tolist()


def listed(item: str, rows: Sequence[int]) -> str:
    """Return `picture 3`, or `pictures 3, 5` with the first few of many."""
    text = ", ".join(map(str, rows[:N_LISTED])) + (", ..." if len(rows) > N_LISTED else "")
    return f"{item}{'s' if len(rows) > 1 else ''} {text}"


def _from_numpy(name: str, array: NumpyArray) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array; got a masked one: fill it first, as by .filled(0)")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers; got an array of {array.dtype}")
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), copy=True, order="C")
    try:
        return torch.from_numpy(array)
    except TypeError as error:  # such as long double
        raise TypeError(f"{name} must have a dtype that PyTorch has too; got an array of {array.dtype}") from error
