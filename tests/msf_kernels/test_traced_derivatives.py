"""Second derivatives of calls that torch.compile has traced: right, or refused; never without a part."""

import pytest
import torch
from torch import Tensor

import msf_kernels
from msf_kernels.testing.case import InputDraw
from msf_kernels.testing.cases import fixed_cases
from msf_kernels.testing.derivatives import floating_inputs

# PyTorch's tracer looks at it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CALLS = [
    pytest.param(case, backend, id=f"{operator}-{backend}")
    for operator, table in msf_kernels.backends().items()
    for case in fixed_cases(operator)
    if case.label == "tiny" and floating_inputs(case)
    for backend in ("auto", *(name for name in table if name != "reference"))
]


def gradients(value, leaves, **options):
    if not value.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(value, leaves, allow_unused=True, **options)


def second(case, backend, is_linear, compiler=None):
    """Return the gradient of the sum of all gradients of a loss that is, or is not, linear in the outputs."""
    inputs = list(case.draw(InputDraw(torch.float32, torch.device("cpu"), seed=0)))
    places = floating_inputs(case)

    def outputs(*given):
        for place, tensor in zip(places, given, strict=True):
            inputs[place] = tensor
        result = case.call(case.function(backend), torch.float32, *inputs)
        return [x for x in ((result,) if isinstance(result, Tensor) else result) if x.is_floating_point()]

    torch._dynamo.reset()
    leaves = [inputs[place].clone().requires_grad_() for place in places]
    results = (torch.compile(outputs, backend=compiler) if compiler else outputs)(*leaves)
    loss = sum(x.double().sum() if is_linear else x.double().sin().sum() for x in results)
    once = [x for x in gradients(loss, leaves, create_graph=True) if x is not None]
    return gradients(sum((x.double().sum() for x in once), torch.zeros(())), leaves)


@pytest.mark.parametrize("is_linear", [False, True], ids=["curved", "linear"])
@pytest.mark.parametrize(("case", "backend"), CALLS)
def test_a_traced_call_has_the_second_derivative_or_refuses(need_backend, case, backend, is_linear):
    if backend != "auto":
        need_backend(case.operator, backend)
    try:
        expected = second(case, "reference", is_linear)
    except NotImplementedError:
        pytest.skip("has no derivative")
    try:
        actual = second(case, backend, is_linear, "eager")
    except (NotImplementedError, RuntimeError) as error:
        actual = str(error)
    if isinstance(actual, str):  # the latter is PyTorch's own refusal, of an operator of its own
        assert "reference" in actual or "derivative for aten::" in actual
        return
    for mine, theirs in zip(actual, expected, strict=True):
        if mine is None or theirs is None:
            assert all(x is None or not x.count_nonzero() for x in (mine, theirs))
        else:
            torch.testing.assert_close(mine, theirs, rtol=5e-3, atol=5e-3 * max(1.0, float(theirs.abs().max())))
