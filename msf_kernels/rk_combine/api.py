"""The public Runge-Kutta combination: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels._derivatives import Derivatives, any_requires_grad, any_transformed
from msf_kernels._overlap import require_apart, require_distinct_elements
from msf_kernels._triton.machine import tensor_reasons, triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    FLOATING,
    require_finite,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.rk_combine._native import native_reasons, rk_combine_native
from msf_kernels.rk_combine._ops import rk_combine_triton
from msf_kernels.rk_combine._reference import rk_combine_reference


def _triton_reasons(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    out: Tensor | None,
    cast_to: torch.dtype | None,
) -> list[str]:
    tensors = [x for x in (state, dt, *slopes) if isinstance(x, Tensor)]
    return tensor_reasons(tensors, () if cast_to is None else (cast_to,))


_operator = Operator(
    "rk_combine",
    [
        triton_backend(rk_combine_triton, _triton_reasons, derivatives=Derivatives.REVERSE),
        _ext.native_backend(rk_combine_native, native_reasons, derivatives=Derivatives.REVERSE),
        Backend("reference", rk_combine_reference, derivatives=Derivatives.ALL),
    ],
)


@overload
def rk_combine(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    out: Tensor | None = None,
    cast_to: None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def rk_combine(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    out: Tensor | None = None,
    cast_to: torch.dtype,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def rk_combine(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    out: Tensor | None = None,
    cast_to: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Combine a state with weighted slopes: one stage or one step of an explicit Runge-Kutta method, in one pass.

        combined = state + dt * sum_i weights[i] * slopes[i]

    Args:
        state: Any axes, the first being N when `dt` is a tensor; float16, bfloat16, float32 or float64; any strides.
            Any axis may be empty.
        slopes: Velocities, each of the shape of `state`; any floating dtypes (a float32 state with bfloat16 slopes is
            the usual case); any strides.
        weights: One finite number per slope. A slope of weight 0 is not read and gets no gradient.
        dt: Step, negative when time runs backward: one finite number, or one step per item as a floating tensor [N].
        out: Tensor of the shape, dtype and device of `state` that receives the result; may be `state` or a slope
            itself, must not overlap an input in another way. Not while derivatives are taken.
        cast_to: Floating dtype of a second output, the same combination rounded once to that dtype (what the network
            reads next).
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        `combined`, in the dtype of `state`, or `(combined, cast)` when `cast_to` is given. `combined` is `out` when
        that is given. New tensors are channels-last where `state` is channels-last, else contiguous.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Shapes, devices or numbers of slopes and weights that do not fit; a number that is not finite; `out`
            while derivatives are taken, or partly over an input.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Arithmetic in float32 (float64 when `state` is float64) from the first slope to the last, one rounding per
        output. Differentiable with respect to `state`, `slopes` and a tensor `dt`, to any order; forward mode and the
        transforms of `torch.func` on the reference only, which `auto` then takes. Slopes are saved for backward only
        when `dt` needs a gradient. Deterministic; an item's result does not
        depend on the other items of the batch.

    Source:
        Hairer, Norsett and Wanner, "Solving ordinary differential equations I", section II.1.
    """
    slopes, weights, dt = _require_call(state, slopes, weights, dt, out, cast_to)
    if out is not None:
        _require_apart(out, state, slopes, dt if isinstance(dt, Tensor) else None)
    result: Tensor | tuple[Tensor, Tensor] = _operator(backend, state, slopes, weights, dt, out=out, cast_to=cast_to)
    return result


def choose_rk_combine(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    cast_to: torch.dtype | None = None,
    backend: str = "auto",
) -> Callable[..., Any]:
    """Check a call as `rk_combine` does and return, without running it, the function that serves it.

    For loops that make the same call many times: the function takes the arguments of `rk_combine` without `backend`
    and repeats neither checks nor choice. It serves other values, and tensors that agree with these in shape, dtype
    and device, and in whether a gradient is required; `weights` must hold no zero.

    Args:
        state: As for `rk_combine`.
        slopes: Likewise.
        weights: Likewise.
        dt: Likewise.
        cast_to: Likewise.
        backend: Likewise.

    Returns:
        Callable `(state, slopes, weights, dt, *, cast_to)`.

    Raises:
        TypeError: As for `rk_combine`.
        ValueError: As for `rk_combine`.
        BackendUnavailableError: As for `rk_combine`.
    """
    slopes, weights, dt = _require_call(state, slopes, weights, dt, None, cast_to)
    return _operator.choose(backend, state, slopes, weights, dt, out=None, cast_to=cast_to).run


def _require_call(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    out: Tensor | None,
    cast_to: torch.dtype | None,
) -> tuple[tuple[Tensor, ...], tuple[float, ...], float | Tensor]:
    """Return the checked slopes and weights, without those of weight 0, and the step."""
    require_tensor("state", state, None)
    slopes, weights = _require_slopes(slopes, weights, state)
    if isinstance(dt, Tensor):
        if state.dim() == 0:
            raise ValueError("dt must be a number when state has no axes; got a tensor")
        require_tensor("dt", dt, "[N]")
        require_shape("dt", dt, "[N of state]", (state.shape[0],))
        require_same_device("dt", dt, "state", state)
    else:
        require_finite("dt", dt)
        dt = float(dt)
    if cast_to is not None and (not isinstance(cast_to, torch.dtype) or cast_to not in FLOATING):
        raise TypeError(f"cast_to must be {' or '.join(str(dtype) for dtype in FLOATING)}; got {cast_to}")
    if out is not None:
        _require_like("out", out, state)
        require_same_dtype("out", out, "state", state)
        step = dt if isinstance(dt, Tensor) else None
        if any_requires_grad((out, state, step, *slopes)):
            raise ValueError("out must be None while gradients are recorded; an input requires a gradient")
        if any_transformed((out, state, step, *slopes)):
            raise ValueError("out must be None in forward mode and torch.func transforms; one follows an input")
    return slopes, weights, dt


def _require_apart(out: Tensor, state: Tensor, slopes: Sequence[Tensor], step: Tensor | None) -> None:
    require_distinct_elements("out", out)
    require_apart("out", out, "state", state, may_be_same=True)
    for i, slope in enumerate(slopes):
        require_apart("out", out, f"slopes[{i}]", slope, may_be_same=True)
    if step is not None:
        require_apart("out", out, "dt", step, may_be_same=False)


def _require_slopes(slopes: object, weights: object, state: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """Return the checked slopes and weights, without those of weight 0."""
    if not isinstance(slopes, Sequence):
        raise TypeError(f"slopes must be a sequence of tensors; got {type(slopes).__name__}")
    if not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a sequence of numbers; got {type(weights).__name__}")
    if len(slopes) != len(weights):
        raise ValueError(f"weights must be one number per slope; got {len(weights)} for {len(slopes)} slopes")
    for i, (slope, weight) in enumerate(zip(slopes, weights, strict=True)):
        _require_like(f"slopes[{i}]", slope, state)
        require_finite(f"weights[{i}]", weight)
    read = [i for i, weight in enumerate(weights) if weight != 0]
    return tuple(slopes[i] for i in read), tuple(float(weights[i]) for i in read)


def _require_like(name: str, value: Tensor, state: Tensor) -> None:
    require_tensor(name, value, None)
    require_shape(name, value, "the shape of state", state.shape)
    require_same_device(name, value, "state", state)
