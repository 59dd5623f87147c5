"""What a velocity field must return, and the memory that it must leave alone.

Slopes of a step are needed after later evaluations. A field that writes its results over one another (a static buffer,
the output of a CUDA graph) destroys them, and one that edits its argument destroys the state. Both are recognised
without reading a value: PyTorch counts the in-place edits of a tensor, and results in the same memory have near
addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from msf_kernels.checks import FLOATING


def checked_velocity(velocity: object, z: Tensor) -> Tensor:
    """Return what a velocity field returned for `z`, or raise because it cannot be its velocity."""
    return require_velocity(velocity, z, "velocity_field", "z")


def require_velocity(velocity: object, z: Tensor, field_name: str, state_name: str) -> Tensor:
    """Return a checked velocity.

    Args:
        velocity: What the field returned.
        z: Its state.
        field_name: The field's name in the caller's call.
        state_name: The state's.

    Raises:
        TypeError: No tensor, or none of real floating numbers.
        ValueError: Another shape or device than that of `z`.
    """
    if not isinstance(velocity, Tensor):
        raise TypeError(f"{field_name} must return a tensor; got {type(velocity).__name__}")
    if velocity.dtype not in FLOATING:
        raise TypeError(f"{field_name} must return a tensor of real floating numbers; got {velocity.dtype}")
    if velocity.shape != z.shape:
        raise ValueError(
            f"{field_name} must return the shape of {state_name}, {list(z.shape)}; got {list(velocity.shape)}"
        )
    if velocity.device != z.device:
        raise ValueError(
            f"{field_name} must return a tensor on the device of {state_name}, {z.device}; got {velocity.device}"
        )
    return velocity


def version_of(tensor: Tensor) -> int:
    """Return how often the tensor's memory was edited in place; 0 where PyTorch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def edited_text(field_name: str, name: str) -> str:
    """Return the message for a field that edited its argument."""
    return (
        f"{field_name} must not change {name} in place, but did: let it work on {name}.clone(), or without in-place "
        "operations"
    )


def evaluate_guarded(field: Callable[..., Any], z: Tensor, t: Tensor, *context: Tensor) -> Any:
    """Return `field(z, t, *context)`.

    Raises:
        ValueError: The field changed z or t in place.
    """
    z_version, t_version = version_of(z), version_of(t)
    velocity = field(z, t, *context)
    if version_of(z) != z_version:
        raise ValueError(edited_text("velocity_field", "z"))
    if version_of(t) != t_version:
        raise ValueError(edited_text("velocity_field", "t"))
    return velocity


def extent_of(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first value to the end of its last; 0 where its address tells nothing."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.numel():
        return 0
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return span * tensor.element_size()


def is_overwritten(slopes: Sequence[Tensor], versions: Sequence[int]) -> bool:
    """Say the same as `are_overwritten` of any slopes, given `version_of` all of them when they were returned."""
    return are_overwritten(slopes, versions, max(map(extent_of, slopes)))


def are_overwritten(slopes: Sequence[Tensor], versions: Sequence[int], extent: int) -> bool:
    """Say whether an earlier slope of a step may have been written over by a later evaluation.

    Args:
        slopes: In the order in which the field returned them.
        versions: `version_of` the first ones when they were returned.
        extent: `extent_of` the slopes.

    Returns:
        True where one was edited, or where two share memory, even if nothing was lost by that.
    """
    for slope, version in zip(slopes, versions):  # noqa: B905 - a keyword costs as much as the comparison
        if version_of(slope) != version:
            return True
    if not extent:
        return False
    try:
        if len(slopes) == 2:
            return -extent < slopes[0].data_ptr() - slopes[1].data_ptr() < extent
        addresses = sorted([slope.data_ptr() for slope in slopes])
    except RuntimeError:  # under a transform of torch.func
        return False
    return any([after - before < extent for before, after in zip(addresses, addresses[1:])])  # noqa: B905, C419
