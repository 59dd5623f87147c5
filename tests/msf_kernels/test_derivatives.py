"""Every operator, backend and way of taking a derivative: right, or refused by name."""

import pytest
import torch

import msf_kernels
from msf_kernels import BackendUnavailableError, backends, rk_combine
from msf_kernels._derivatives import Derivatives
from msf_kernels.backend import Backend, Operator, _registry
from msf_kernels.testing.case import InputDraw
from msf_kernels.testing.cases import fixed_cases
from msf_kernels.testing.derivatives import DERIVATIVES, curve_of, floating_inputs

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

CPU = torch.device("cpu")
# Of a case's inputs. Triton's interpreter is slow.
MAX_VALUES, MAX_INTERPRETED = 2000, 700
# Means far from zero lose float32's digits in any formula; the square root of an error that is zero whatever moves has
# no derivative.
UNFIT = {
    ("group_norm_silu", "large mean"),
    ("scaled_error_norm", "no slope"),
}
TOLERANCE = 2e-3  # of the largest value; what is wrong is wrong by a whole term


def cases_of(operator, max_values=MAX_VALUES):
    """Return the cases with something to differentiate that are small enough for the many calls that it takes."""
    found = []
    for case in fixed_cases(operator):
        inputs = case.draw(InputDraw(torch.float32, CPU, seed=0))
        n_values = sum(tensor.numel() for tensor in inputs)
        if floating_inputs(case) and n_values <= max_values and (operator, case.label) not in UNFIT:
            found.append(case)
    return found


def n_inputs_and_values(case):
    inputs = case.draw(InputDraw(torch.float32, CPU, seed=0))
    return len(floating_inputs(case)), sum(tensor.numel() for tensor in inputs)


# None of their backends, the definition included, has a derivative: they are for weights that stay.
INFERENCE_ONLY = [
    operator
    for operator in sorted(backends())
    if all(backend.derivatives is Derivatives.NONE for backend in _registry[operator].backends.values())
    and any(floating_inputs(case) for case in fixed_cases(operator))
]
OPERATORS = [
    operator
    for operator in sorted(backends())
    if operator not in INFERENCE_ONLY and any(floating_inputs(case) for case in fixed_cases(operator))
]
CALLS = [
    pytest.param(operator, backend, id=f"{operator}-{backend}")
    for operator in OPERATORS
    for backend in (*backends()[operator], "auto")
]


def failures(case, backend, moved=None):
    """Return what a backend has wrong of a case, and how many derivatives it refused."""
    wanted = curve_of(case, "reference", torch.float64, moved)
    curve = curve_of(case, backend, torch.float32, moved)
    wrong, n_refused = [], 0
    for name, derivative in DERIVATIVES.items():
        expected = derivative(wanted, torch.float64).detach()
        try:
            found = derivative(curve, torch.float32).detach()
        except NotImplementedError as error:
            n_refused += 1
            if "reference" not in str(error) or backend in ("auto", "reference"):
                wrong.append(f"{name}: {error}")
            continue
        error = (found.double() - expected).abs().max()
        if not error <= TOLERANCE * expected.abs().max() + 1e-6:
            wrong.append(f"{name}: {found} for {expected}")
    return wrong, n_refused


def test_every_operator_with_floating_inputs_has_cases_to_differentiate():
    assert {operator for operator in OPERATORS if not cases_of(operator)} == set()
    assert set(backends()) - set(OPERATORS) - set(INFERENCE_ONLY) == {"philox_normal", "philox_words"}
    assert INFERENCE_ONLY == ["prepared_convolution"]


@pytest.mark.parametrize(("operator", "backend"), CALLS)
def test_every_derivative_is_right_or_refused_by_name(operator, backend, need_backend):
    if backend != "auto":
        need_backend(operator, backend)
    for case in cases_of(operator, MAX_INTERPRETED if backend == "triton" else MAX_VALUES):
        wrong, n_refused = failures(case, backend)
        assert not wrong, f"{case.label}: {wrong}"
        if _registry[operator].backends.get(backend, Backend("", print)).derivatives is Derivatives.NONE:
            assert backend == "auto" or n_refused == len(DERIVATIVES), case.label


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("operator", INFERENCE_ONLY)
def test_what_is_for_inference_refuses_every_derivative_and_says_what_has_it(operator, name):
    for case in cases_of(operator)[:2]:
        with pytest.raises(NotImplementedError, match="has no gradient and no derivative.*conv2d"):
            DERIVATIVES[name](curve_of(case, "auto", torch.float32), torch.float32)


@pytest.mark.parametrize(("operator", "backend"), CALLS)
def test_derivatives_with_respect_to_each_input_alone(operator, backend, need_backend):
    if backend != "auto":
        need_backend(operator, backend)
    case = max(cases_of(operator), key=n_inputs_and_values)
    for place in floating_inputs(case):
        wrong, _ = failures(case, backend, [place])
        assert not wrong, f"input {place} of {case.label}: {wrong}"


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_definition_has_the_derivatives_of_finite_differences(operator):
    for case in cases_of(operator):
        curve = curve_of(case, "reference", torch.float64)
        s = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(curve, (s,), check_forward_ad=True, check_batched_grad=True)
        torch.autograd.gradgradcheck(curve, (s,), check_batched_grad=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("operator", ["rk_combine", "class_distance", "symmetric_path"])
def test_kernels_in_float64_pass_gradgradcheck(operator, backend, need_backend):
    need_backend(operator, backend)
    for case in cases_of(operator):
        moved = [place for place in floating_inputs(case) if (operator, place) != ("symmetric_path", 2)]
        curve = curve_of(case, backend, torch.float64, moved)
        s = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(curve, (s,), check_batched_grad=True)
        torch.autograd.gradgradcheck(curve, (s,), check_batched_grad=True)


def test_a_kernel_that_says_nothing_of_derivatives_is_not_differentiated():
    name = "operator of a test"
    operator = Operator(
        name,
        [Backend("kernel", torch.cos), Backend("reference", torch.sin, derivatives=Derivatives.ALL)],
    )
    del _registry[name]
    x = torch.tensor([0.3])
    leaf = x.clone().requires_grad_()
    assert operator("auto", x) == x.cos()
    assert operator("auto", leaf) == x.sin()
    with torch.no_grad():
        assert operator("auto", leaf) == x.cos()
    torch.testing.assert_close(torch.func.jvp(lambda x: operator("auto", x), (x,), (x,))[1], x * x.cos())
    for differentiated in (
        lambda: operator("kernel", leaf),
        lambda: torch.func.grad(lambda x: operator("kernel", x).sum())(x),
        lambda: torch.func.vmap(lambda x: operator("kernel", x))(x),
    ):
        with pytest.raises(NotImplementedError, match='backend="reference"') as caught:
            differentiated()
        assert isinstance(caught.value, BackendUnavailableError)
        assert caught.value.reasons["reference"] == []


def test_a_transform_that_follows_none_of_the_tensors_changes_nothing(need_backend):
    need_backend("rk_combine", "native")
    state = torch.randn(2, 3)

    def loss(scale):
        return (scale * rk_combine(state, [state], [1.0], 0.5, backend="native")).sum()

    torch.testing.assert_close(torch.func.grad(loss)(torch.tensor(2.0)), 1.5 * state.sum())
    index = torch.arange(2)
    noise = torch.func.grad(lambda x: (x * msf_kernels.philox_normal(index, (3,), 1)).sum())(state)
    assert torch.equal(noise, msf_kernels.philox_normal(index, (3,), 1))


def test_noise_inside_vmap_is_that_of_the_items(need_backend):
    index = torch.arange(6).view(3, 2)
    many = torch.func.vmap(lambda i: msf_kernels.philox_normal(i, (4,), 1))(index)
    torch.testing.assert_close(many, msf_kernels.philox_normal(index.flatten(), (4,), 1).view(3, 2, 4))
    need_backend("philox_normal", "native")
    with pytest.raises(NotImplementedError, match="reference"):
        torch.func.vmap(lambda i: msf_kernels.philox_normal(i, (4,), 1, backend="native"))(index)


@pytest.mark.parametrize("backend", ["native", "triton", "reference", "auto"])
def test_tensors_that_are_given_twice_get_the_sum_of_their_derivatives(backend, need_backend):
    if backend != "auto":
        need_backend("rk_combine", backend)
        need_backend("group_norm_silu", backend)

    def loss(x, w, backend):
        combined = rk_combine(x, [x, x], [0.5, 0.25], w, backend=backend)
        h = combined[:, :, None, None] * torch.tensor([0.3, -0.4, 1.2]).to(x.dtype)  # [N, C, 1, W]
        normed = msf_kernels.group_norm_silu(h, 1, w, w, add=x, scale=x, backend=backend)
        return (normed**3).sum()

    inputs = [torch.randn(4, 4), torch.randn(4)]
    found = []
    for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
        x, w = (tensor.to(dtype).requires_grad_() for tensor in inputs)
        first = torch.autograd.grad(loss(x, w, name), (x, w), create_graph=True)
        found.append([*first, *torch.autograd.grad(sum((g**2).sum() for g in first), (x, w))])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
def test_the_second_derivative_on_a_code_is_zero_not_nan(backend, need_backend):
    need_backend("class_distance", backend)
    codes = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    semantic = codes[:, :, None, None].expand(2, 2, 1, 3).clone().requires_grad_()
    distance, _ = msf_kernels.class_distance(semantic, codes, backend=backend)
    (first,) = torch.autograd.grad(distance.sum(), semantic, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum() + first.sum(), semantic)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_a_first_pass_that_is_recorded_may_be_repeated(need_backend):
    need_backend("spatial_attention", "sdpa")
    qkv = torch.randn(1, 5, 24, requires_grad=True)
    out = msf_kernels.spatial_attention(qkv, 2, backend="sdpa")
    first = torch.autograd.grad(out.sum(), qkv, retain_graph=True)[0]
    again = torch.autograd.grad(out.sum(), qkv)[0]
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), qkv)


@pytest.mark.parametrize("family", ["msf_native", "msf_triton"])
def test_registered_operators_refuse_to_be_taken_for_constants(family, need_backend):
    need_backend("rk_combine", family.removeprefix("msf_"))
    fwd = getattr(torch.ops, family).rk_combine_fwd
    x = torch.randn(2, 3)

    def combine(x):
        return fwd(x, [x], [1.0], 0.1, None)

    for differentiated in (
        lambda: torch.func.jvp(combine, (x,), (x,)),
        lambda: torch.func.grad(lambda x: combine(x).sum())(x),
        lambda: torch.func.vmap(combine)(x),
    ):
        with pytest.raises(NotImplementedError, match="reference"):
            differentiated()
    leaf = x.clone().requires_grad_()
    # PyTorch itself warns of the native one, and then has no gradient to give.
    error = NotImplementedError if family == "msf_triton" else (UserWarning, RuntimeError)
    with pytest.raises(error):
        torch.autograd.grad(combine(leaf).sum(), leaf)


def test_outputs_given_by_the_caller_take_no_part_in_derivatives():
    state, out = torch.randn(2, 3), torch.empty(2, 3)
    with pytest.raises(ValueError, match="out must be None while gradients are recorded"):
        rk_combine(state.clone().requires_grad_(), [state], [1.0], 0.1, out=out)
    with pytest.raises(ValueError, match="out must be None in forward mode and torch.func transforms"):
        torch.func.jvp(lambda x: rk_combine(x, [state], [1.0], 0.1, out=out), (state,), (state,))
    with pytest.raises(ValueError, match="out must be None in forward mode and torch.func transforms"):
        torch.func.vmap(lambda x: rk_combine(x, [x], [1.0], 0.1, out=out))(state[None])
