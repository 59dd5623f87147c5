"""Every backend of every registered operator against the definition: outputs, gradients, dtypes, memory formats.

One test per operator, case, dtype and backend, from the registry: a new operator or backend is held to its definition
without being named here. `pytest -k "conv3x3 and triton"` or `-k "prime and float16"` chooses some. On a CPU the Triton
kernels run in Triton's interpreter.
"""

import functools

import pytest
import torch

import msf_kernels
from msf_kernels.testing.cases import fixed_cases, random_case
from msf_kernels.testing.conformance import PASS, REFUSED, check, expectations

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N_BLOCKS, BLOCK = 4, 50
# The definition is what the others are compared with.
BACKENDS = {
    operator: [name for name in table if name != "reference"] for operator, table in msf_kernels.backends().items()
}


def dtypes_of(case, backend):
    """Return the dtypes to test; Triton's interpreter is wrong in bfloat16, and refuses it."""
    if not case.has_dtype:
        return (torch.int64,)
    return [dtype for dtype in DTYPES if not (backend == "triton" and DEVICE.type == "cpu" and dtype == torch.bfloat16)]


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def marks_of(case, backend):
    """A map of the network's size takes the interpreter more than ten seconds."""
    is_long = backend == "triton" and DEVICE.type == "cpu" and case.label.startswith("network")
    return [pytest.mark.slow] if is_long else []


def calls():
    for operator, backends in BACKENDS.items():
        for case in fixed_cases(operator):
            for dtype in DTYPES if case.has_dtype else (torch.int64,):
                for backend in backends:
                    if dtype in dtypes_of(case, backend):
                        name = f"{operator}-{backend}-{name_of(dtype)}-{case.label.replace(' ', '_')}"
                        yield pytest.param(case, backend, dtype, id=name, marks=marks_of(case, backend))


@functools.lru_cache(maxsize=4)
def expected(operator, label, dtype):
    (case,) = (case for case in fixed_cases(operator) if case.label == label)
    return expectations(case, dtype, DEVICE)


def wrong(verdicts):
    return [
        f"{v.case} {v.dtype} {v.output}: {v.verdict} {v.note}" for v in verdicts if v.verdict not in (PASS, REFUSED)
    ]


@pytest.mark.parametrize(("case", "backend", "dtype"), list(calls()))
def test_a_backend_keeps_the_error_budget(need_backend, case, backend, dtype):
    need_backend(case.operator, backend)
    verdicts = check(case, backend, dtype, DEVICE, expected(case.operator, case.label, dtype))
    assert not wrong(verdicts)
    if any(v.verdict == REFUSED for v in verdicts):
        pytest.skip(f"refused: {verdicts[0].note}")


@pytest.mark.parametrize(
    ("operator", "backend"),
    [
        pytest.param(operator, backend, id=f"{operator}-{backend}")
        for operator, backends in BACKENDS.items()
        for backend in backends
    ],
)
def test_a_backend_serves_some_case_in_every_dtype_or_says_why_not(need_backend, operator, backend):
    need_backend(operator, backend)
    case = next(case for case in fixed_cases(operator) if case.label == "tiny")
    kinds = set()
    for dtype in dtypes_of(case, backend):
        for verdict in check(case, backend, dtype, DEVICE, expected(operator, case.label, dtype)):
            kinds.add(verdict.verdict)
            assert verdict.note or verdict.verdict == PASS
    assert PASS in kinds


@pytest.mark.slow
@pytest.mark.parametrize("block", range(N_BLOCKS), ids=lambda block: f"seeds{block * BLOCK}to{(block + 1) * BLOCK}")
@pytest.mark.parametrize(
    ("operator", "backend"),
    [
        pytest.param(operator, backend, id=f"{operator}-{backend}")
        for operator, backends in BACKENDS.items()
        for backend in backends
    ],
)
def test_a_backend_keeps_the_error_budget_on_random_draws(need_backend, operator, backend, block):
    need_backend(operator, backend)
    found = []
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        case = random_case(operator, seed)
        dtypes = dtypes_of(case, backend)
        dtype = dtypes[seed % len(dtypes)]
        found += check(case, backend, dtype, DEVICE, expectations(case, dtype, DEVICE))
    assert not wrong(found)
    assert any(verdict.verdict == PASS for verdict in found)
