"""The public error ratio of a step: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from msf_kernels import _ext
from msf_kernels._derivatives import Derivatives
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    as_float,
    require_finite,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.scaled_error_norm._native import native_reasons, scaled_error_norm_native
from msf_kernels.scaled_error_norm._reference import scaled_error_norm_reference

_operator = Operator(
    "scaled_error_norm",
    [
        _ext.native_backend(scaled_error_norm_native, native_reasons, device_type="cpu"),
        Backend("reference", scaled_error_norm_reference, derivatives=Derivatives.ALL),
    ],
)


def scaled_error_norm(
    state: Tensor,
    next_state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    rtol: float,
    atol: float,
    *,
    backend: str = "auto",
) -> Tensor:
    """Compare the error estimate of an embedded Runge-Kutta step with its tolerance, in one pass that stores no map.

        error = dt * sum_i weights[i] * slopes[i]
        ratio[n] = rms over item n of error / (atol + rtol * max(|state|, |next_state|))

    Args:
        state: [N, ...] state before the step; float16, bfloat16, float32 or float64; any strides. Any axis may be
            empty.
        next_state: State after it; shape and dtype of `state`.
        slopes: Velocities, each of the shape of `state`; any floating dtypes and strides.
        weights: One finite number per slope: the difference of the pair's two solutions.
        dt: Step: one finite number, or one per item as a floating tensor [N].
        rtol: Relative tolerance; finite, >= 0.
        atol: Absolute tolerance; likewise. Where both are 0, or `atol` and both states, the ratio is not finite.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        [N], on the device of `state`; float64 when that is float64, else float32. At most 1 is within tolerance; 0 for
        an item without elements, NaN where a number of the item is.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Shapes, devices or numbers of slopes and weights that do not fit; a number out of range.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Arithmetic in float32 (float64 when `state` is float64); the native backend adds blocks of squares in float64.
        The order of the sum follows from the shape of an item alone, so an item's bits depend neither on other items
        nor on strides or threads. Derivatives on the reference only, which `auto` then takes.

    Source:
        Hairer, Norsett and Wanner, "Solving ordinary differential equations I", section II.4.
    """
    require_tensor("state", state, None)
    if state.dim() == 0:
        raise ValueError("state must be [N, ...]; got a tensor without axes")
    if not isinstance(slopes, Sequence) or not isinstance(weights, Sequence):
        raise TypeError(
            f"slopes and weights must be sequences; got {type(slopes).__name__} and {type(weights).__name__}"
        )
    if len(slopes) != len(weights):
        raise ValueError(f"weights must be one number per slope; got {len(weights)} for {len(slopes)} slopes")
    for name, like in (("next_state", next_state), *((f"slopes[{i}]", slope) for i, slope in enumerate(slopes))):
        require_tensor(name, like, None)
        require_shape(name, like, "the shape of state", state.shape)
        require_same_device(name, like, "state", state)
    require_same_dtype("next_state", next_state, "state", state)
    for i, weight in enumerate(weights):
        require_finite(f"weights[{i}]", weight)
    if isinstance(dt, Tensor):
        require_tensor("dt", dt, "[N]")
        require_shape("dt", dt, "[N of state]", (state.shape[0],))
        require_same_device("dt", dt, "state", state)
    else:
        require_finite("dt", dt)
        dt = float(dt)
    rtol, atol = _tolerance("rtol", rtol), _tolerance("atol", atol)
    result: Tensor = _operator(backend, state, next_state, slopes, weights, dt, rtol, atol)
    return result


def _tolerance(name: str, value: float) -> float:
    value = as_float(name, value)
    require_finite(name, value)
    if value < 0:
        raise ValueError(f"{name} must be >= 0; got {value}")
    return value
