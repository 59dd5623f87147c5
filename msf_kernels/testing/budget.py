"""Error budget of a kernel, and outputs that start as NaN.

A kernel is measured against a fp64 oracle that sees the same quantised inputs. What it may be wrong by is set by a
yardstick, the plain formula run in the test's dtype: at most twice the yardstick's error plus one rounding unit of the
output's scale, in maximum and in root mean square. So a bound needs no hand-picked tolerance, and it tightens by itself
where the arithmetic allows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import deterministic

YARDSTICK_FACTOR = 2.0

_EMPTY_FACTORIES = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch, "empty_permuted"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)


@dataclass(frozen=True)
class ErrorReport:
    """How wrong an output is, and how wrong it may be.

    Args:
        max_error: Largest absolute error of the output.
        rms_error: Root mean square error of the output.
        max_bound: `2 * yardstick's largest error + rounding unit * largest magnitude of the oracle`.
        rms_bound: `2 * yardstick's RMS error + rounding unit * RMS of the oracle`.
        dtype: Dtype of the output; its rounding unit is half of `torch.finfo(dtype).eps`.
    """

    max_error: float
    rms_error: float
    max_bound: float
    rms_bound: float
    dtype: torch.dtype

    @property
    def max_ratio(self) -> float:
        """Largest error over its bound; at most 1 when within budget."""
        return _ratio(self.max_error, self.max_bound)

    @property
    def rms_ratio(self) -> float:
        """RMS error over its bound; at most 1 when within budget."""
        return _ratio(self.rms_error, self.rms_bound)

    @property
    def is_within_budget(self) -> bool:
        """Whether both ratios are at most 1."""
        return self.max_ratio <= 1.0 and self.rms_ratio <= 1.0

    def __str__(self) -> str:
        """Return one line with both errors, bounds and ratios."""
        return (
            f"{self.dtype}: max error {self.max_error:.3e} of {self.max_bound:.3e} allowed "
            f"(ratio {self.max_ratio:.3g}), RMS error {self.rms_error:.3e} of {self.rms_bound:.3e} allowed "
            f"(ratio {self.rms_ratio:.3g})"
        )


def quantise(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor rounded to `dtype` when it is a float tensor; integers and booleans pass unchanged."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def promote(tensor: Tensor) -> Tensor:
    """Return the tensor in fp64 when it is a float tensor; integers and booleans pass unchanged."""
    return tensor.double() if tensor.is_floating_point() else tensor


def error_report(actual: Tensor, reference_fp64: Tensor, yardstick: Tensor) -> ErrorReport:
    """Compare an output and a yardstick with the fp64 oracle.

    `bound = 2 * error(yardstick) + eps / 2 * scale(oracle)`, once with maxima and once with root mean squares.

    Args:
        actual: The kernel's output; any shape, float dtype, any device.
        reference_fp64: The oracle's output for the same quantised inputs; same shape, fp64.
        yardstick: The plain formula's output in the test's dtype; same shape and dtype as `actual`.

    Returns:
        The report. Where the oracle is NaN or infinite, the output must be the same NaN or infinity; anything else
        there, or a non-finite output where the oracle is finite, counts as an infinite error.

    Raises:
        TypeError: `reference_fp64` is not fp64, or the dtypes of `actual` and `yardstick` differ or are not float.
        ValueError: Shapes differ, or the yardstick overflows where the oracle does not (choose other inputs).
    """
    if reference_fp64.dtype != torch.float64:
        raise TypeError(f"reference_fp64 must be torch.float64; got {reference_fp64.dtype}")
    if actual.dtype != yardstick.dtype or not actual.is_floating_point():
        raise TypeError(
            f"actual and yardstick must have one float dtype; got actual {actual.dtype}, yardstick {yardstick.dtype}"
        )
    if not actual.shape == reference_fp64.shape == yardstick.shape:
        raise ValueError(
            "actual, reference_fp64 and yardstick must have one shape; "
            f"got {list(actual.shape)}, {list(reference_fp64.shape)}, {list(yardstick.shape)}"
        )
    dtype = actual.dtype
    oracle = reference_fp64.detach().cpu()
    error = _absolute_error(actual, oracle)
    yardstick_error = _absolute_error(yardstick, oracle)
    if not bool(yardstick_error.isfinite().all()):
        raise ValueError(
            f"yardstick must be finite wherever reference_fp64 is; it overflows in {dtype}: choose smaller inputs"
        )
    scale = oracle.abs().where(oracle.isfinite(), 0.0)
    unit = torch.finfo(dtype).eps / 2
    return ErrorReport(
        max_error=_largest(error),
        rms_error=_rms(error),
        max_bound=YARDSTICK_FACTOR * _largest(yardstick_error) + unit * _largest(scale),
        rms_bound=YARDSTICK_FACTOR * _rms(yardstick_error) + unit * _rms(scale),
        dtype=dtype,
    )


def assert_within_budget(actual: Tensor, reference_fp64: Tensor, yardstick: Tensor, name: str = "output") -> None:
    """Raise `AssertionError` with errors, bounds and ratios unless the output keeps its error budget.

    Args:
        actual: As for `error_report`.
        reference_fp64: As for `error_report`.
        yardstick: As for `error_report`.
        name: What the tensor is, for the text.

    Raises:
        AssertionError: The largest or the RMS error is above its bound.
        TypeError: As for `error_report`.
        ValueError: As for `error_report`.
    """
    report = error_report(actual, reference_fp64, yardstick)
    if not report.is_within_budget:
        raise AssertionError(f"{name} is outside its error budget; {report}")


def assert_operator_within_budget(
    operator: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    yardstick: Callable[..., Any] | None = None,
    check_gradients: bool = False,
    seed: int = 0,
) -> None:
    """Run an operator, its oracle and its yardstick on the same quantised inputs and hold every output to the budget.

    Args:
        operator: The implementation under test, called as `operator(*inputs)`; returns a tensor or a tuple of them.
        reference: The definition; called with the quantised inputs promoted to fp64.
        inputs: Tensors of any shape; float ones are quantised to `dtype`, others pass unchanged.
        dtype: The test's dtype.
        yardstick: Plain formula to run in `dtype`; default `reference`.
        check_gradients: Also hold the gradients of all float inputs, for one random upstream gradient per output.
        seed: Seed of the upstream gradients.

    Raises:
        AssertionError: An output or a gradient is outside its budget; the text names it and gives the ratios.
    """
    quantised = [quantise(tensor, dtype) for tensor in inputs]
    wanted = [i for i, tensor in enumerate(quantised) if check_gradients and tensor.is_floating_point()]
    run = partial(outputs_and_gradients, dtype=dtype, gradients_of=wanted, seed=seed)
    actual = run(operator, quantised)
    oracle = run(reference, [promote(tensor) for tensor in quantised])
    eager = run(yardstick or reference, quantised)
    for (name, got), (_, exact), (_, plain) in zip(actual, oracle, eager, strict=True):
        assert_within_budget(got, exact, plain.to(got.dtype), name)


def outputs_and_gradients(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    gradients_of: Sequence[int] = (),
    *,
    seed: int = 0,
    upstream: Sequence[Tensor] | None = None,
) -> list[tuple[str, Tensor]]:
    """Run a function, and its backward pass for one random upstream gradient per differentiable output.

    Args:
        function: Called as `function(*inputs)`; returns a tensor or a sequence of them.
        inputs: Tensors of any shape, dtype and strides; passed on as they are, so the function must not change them.
        dtype: The upstream gradients are rounded to it, so that runs in other dtypes can be given the same ones.
        gradients_of: Positions of the inputs whose gradients are wanted; float tensors. Empty: no backward pass.
        seed: Seed of the upstream gradients.
        upstream: Upstream gradients to use instead, one per output.

    Returns:
        Names and values: the outputs, then the gradients.
    """
    leaves = [tensor.detach().requires_grad_(i in gradients_of) for i, tensor in enumerate(inputs)]
    result = function(*leaves)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    named = [(f"output {i}", output.detach()) for i, output in enumerate(outputs)]
    if gradients_of:
        upstream = random_upstream(outputs, dtype, seed) if upstream is None else upstream
        pairs = [(output, grad) for output, grad in zip(outputs, upstream, strict=True) if output.requires_grad]
        gradients = torch.autograd.grad(
            [output for output, _ in pairs], [leaves[i] for i in gradients_of], [grad for _, grad in pairs]
        )
        named += [(f"gradient of input {i}", grad) for i, grad in zip(gradients_of, gradients, strict=True)]
    return named


def random_upstream(outputs: Sequence[Tensor], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Return a normal gradient for each output, rounded to `dtype`, in the output's dtype and on its device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(output.shape, generator=generator).to(dtype).to(output) for output in outputs]


@contextmanager
def poison_empty(*, native: bool = False) -> Iterator[None]:
    """Make freshly allocated tensors start as NaN (integers: their largest value) inside the block.

    Replaces `torch.empty`, `empty_like`, `empty_strided`, `empty_permuted`, `Tensor.new_empty` and
    `Tensor.new_empty_strided`, so that an element that a kernel forgets to write shows.

    Args:
        native: Also poison what compiled code allocates through ATen. That needs PyTorch's deterministic mode
            (warnings only), which may choose other algorithms inside the block.
    """
    with ExitStack() as stack:
        for owner, name in _EMPTY_FACTORIES:
            stack.enter_context(mock.patch.object(owner, name, _poisoned(getattr(owner, name))))
        if native:
            stack.enter_context(_deterministic_fill())
        yield


def _poisoned(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate(*args: Any, **kwargs: Any) -> Tensor:
        tensor = factory(*args, **kwargs)
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            poison: float | int = math.nan
        else:
            poison = 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
        tensor.detach().fill_(poison)
        return tensor

    return allocate


@contextmanager
def _deterministic_fill() -> Iterator[None]:
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = was_filling  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(was_on, warn_only=was_warn_only)


def _absolute_error(tensor: Tensor, oracle: Tensor) -> Tensor:
    value = tensor.detach().double().cpu()
    error = (value - oracle).abs()
    same_special = (value == oracle) | (value.isnan() & oracle.isnan())
    # A NaN difference means a special value on one side only.
    return error.nan_to_num(nan=math.inf, posinf=math.inf).where(~same_special, 0.0)


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def _ratio(error: float, bound: float) -> float:
    if error == 0.0:
        return 0.0
    return error / bound if bound > 0.0 else math.inf
