"""What tests of kernels and solvers need: error budgets, poisoned memory and an exact velocity field."""

from msf_kernels.testing.budget import (
    ErrorReport,
    assert_operator_within_budget,
    assert_within_budget,
    error_report,
    outputs_and_gradients,
    poison_empty,
    promote,
    quantise,
    random_upstream,
)
from msf_kernels.testing.exact_field import GaussianMixtureFlow

__all__ = [
    "ErrorReport",
    "GaussianMixtureFlow",
    "assert_operator_within_budget",
    "assert_within_budget",
    "error_report",
    "outputs_and_gradients",
    "poison_empty",
    "promote",
    "quantise",
    "random_upstream",
]
