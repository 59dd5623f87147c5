"""How long the next step of each item is, and whether the last one is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor

from msf_kernels.checks import as_float, require_finite, require_positive
from msf_kernels.fixed_order import rms_norm
from msf_kernels.rk_combine import rk_combine
from msf_kernels.scaled_error_norm import scaled_error_norm

# Maps a scaled error [n, ...] to one number per item [n]; at most 1 is within tolerance.
Norm: TypeAlias = Callable[[Tensor], Tensor]

_SMALLEST_RATIO = 1e-10


@dataclass(frozen=True)
class PIDController:
    """Step-size controller driven by the error ratios of the last three accepted steps.

    With `e_n` the error over the tolerance and k the order of the error estimate plus one, an accepted step is
    followed by one that is longer by

        safety * e_n^(-(p + i + d) / k) * e_(n-1)^((p + 2 d) / k) * e_(n-2)^(-d / k)

    within `[min_factor, max_factor]`, and a rejected one (`e_n > 1`) by `safety * e_n^(-1 / k)`, at most 1.

    Args:
        p: Proportional coefficient; damps oscillation of the step size on mildly stiff problems.
        i: Integral coefficient; > 0.
        d: Derivative coefficient.
        safety: In (0, 1].
        min_factor: Strongest shortening; in (0, 1).
        max_factor: Strongest lengthening; >= 1.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is out of range.

    Source: Soederlind, Digital filters in adaptive time-stepping, ACM TOMS 29 (2003).
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0

    def __post_init__(self) -> None:
        """Turn the numbers into Python floats and check the ranges."""
        for field in fields(self):
            object.__setattr__(self, field.name, as_float(field.name, getattr(self, field.name)))
        require_finite("p", self.p)
        require_positive("i", self.i)
        require_finite("d", self.d)
        for name, value, low, high in (
            ("safety", self.safety, 0.0, 1.0),
            ("min_factor", self.min_factor, 0.0, 1.0),
        ):
            require_positive(name, value)
            if not low < value <= high:
                raise ValueError(f"{name} must be in ({low}, {high}]; got {value}")
        require_positive("max_factor", self.max_factor)
        if self.max_factor < 1.0:
            raise ValueError(f"max_factor must be >= 1; got {self.max_factor}")

    def factor(self, ratio: Tensor, previous: Tensor, older: Tensor, is_accepted: Tensor, k: int) -> Tensor:
        """Return the factor [n] by which each item's step changes; a NaN ratio gives the strongest shortening.

        Args:
            ratio: [n] error ratio of the step just made.
            previous: [n] that of the accepted step before; 1 when there was none.
            older: [n] that of the one before that.
            is_accepted: [n] bool.
            k: Order of the error estimate plus one.
        """
        e = ratio.clamp_min(_SMALLEST_RATIO)
        grown = power(e, -(self.p + self.i + self.d) / k)
        if self.p or self.d:
            grown = grown * power(previous, (self.p + 2 * self.d) / k) * power(older, -self.d / k)
        has_one_power = self.i == 1.0 and not (self.p or self.d)
        shrunk = (grown if has_one_power else power(e, -1.0 / k)).clamp_max(1.0 / self.safety)
        factor = self.safety * torch.where(is_accepted, grown, shrunk)
        return factor.clamp(self.min_factor, self.max_factor).nan_to_num(nan=self.min_factor)


def power(base: Tensor, exponent: float) -> Tensor:
    """Return `base ** exponent` of [n] numbers, with bits that do not depend on n or on an element's place.

    On a CPU PyTorch computes whole vectors of elements and what is left over by functions that round differently. An
    input with gaps goes through the latter alone.
    """
    if base.device.type != "cpu":
        return base.pow(exponent)
    return torch.stack([base, base], dim=-1)[..., 0].pow(exponent)


@dataclass(frozen=True)
class ErrorNorm:
    """Measures combinations of slopes against the tolerance of a step.

    Args:
        rtol: Relative tolerance: a number, or a tensor that broadcasts over the axes of one item.
        atol: Absolute tolerance; likewise.
        norm: Maps a scaled error [n, ...] to [n].
        backend: Backend of the kernels.
    """

    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm
    backend: str

    def __call__(
        self, z: Tensor, z_new: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], dt: float | Tensor
    ) -> Tensor:
        """Return the norm of `dt * sum_i weights[i] * slopes[i] / (atol + rtol * max(|z|, |z_new|))`; [n]."""
        rtol, atol = self.rtol, self.atol
        # What its single pass does not take: another norm, tolerances of single elements, interpreted kernels.
        if self.norm is rms_norm and isinstance(rtol, float) and isinstance(atol, float) and self.backend != "triton":
            return scaled_error_norm(z, z_new, slopes, weights, dt, rtol, atol, backend=self.backend)
        nothing = torch.zeros_like(z, dtype=torch.promote_types(z.dtype, torch.float32))
        error = rk_combine(nothing, slopes, weights, dt, backend=self.backend)
        return self.norm(error / (atol + rtol * torch.maximum(z.abs(), z_new.abs()).to(nothing.dtype)))


def first_step_length(
    probe: Callable[[Tensor], Tensor],
    z: Tensor,
    slope: Tensor,
    speed: Tensor,
    longest: Tensor,
    error_norm: ErrorNorm,
    k: int,
) -> Tensor:
    """Return a first step length [n] > 0 for each item from one extra evaluation.

    Args:
        probe: Maps lengths [n] to the slopes [n, ...] after an explicit Euler step of that length.
        z: [n, ...] states.
        slope: [n, ...] slopes there.
        speed: [n] their norm against the tolerance.
        longest: [n] length of the whole interval.
        error_norm: Norm of scaled errors.
        k: Order of the error estimate plus one.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4, "starting step size".
    """
    size = error_norm(z, z, [z], [1.0], 1.0).to(longest)
    speed = speed.to(longest)
    tiny = 1e-6 * longest
    guess = torch.where((size < 1e-5) | (speed < 1e-5), tiny, 0.01 * size / speed)
    guess = torch.minimum(guess, longest)
    bend = error_norm(z, z, [probe(guess), slope], [1.0, -1.0], 1.0).to(longest) / guess
    largest = torch.maximum(speed, bend)
    length = torch.where(largest <= 1e-15, torch.maximum(tiny, 1e-3 * guess), power(0.01 / largest, 1.0 / k))
    length = torch.minimum(torch.minimum(100 * guess, length), longest)
    # A probe that ran into NaN says nothing about the step, except that it must be short.
    return torch.where(length.isfinite() & (length > 0), length, tiny)
