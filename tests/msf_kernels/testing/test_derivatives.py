"""Derivatives of every registered operator on every backend: those of the definition, or a refusal that names it.

From the registry, as the conformance: a new operator or backend is tried without being named here.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import msf_kernels
from msf_kernels.testing.case import InputDraw
from msf_kernels.testing.cases import fixed_cases

# PyTorch's forward mode uses the one, its tracer the other.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

LARGEST = 700  # values of all inputs; the interpreter is slow
DOUBLE = torch.float64


class Loss:
    """A curved function of the floating inputs of a case, through one backend."""

    def __init__(self, case, backend, dtype):
        self.case, self.function, self.dtype = case, case.function(backend), dtype
        self.inputs = case.draw(InputDraw(dtype, torch.device("cpu"), 0))
        self.places = [i for i, x in enumerate(self.inputs) if x.is_floating_point()]
        self.arguments = tuple(range(len(self.places)))
        generator = torch.Generator().manual_seed(1)
        self.tangents = tuple(
            torch.randn(self.inputs[i].shape, generator=generator).to(self.inputs[i].dtype) for i in self.places
        )

    def leaves(self, requires_grad=False):
        return [self.inputs[i].detach().clone().requires_grad_(requires_grad) for i in self.places]

    def outputs(self, *given):
        inputs = list(self.inputs)
        for place, tensor in zip(self.places, given, strict=True):
            inputs[place] = tensor
        result = self.case.call(self.function, self.dtype, *inputs)
        return [x for x in ((result,) if isinstance(result, Tensor) else result) if x.is_floating_point()]

    def __call__(self, *given):
        def weighed(x):
            return (x.double().sin() * torch.linspace(-1.3, 0.9, x.numel(), dtype=DOUBLE).reshape(x.shape)).sum()

        return sum(weighed(x) for x in self.outputs(*given))


def along(gradients, tangents):
    terms = [(g.double() * v).sum() for g, v in zip(gradients, tangents, strict=True) if g is not None]
    return sum(terms, torch.zeros((), dtype=DOUBLE))


def gradients(value, leaves, **options):
    if not value.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(value, leaves, allow_unused=True, **options)


def second(loss, function=None):
    x = loss.leaves(True)
    return gradients(along(gradients((function or loss)(*x), x, create_graph=True), loss.tangents), x)


def third(loss):
    x = loss.leaves(True)
    once = gradients(loss(*x), x, create_graph=True)
    twice = gradients(along(once, loss.tangents), x, create_graph=True)
    return gradients(along([g.square() if g is not None else g for g in twice], loss.tangents), x)


def first(loss):
    x = loss.leaves(True)
    return gradients(loss(*x), x)


def first_twice(loss):
    x = loss.leaves(True)
    value = loss(*x)
    gradients(value, x, retain_graph=True)
    return gradients(value, x)


def recomputed(loss):
    return second(loss, lambda *x: checkpoint(loss, *x, use_reentrant=False))


def strided(loss):
    wide = [torch.stack([x, x], -1).requires_grad_() for x in loss.leaves()]
    once = gradients(loss(*(x[..., 1] for x in wide)), wide, create_graph=True)
    return gradients(along(once, [v[..., None] for v in loss.tangents]), wide)


def dual(loss):
    with forward_ad.dual_level():
        pairs = [forward_ad.make_dual(x, v) for x, v in zip(loss.leaves(), loss.tangents, strict=True)]
        return [forward_ad.unpack_dual(loss(*pairs)).tangent]


def pulled_back(loss):
    value, pull = vjp(loss, *loss.leaves())
    return pull(torch.ones_like(value))


def vectorised(loss):
    stacked = [torch.stack([x, x + v]) for x, v in zip(loss.leaves(), loss.tangents, strict=True)]
    return vmap(grad(loss, loss.arguments))(*stacked)


def batched(loss):
    x = loss.leaves(True)
    outputs = [out for out in loss.outputs(*x) if out.requires_grad]
    if not outputs:
        return [None]
    many = torch.stack([torch.ones_like(outputs[0]), torch.full_like(outputs[0], -0.5)])
    return torch.autograd.grad(outputs[0], x, many, is_grads_batched=True, allow_unused=True)


MODES = {
    "first": first,
    "first twice": first_twice,
    "second": second,
    "third": third,
    "second of a checkpoint": recomputed,
    "second of strided": strided,
    "dual": dual,
    "jvp": lambda loss: [jvp(loss, tuple(loss.leaves()), loss.tangents)[1]],
    "vjp": pulled_back,
    "grad": lambda loss: grad(loss, loss.arguments)(*loss.leaves()),
    "grad of leaves": lambda loss: grad(loss, loss.arguments)(*loss.leaves(True)),
    "vmap of grad": vectorised,
    "forward over reverse": lambda loss: jvp(grad(loss, loss.arguments), tuple(loss.leaves()), loss.tangents)[1],
    "reverse over forward": lambda loss: grad(lambda *x: jvp(loss, x, loss.tangents)[1], loss.arguments)(
        *loss.leaves()
    ),
    "batched gradients": batched,
}


def outcome(mode, loss):
    try:
        return MODES[mode](loss)
    except msf_kernels.BackendUnavailableError as error:
        return error
    except NotImplementedError as error:
        return error


def assert_same(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        if mine is None or theirs is None:
            assert all(x is None or not x.count_nonzero() for x in (mine, theirs))
        else:
            size = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * max(1.0, size))


def small_cases(operator):
    draw = InputDraw(DOUBLE, torch.device("cpu"), 0)
    inputs = {case: case.draw(draw) for case in fixed_cases(operator)}
    return [
        case
        for case, tensors in inputs.items()
        if sum(x.numel() for x in tensors) <= LARGEST and any(x.is_floating_point() for x in tensors)
    ][:2]


def calls():
    for operator, table in msf_kernels.backends().items():
        for backend in ("auto", *(name for name in table if name != "reference")):
            for case in small_cases(operator):
                for dtype in (torch.float32, DOUBLE) if case.label == "tiny" else (torch.float32,):
                    name = f"{operator}-{backend}-{case.label.replace(' ', '_')}-{str(dtype).removeprefix('torch.')}"
                    yield pytest.param(case, backend, dtype, id=name)


def skip_unless_served(need_backend, case, backend):
    if backend != "auto":
        need_backend(case.operator, backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("case", "backend", "dtype"), list(calls()))
def test_a_derivative_is_that_of_the_definition_or_refused(need_backend, case, backend, dtype, mode):
    skip_unless_served(need_backend, case, backend)
    expected, actual = (outcome(mode, Loss(case, name, dtype)) for name in ("reference", backend))
    if isinstance(actual, Exception):
        assert backend != "auto" or isinstance(expected, Exception)
        assert "reference" in str(actual) or "torch.no_grad()" in str(actual)
    else:
        assert not isinstance(expected, Exception)
        # Two implementations of the same normals differ by 2e-6.
        exact = 1e-4 if case.operator == "symmetric_path" else 1e-8
        assert_same(actual, expected, exact if dtype == DOUBLE else 5e-3)


@pytest.mark.parametrize("is_linear", [False, True], ids=["curved", "linear"])
@pytest.mark.parametrize(("case", "backend", "dtype"), [call for call in calls() if "tiny-float32" in call.id])
def test_a_traced_call_has_the_second_derivative_or_refuses(need_backend, case, backend, dtype, is_linear):
    """Where the tracer runs the backward pass unrecorded, a part of the derivative would be missing."""
    skip_unless_served(need_backend, case, backend)

    def twice(name, compiler):
        loss = Loss(case, name, dtype)
        torch._dynamo.reset()
        traced = torch.compile(loss.outputs, backend=compiler) if compiler else loss.outputs
        x = loss.leaves(True)
        outputs = traced(*x)
        value = sum(out.double().sum() if is_linear else out.double().sin().sum() for out in outputs)
        return gradients(along(gradients(value, x, create_graph=True), loss.tangents), x)

    try:
        expected = twice("reference", None)
    except NotImplementedError:
        pytest.skip("has no derivative")
    try:
        actual = twice(backend, "eager")
    except (NotImplementedError, RuntimeError) as error:
        actual = str(error)
    if isinstance(actual, str):  # the latter is PyTorch's own refusal, of an operator of its own
        assert "reference" in actual or "derivative for aten::" in actual
    else:
        assert_same(actual, expected, 5e-3)
