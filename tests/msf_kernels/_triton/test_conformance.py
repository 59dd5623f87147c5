"""The Triton kernels, in Triton's interpreter, against the definition: outputs, gradients, dtypes, memory formats."""

import pytest
import torch

from msf_kernels.testing.cases import fixed_cases, random_case
from msf_kernels.testing.conformance import PASS, check, expectations

pytestmark = pytest.mark.interpreter

OPERATORS = ["philox_normal", "philox_words", "symmetric_path", "rk_combine", "class_distance"]
DTYPES = [torch.float32, torch.float16]
N_DRAWS = 200
CPU = torch.device("cpu")


def failures(case, dtype):
    dtype = dtype if case.has_dtype else torch.int64
    verdicts = check(case, "triton", dtype, CPU, expectations(case, dtype, CPU))
    return [f"{v.case} {v.dtype} {v.output}: {v.verdict} {v.note}" for v in verdicts if v.verdict != PASS]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_keep_the_error_budget_on_the_shapes_on_which_kernels_break(operator, dtype):
    assert not [text for case in fixed_cases(operator) for text in failures(case, dtype)]


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_keep_the_error_budget_on_random_draws(operator):
    draws = ((random_case(operator, seed), DTYPES[seed % 2]) for seed in range(N_DRAWS))
    assert not [text for case, dtype in draws for text in failures(case, dtype)]
