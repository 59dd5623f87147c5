"""Outputs of the group norm's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msf_kernels.memory_format import output_memory_format


def empty_outputs(x: Tensor, num_groups: int, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return out [N, C, H, W], mean [N, num_groups] and rstd [N, num_groups]."""
    n, _, height, width = x.shape
    out = torch.empty(
        (n, weight.shape[0], height, width), dtype=x.dtype, device=x.device, memory_format=output_memory_format(x)
    )
    stats_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = torch.empty((n, num_groups), dtype=stats_dtype, device=x.device)
    return out, mean, torch.empty_like(mean)


def empty_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return room for the gradients of x, weight, bias, skip, add, scale, shift; for an absent one, no elements."""
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_memory_format(x)),
        torch.empty(weight.shape, dtype=weight.dtype, device=x.device),
        torch.empty(bias.shape, dtype=bias.dtype, device=x.device),
        x.new_empty(0)
        if skip is None
        else torch.empty(skip.shape, dtype=x.dtype, device=x.device, memory_format=output_memory_format(skip)),
        _empty_rows(x, add),
        _empty_rows(x, scale),
        _empty_rows(x, shift),
    )


def _empty_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x.new_empty(0) if rows is None else torch.empty(rows.shape, dtype=rows.dtype, device=x.device)


def fake_group_norm_silu_fwd(x: Tensor, num_groups: int, weight: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `group_norm_silu_fwd` of any family of operators allocates."""
    return empty_outputs(x, num_groups, weight)


def fake_group_norm_silu_bwd(
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what `group_norm_silu_bwd` of any family of operators allocates."""
    return empty_gradients(x, weight, bias, skip, add, scale, shift)
