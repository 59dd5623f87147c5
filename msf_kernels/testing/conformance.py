"""Holding one backend of one operator to the definition, on one case.

What a self-test is made of, and a check of compiled or captured calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msf_kernels.errors import BackendUnavailableError
from msf_kernels.testing.budget import YARDSTICK_FACTOR, ErrorReport, error_report, outputs_and_gradients, promote
from msf_kernels.testing.case import InputDraw, OperatorCase
from msf_kernels.testing.execution import Run, run_poisoned

PASS, FAIL, REFUSED = "pass", "fail", "refused"

OWN_BACKENDS = ("native", "reference", "triton")
# A library's kernel is not ours to make more accurate: it is held to twice the bounds. PyTorch's attention on a CPU
# needs it: its float32 gradients are up to 3.5 times as wrong as the plain formula's where logits spread over +-10.
LIBRARY_ALLOWANCE = 2.0

# One yardstick on one draw is luck, above all on a handful of values: it is measured on at least so many draws and, per
# output, values.
MIN_YARDSTICK_DRAWS = 8
MIN_YARDSTICK_VALUES = 64


@dataclass(frozen=True)
class Expected:
    """What an output (or a gradient) must be, and how far from it is allowed.

    Args:
        name: Which output or gradient.
        oracle: The definition in float64, or integers.
        dtype: Promised dtype.
        formats: Promised memory formats, of which one must hold; empty where none is promised.
        max_bound: Largest error allowed.
        rms_bound: Largest root mean square error allowed.
    """

    name: str
    oracle: Tensor
    dtype: torch.dtype
    formats: frozenset[str]
    max_bound: float
    rms_bound: float


@dataclass(frozen=True)
class Verdict:
    """The outcome for one output or gradient, or for a whole call that gave none.

    Args:
        operator: Operator's name.
        backend: Backend's name.
        dtype: Dtype under test.
        case: Case's label.
        output: Which output or gradient; empty when the call gave none.
        verdict: `pass`, `fail` or `refused`.
        note: Why, unless it passed.
        max_error: Largest absolute error; None where nothing could be measured.
        max_bound: What it may be.
        rms_error: Root mean square error.
        rms_bound: What it may be.
    """

    operator: str
    backend: str
    dtype: str
    case: str
    output: str
    verdict: str
    note: str = ""
    max_error: float | None = None
    max_bound: float | None = None
    rms_error: float | None = None
    rms_bound: float | None = None

    @property
    def ratio(self) -> float:
        """The larger of both errors over their bounds; at most 1 when it passed."""
        pairs = ((self.max_error, self.max_bound), (self.rms_error, self.rms_bound))
        return max(_ratio(error, bound) for error, bound in pairs)


def expectations(case: OperatorCase, dtype: torch.dtype, device: torch.device) -> list[Expected]:
    """Compute the oracle and the bounds of a case.

    The error budget of `msf_kernels.testing` holds: at most twice the yardstick's error plus one rounding unit. The
    yardstick is the worst of the case's plain formulas on several draws of the inputs, relative to the output's scale
    (its maximum or root mean square); a draw whose output is small by cancellation counts with the median scale.
    """
    draws = [case.draw(InputDraw(dtype, device, seed=0))]
    oracles = _oracle(case, draws[0], dtype)
    if case.is_exact:
        return [_exactly(case, name, oracle, dtype) for name, oracle in oracles]
    fewest = min((oracle.numel() for _, oracle in oracles if oracle.numel()), default=MIN_YARDSTICK_VALUES)
    n_draws = max(MIN_YARDSTICK_DRAWS, math.ceil(MIN_YARDSTICK_VALUES / fewest))
    draws += [case.draw(InputDraw(dtype, device, seed)) for seed in range(1, n_draws)]
    promised = _plain(case, case.function("reference"), draws[0], dtype)
    errors = [error for inputs in draws for error in _yardstick_errors(case, inputs, dtype)]
    expected = []
    for (name, oracle), (_, plain), of_output in zip(oracles, promised, zip(*errors, strict=True), strict=True):
        formats = _formats(plain) if name.startswith("output") else frozenset()
        max_bound = _bound([error.largest for error in of_output], plain.dtype) + case.tolerance
        rms_bound = _bound([error.rms for error in of_output], plain.dtype) + case.tolerance
        expected.append(Expected(name, oracle, plain.dtype, formats, max_bound, rms_bound))
    return expected


def check(
    case: OperatorCase,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    expected: Sequence[Expected],
    run: Run = run_poisoned,
) -> list[Verdict]:
    """Run one backend on a case and judge every output and gradient.

    Args:
        case: The call.
        backend: Name of the backend.
        dtype: Dtype under test.
        device: Device under test.
        expected: From `expectations`, for the same case, dtype and device.
        run: Runs the call, as `outputs_and_gradients` does; by default where fresh tensors start as NaN.

    Returns:
        One verdict per output and gradient, or a single one when the backend refused or raised. An exception is a
        failure that the note describes, not the end of the run.
    """
    function = case.function(backend)
    identity = (case.operator, backend, str(dtype).removeprefix("torch."), case.label)

    def call(*inputs: Tensor) -> Any:
        return case.call(function, dtype, *inputs)

    inputs = case.draw(InputDraw(dtype, device, seed=0))
    try:
        named = run(call, inputs, dtype, case.gradients_of)
    except BackendUnavailableError as error:
        return [Verdict(*identity, "", REFUSED, "; ".join(error.reasons[backend]))]
    except Exception as error:  # whatever a kernel raises is the finding
        return [Verdict(*identity, "", FAIL, f"{type(error).__name__}: {error}")]
    if len(named) != len(expected):
        return [Verdict(*identity, "", FAIL, f"{len(expected)} results expected; got {len(named)}")]
    allowance = 1.0 if backend in OWN_BACKENDS else LIBRARY_ALLOWANCE
    verdicts = []
    for (name, actual), bounds in zip(named, expected, strict=True):
        wanted = replace(bounds, max_bound=allowance * bounds.max_bound, rms_bound=allowance * bounds.rms_bound)
        note, report = _judge(actual, wanted)
        verdict = Verdict(*identity, name, FAIL if note else PASS, note)
        if report is not None:
            verdict = replace(
                verdict,
                max_error=report.max_error,
                max_bound=report.max_bound,
                rms_error=report.rms_error,
                rms_bound=report.rms_bound,
            )
        verdicts.append(verdict)
    return verdicts


def _judge(actual: Tensor, wanted: Expected) -> tuple[str, ErrorReport | None]:
    """Return what is wrong (nothing: empty) and the errors, where they can be measured."""
    if actual.shape != wanted.oracle.shape:
        return f"shape {list(wanted.oracle.shape)} expected; got {list(actual.shape)}", None
    if actual.dtype != wanted.dtype:
        return f"{wanted.dtype} expected; got {actual.dtype}", None
    if not actual.is_floating_point():
        n_wrong = int((actual.cpu() != wanted.oracle).sum())
        report = ErrorReport(float(n_wrong), float(n_wrong), 0.0, 0.0, actual.dtype)
        return (f"{n_wrong} integers differ" if n_wrong else ""), report
    report = replace(
        error_report(actual, wanted.oracle, wanted.oracle.to(actual.dtype)),
        max_bound=wanted.max_bound,
        rms_bound=wanted.rms_bound,
    )
    if not report.is_within_budget:
        return str(report), report
    if wanted.formats and not wanted.formats & _formats(actual):
        return f"{' or '.join(sorted(wanted.formats))} output expected; got strides {actual.stride()}", report
    return "", report


def _oracle(case: OperatorCase, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    reference = case.function("reference")
    promoted = [promote(tensor) for tensor in inputs]
    named = outputs_and_gradients(
        lambda *tensors: case.call(reference, torch.float64, *tensors), promoted, dtype, case.gradients_of
    )
    return [(name, tensor.cpu()) for name, tensor in named]


def _plain(
    case: OperatorCase, function: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[tuple[str, Tensor]]:
    return outputs_and_gradients(
        lambda *tensors: case.call(function, dtype, *tensors), inputs, dtype, case.gradients_of
    )


class _Scaled(NamedTuple):
    """An error, and the size of what it is an error of."""

    error: float
    scale: float


class _YardstickError(NamedTuple):
    """Maximum and root mean square of both."""

    largest: _Scaled
    rms: _Scaled


def _yardstick_errors(case: OperatorCase, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[list[_YardstickError]]:
    """Return, for each plain formula, its error and the oracle's scale per output and gradient."""
    oracles = _oracle(case, inputs, dtype)
    formulas = [case.function("reference"), *case.yardsticks]
    return [
        [
            _yardstick_error(plain, oracle)
            for (_, plain), (_, oracle) in zip(_plain(case, formula, inputs, dtype), oracles, strict=True)
        ]
        for formula in formulas
    ]


def _yardstick_error(plain: Tensor, oracle: Tensor) -> _YardstickError:
    report = error_report(plain, oracle, plain)
    if not oracle.numel():
        return _YardstickError(_Scaled(0.0, 0.0), _Scaled(0.0, 0.0))
    largest, rms = float(oracle.abs().max()), float(oracle.square().mean().sqrt())
    return _YardstickError(_Scaled(report.max_error, largest), _Scaled(report.rms_error, rms))


def _bound(errors: Sequence[_Scaled], dtype: torch.dtype) -> float:
    """Return what the first draw may be wrong by."""
    typical = median(error.scale for error in errors)
    if typical == 0.0:
        return YARDSTICK_FACTOR * max(error.error for error in errors)
    relative = max(error.error / max(error.scale, typical) for error in errors)
    return (YARDSTICK_FACTOR * relative + torch.finfo(dtype).eps / 2) * max(errors[0].scale, typical)


def _exactly(case: OperatorCase, name: str, oracle: Tensor, dtype: torch.dtype) -> Expected:
    if not oracle.is_floating_point():
        return Expected(name, oracle, oracle.dtype, frozenset(), 0.0, 0.0)
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    largest = float(oracle.abs().max()) if oracle.numel() else 0.0
    bound = case.tolerance + rounding * largest
    return Expected(name, oracle, dtype, frozenset({"contiguous"}), bound, bound)


def _formats(tensor: Tensor) -> frozenset[str]:
    formats = {"contiguous"} if tensor.is_contiguous() else set()
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        formats.add("channels-last")
    return frozenset(formats)


def _ratio(error: float | None, bound: float | None) -> float:
    if error is None or bound is None:
        return math.inf
    return 0.0 if error == 0.0 else error / bound if bound else math.inf
