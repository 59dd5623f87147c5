import math

import pytest
import torch

from msf_kernels.testing import (
    assert_operator_within_budget,
    assert_within_budget,
    error_report,
    poison_empty,
    promote,
    quantise,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_correctly_rounded_output_is_within_budget_even_when_the_yardstick_is_exact(dtype):
    oracle = seeded(1000).double()
    exact = torch.zeros(1000, dtype=torch.float64)
    rounded = oracle.to(dtype)
    yardstick = rounded.clone()
    assert error_report(rounded, oracle, yardstick).is_within_budget
    assert error_report(exact.to(dtype), exact, exact.to(dtype)).is_within_budget


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_element_off_by_four_rounding_units_breaks_the_budget(dtype):
    oracle = seeded(1000).clamp(-1, 1).double()
    oracle[3] = 1.0
    yardstick = oracle.to(dtype)
    actual = yardstick.clone()
    actual[3] += 4 * torch.finfo(dtype).eps
    with pytest.raises(AssertionError, match=r"sum is outside its error budget; .*ratio [1-9]"):
        assert_within_budget(actual, oracle, yardstick, "sum")


def test_a_small_systematic_error_breaks_the_rms_bound_only():
    oracle = torch.full((1000,), 1.0, dtype=torch.float64)
    oracle[1:] = 0.01
    yardstick = oracle.float()
    report = error_report(yardstick + 2e-8 * torch.ones(1000), oracle, yardstick)
    assert report.max_ratio <= 1.0 < report.rms_ratio


def test_special_values_must_be_the_same_at_the_same_place():
    oracle = torch.tensor([1.0, math.inf, -math.inf, math.nan], dtype=torch.float64)
    same = oracle.float()
    assert error_report(same, oracle, same).is_within_budget
    for place, value in [(0, math.nan), (0, math.inf), (1, -math.inf), (1, 3.0), (3, 0.0), (2, math.nan)]:
        wrong = same.clone()
        wrong[place] = value
        assert error_report(wrong, oracle, same).max_ratio == math.inf


def test_an_empty_output_is_within_budget():
    empty = torch.empty(0, 3)
    assert error_report(empty, empty.double(), empty).is_within_budget


def test_wrong_arguments_of_the_report_name_what_is_wrong():
    x = torch.ones(3)
    with pytest.raises(TypeError, match=r"reference_fp64 must be torch.float64; got torch.float32"):
        error_report(x, x, x)
    with pytest.raises(TypeError, match="one float dtype"):
        error_report(x, x.double(), x.half())
    with pytest.raises(ValueError, match=r"one shape; got \[3\], \[2\], \[3\]"):
        error_report(x, torch.ones(2, dtype=torch.float64), x)
    with pytest.raises(ValueError, match="yardstick must be finite"):
        error_report(x.half(), torch.full((3,), 1e6, dtype=torch.float64), torch.full((3,), math.inf).half())


def test_quantise_and_promote_leave_integers_alone():
    labels = torch.arange(3)
    assert quantise(labels, torch.float16) is labels
    assert promote(labels) is labels
    assert promote(quantise(torch.tensor(0.1), torch.bfloat16)).item() == torch.tensor(0.1).bfloat16().item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_operator_that_accumulates_in_fp32_passes_with_its_gradients(dtype):
    def formula(x, y):
        return (x * y).sum(-1), x.exp()

    def operator(x, y):
        return tuple(out.to(dtype) for out in formula(x.float(), y.float()))

    assert_operator_within_budget(
        operator, formula, [seeded(5, 64), seeded(5, 64, seed=1)], dtype, check_gradients=True
    )


def test_an_operator_with_a_wrong_gradient_fails_and_is_named():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad

    with pytest.raises(AssertionError, match="gradient of input 0"):
        assert_operator_within_budget(Half.apply, lambda x: x * 2, [seeded(8)], torch.float32, check_gradients=True)


def test_poisoned_allocations_start_as_nan_and_the_factories_come_back_afterwards():
    before = torch.empty
    like = torch.ones(2, 3)
    with poison_empty():
        made = [
            torch.empty(2, 3),
            torch.empty_like(like),
            torch.empty_strided((2, 3), (3, 1)),
            torch.empty_permuted((2, 3), (1, 0)),
            like.new_empty(2, 3),
            like.new_empty_strided((2, 3), (3, 1)),
        ]
        whole = torch.empty(4, dtype=torch.int64)
        flags = torch.empty(4, dtype=torch.bool)
    assert all(bool(tensor.isnan().all()) for tensor in made)
    assert bool((whole == torch.iinfo(torch.int64).max).all())
    assert bool(flags.all())
    assert torch.empty is before


def test_poisoning_ends_when_the_block_raises():
    before = torch.empty_like
    with pytest.raises(RuntimeError, match="inside"), poison_empty():
        raise RuntimeError("inside")
    assert torch.empty_like is before


def test_native_poisoning_reaches_allocations_of_compiled_code_and_restores_the_mode():
    with poison_empty(native=True):
        resized = torch.ones(0).resize_(16)
        assert torch.are_deterministic_algorithms_enabled()
    assert bool(resized.isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()
