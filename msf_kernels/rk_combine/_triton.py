"""Runge-Kutta combination in Triton: forward and backward.

Forward, elementwise in fp32:  out = state + dt * sum_i weights[i] * slopes[i];  cast = out in another dtype
Backward:                      grad_slopes[i] = dt * weights[i] * grad
                               grad_dt[n] = sum over item n of grad * sum_i weights[i] * slopes[i]

`cast` is rounded once, from fp32. All tensors are walked in the output's memory order, so state, slopes and outputs
must be dense in one memory format. Traffic: forward reads state and every slope once and writes each output once;
backward reads grad once and writes every slope's gradient once; the gradient of dt reads grad and every slope once.
Slopes and weights are tuples, so one compilation serves all weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import block_offsets
from msf_kernels._triton.recording import record_launches
from msf_kernels.memory_format import output_memory_format
from msf_kernels.rk_combine._allocation import empty_combined, empty_gradients, empty_step_gradient

# Not measured on any GPU yet; the first is what runs.
CONFIGS = (
    KernelConfig({"BLOCK": 512}, num_warps=4),
    KernelConfig({"BLOCK": 1024}, num_warps=4),
    KernelConfig({"BLOCK": 2048}, num_warps=8),
)
# One only: the block decides the order of the sum, and results must not depend on tuning.
DT_CONFIGS = (KernelConfig({"BLOCK": 1024}, num_warps=4),)
DT_ELEMENTS_PER_PROGRAM = 16 * 1024


@triton.jit
def _direction(slope_ptrs, weights, elements, in_elements, BLOCK: tl.constexpr):
    """Return sum_i weights[i] * slopes[i] in fp32, added from the first to the last; [BLOCK]."""
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(len(slope_ptrs)):
        total += tl.cast(tl.load(slope_ptrs[i] + elements, mask=in_elements, other=0.0), tl.float32) * weights[i]
    return total


@triton.jit
def _step(dt, dt_ptr, stride_dt, elements, in_elements, elements_per_item):
    """Return the step of each element: its item's where there is one per item; [BLOCK] or scalar."""
    if dt_ptr is not None:
        items = elements // elements_per_item
        step = tl.cast(tl.load(dt_ptr + items * stride_dt, mask=in_elements, other=0.0), tl.float32)
    else:
        step = dt
    return step


@triton.jit(do_not_specialize=["dt"])
def _rk_combine_fwd_kernel(
    out_ptr,
    cast_ptr,
    state_ptr,
    slope_ptrs,
    weights,
    dt,
    dt_ptr,
    n_elements,
    elements_per_item,
    stride_dt,
    BLOCK: tl.constexpr,
):
    elements = block_offsets(tl.program_id(0), BLOCK)
    in_elements = elements < n_elements

    combined = tl.cast(tl.load(state_ptr + elements, mask=in_elements, other=0.0), tl.float32)
    if len(slope_ptrs) > 0:
        step = _step(dt, dt_ptr, stride_dt, elements, in_elements, elements_per_item)
        combined += _direction(slope_ptrs, weights, elements, in_elements, BLOCK) * step

    tl.store(out_ptr + elements, tl.cast(combined, out_ptr.dtype.element_ty), mask=in_elements)
    if cast_ptr is not None:
        tl.store(cast_ptr + elements, tl.cast(combined, cast_ptr.dtype.element_ty), mask=in_elements)


@triton.jit(do_not_specialize=["dt"])
def _rk_combine_bwd_kernel(
    grad_slope_ptrs,
    grad_ptr,
    weights,
    dt,
    dt_ptr,
    n_elements,
    elements_per_item,
    stride_dt,
    BLOCK: tl.constexpr,
):
    elements = block_offsets(tl.program_id(0), BLOCK)
    in_elements = elements < n_elements

    grad = tl.cast(tl.load(grad_ptr + elements, mask=in_elements, other=0.0), tl.float32)
    scaled = grad * _step(dt, dt_ptr, stride_dt, elements, in_elements, elements_per_item)

    for i in tl.static_range(len(grad_slope_ptrs)):
        gradient = tl.cast(scaled * weights[i], grad_slope_ptrs[i].dtype.element_ty)
        tl.store(grad_slope_ptrs[i] + elements, gradient, mask=in_elements)


@triton.jit
def _rk_combine_bwd_dt_kernel(
    partial_ptr,
    grad_ptr,
    slope_ptrs,
    weights,
    n_programs,
    elements_per_item,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum one item's ELEMENTS elements; the programs of an item are added up afterwards."""
    pid = tl.program_id(0)
    item_start = tl.cast(pid // n_programs, tl.int64) * elements_per_item
    first = tl.cast(pid % n_programs, tl.int64) * ELEMENTS

    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, ELEMENTS, BLOCK):
        local = first + start + tl.arange(0, BLOCK)
        in_elements = local < elements_per_item
        grad = tl.cast(tl.load(grad_ptr + item_start + local, mask=in_elements, other=0.0), tl.float32)
        total += grad * _direction(slope_ptrs, weights, item_start + local, in_elements, BLOCK)

    tl.store(partial_ptr + pid, tl.sum(total, axis=0))


def _dense(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the tensor in the given memory format; a copy only if it is laid out in another way."""
    return tensor.contiguous(memory_format=memory_format)


def _launch_fwd(
    out: Tensor,
    cast: Tensor | None,
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float,
    dt_items: Tensor | None,
    *,
    is_repeatable: bool,
) -> None:
    memory_format = output_memory_format(state)
    n_elements = state.numel()
    dtypes = (state.dtype, *(slope.dtype for slope in slopes))
    launch(
        _rk_combine_fwd_kernel,
        CONFIGS,
        lambda blocks: (triton.cdiv(n_elements, blocks["BLOCK"]),),
        configuration_key=(n_elements, dtypes) if is_repeatable else None,
        out_ptr=out,
        cast_ptr=cast,
        state_ptr=_dense(state, memory_format),
        slope_ptrs=tuple(_dense(slope, memory_format) for slope in slopes),
        weights=tuple(weights),
        n_elements=n_elements,
        **_step_arguments(state, dt, dt_items),
    )


def _step_arguments(state: Tensor, dt: float, dt_items: Tensor | None) -> dict[str, object]:
    if dt_items is None:
        return {"dt": dt, "dt_ptr": None, "elements_per_item": 1, "stride_dt": 0}
    return {
        "dt": dt,
        "dt_ptr": dt_items,
        "elements_per_item": state.numel() // max(state.shape[0], 1),
        "stride_dt": dt_items.stride(0),
    }


def launch_rk_combine_fwd(
    state: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], dt: float, dt_items: Tensor | None
) -> Tensor:
    """Return the combination in the dtype of `state`."""
    out = empty_combined(state, state.dtype)
    _launch_fwd(out, None, state, slopes, weights, dt, dt_items, is_repeatable=True)
    return out


def launch_rk_combine_cast_fwd(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float,
    dt_items: Tensor | None,
    cast_to: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the combination in the dtype of `state` and in `cast_to`."""
    out, cast = empty_combined(state, state.dtype), empty_combined(state, cast_to)
    _launch_fwd(out, cast, state, slopes, weights, dt, dt_items, is_repeatable=True)
    return out, cast


def launch_rk_combine_out(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float,
    dt_items: Tensor | None,
    out: Tensor,
    cast_out: Tensor | None,
) -> None:
    """Fill `out`, and `cast_out` if given; either may have any strides."""
    targets = [None if x is None else _writable(x, state) for x in (out, cast_out)]
    _launch_fwd(targets[0], targets[1], state, slopes, weights, dt, dt_items, is_repeatable=False)
    for given, target in zip((out, cast_out), targets, strict=True):
        if given is not None and target is not given:
            given.copy_(target)


def _writable(given: Tensor, state: Tensor) -> Tensor:
    """Return the tensor itself if it is dense in the output's memory format, else room for the result."""
    is_dense = given.is_contiguous(memory_format=output_memory_format(state))
    return given if is_dense else empty_combined(state, given.dtype)


def launch_rk_combine_bwd(
    grad: Tensor, weights: Sequence[float], dt: float, dt_items: Tensor | None, dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """Return the gradients of the slopes."""
    outputs = empty_gradients(grad, dtypes)
    n_elements = grad.numel()
    launch(
        _rk_combine_bwd_kernel,
        CONFIGS,
        lambda blocks: (triton.cdiv(n_elements, blocks["BLOCK"]),),
        configuration_key=(n_elements, grad.dtype, *dtypes),
        grad_slope_ptrs=tuple(outputs),
        grad_ptr=_dense(grad, output_memory_format(grad)),
        weights=tuple(weights),
        n_elements=n_elements,
        **_step_arguments(grad, dt, dt_items),
    )
    return outputs


def launch_rk_combine_bwd_dt(grad: Tensor, slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the gradient of one step per item; [N]."""
    memory_format = output_memory_format(grad)
    out = empty_step_gradient(grad)
    n, elements_per_item = grad.shape[0], grad.numel() // max(grad.shape[0], 1)
    n_programs = triton.cdiv(elements_per_item, DT_ELEMENTS_PER_PROGRAM)
    partial = out.new_empty((n, n_programs))
    launch(
        _rk_combine_bwd_dt_kernel,
        DT_CONFIGS,
        lambda blocks: (n * n_programs,),
        partial_ptr=partial,
        grad_ptr=_dense(grad, memory_format),
        slope_ptrs=tuple(_dense(slope, memory_format) for slope in slopes),
        weights=tuple(weights),
        n_programs=n_programs,
        elements_per_item=elements_per_item,
        ELEMENTS=DT_ELEMENTS_PER_PROGRAM,
    )
    return torch.sum(partial, dim=1, out=out)


def aot_cases(arch: int) -> list[AotCase]:
    """Return the compilations that samplers need: the usual methods and dtypes, one step for all and one per item."""
    state = torch.empty((64, 6, 32, 32), device="meta")
    dt_items = torch.empty(64, device="meta")
    cases: list[AotCase] = []
    for dtype, n_slopes in (
        (torch.float32, 1),
        (torch.float32, 2),
        (torch.float32, 7),
        (torch.bfloat16, 1),
        (torch.bfloat16, 2),
        (torch.bfloat16, 7),
        (torch.float16, 2),
    ):
        slopes, weights = [state.to(dtype)] * n_slopes, [0.5] * n_slopes
        label = f"rk_combine {dtype} slopes={n_slopes}".replace("torch.", "")
        with record_launches(label) as one_step:
            launch_rk_combine_fwd(state, slopes, weights, 0.1, None)
            launch_rk_combine_bwd(state, weights, 0.1, None, [dtype] * n_slopes)
            launch_rk_combine_bwd_dt(state, slopes, weights)
        with record_launches(f"{label} cast") as with_cast:
            launch_rk_combine_cast_fwd(state, slopes, weights, 0.1, None, dtype)
        with record_launches(f"{label} step per item") as per_item:
            launch_rk_combine_fwd(state, slopes, weights, 1.0, dt_items)
            launch_rk_combine_bwd(state, weights, 1.0, dt_items, [dtype] * n_slopes)
        cases += one_step + with_cast + per_item
    return cases
