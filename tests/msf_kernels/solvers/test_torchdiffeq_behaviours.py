"""What torchdiffeq's users rely on, asked of `odeint`: accuracy, directions, dtypes, tuples, norms, gradients.

Problems have closed forms on t in [1, 8]. Times carry no gradient here: with one, torchdiffeq itself is called.
"""

import math

import pytest
import torch

from msf_kernels.solvers import odeint
from msf_kernels.solvers.odeint import ADAPTIVE_METHODS, DELEGATED_METHODS, FIXED_METHODS

METHODS = [*FIXED_METHODS, *ADAPTIVE_METHODS]
TIMES = torch.linspace(1.0, 8.0, 10, dtype=torch.float64)


class AttractingLine(torch.nn.Module):
    """The line `a t + b` solves `y' = a + (y - a t - b)^5`: any method of any order stays on it."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.2))
        self.b = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, t, y):
        return self.a + (y - (self.a * t + self.b)).pow(5)

    def exact(self, t):
        return (self.a * t + self.b)[:, None]


class Polynomial(torch.nn.Module):
    """`y' = 2 y / t + t^2 cos t`, so y = t^2 (c + sin t), c = 2."""

    def forward(self, t, y):
        return 2 * y / t + t**2 * torch.cos(t)

    def exact(self, t):
        return (t**2 * (2 + torch.sin(t)))[:, None]


class Coupled(torch.nn.Module):
    """A linear system, `y(t) = exp(A (t - 1)) y(1)`, of decaying rotations."""

    def __init__(self):
        super().__init__()
        half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) * 0.2
        self.matrix = torch.nn.Parameter(half - half.T - 0.1 * torch.eye(6))

    def forward(self, t, y):
        return self.matrix @ y

    def exact(self, t):
        start = torch.ones(6, dtype=t.dtype)
        return torch.stack([torch.matrix_exp(self.matrix * (time - 1.0)) @ start for time in t])


PROBLEMS = {"line": AttractingLine, "polynomial": Polynomial, "coupled": Coupled}


def problem(name, dtype, reverse=False):
    func = PROBLEMS[name]().to(dtype)
    t = TIMES.to(dtype)
    exact = func.exact(t).detach()
    return (func, t.flip(0), exact.flip(0)) if reverse else (func, t, exact)


def relative_error(actual, exact):
    return ((actual - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(PROBLEMS))
@pytest.mark.parametrize("method", METHODS)
def test_solutions_are_accurate_in_both_directions_and_dtypes(method, name, dtype, reverse):
    func, t, exact = problem(name, dtype, reverse)
    loose = {"adaptive_heun": 1e-4, "heun_euler": 1e-4}.get(method, 1e-6)
    arguments = {"rtol": loose, "atol": loose}
    if method in FIXED_METHODS:
        arguments = {"options": {"step_size": 0.02}}
    with torch.no_grad():
        y = odeint(func, exact[0], t, method=method, **arguments)
    assert y.dtype == dtype
    assert torch.equal(y[0], exact[0])
    assert relative_error(y, exact) < (0.2 if method == "euler" else 2e-2 if loose > 1e-6 else 5e-3)


@pytest.mark.parametrize("name", list(PROBLEMS))
@pytest.mark.parametrize("method", [*METHODS, *DELEGATED_METHODS[:1]])
def test_without_an_interval_nothing_is_integrated(method, name):
    func, t, exact = problem(name, torch.float64)
    if method in DELEGATED_METHODS:
        pytest.importorskip("torchdiffeq")
    y = odeint(func, exact[0], t[:1], method=method)
    assert torch.equal(y, exact[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_tuple_of_equal_members_is_solved_as_each_alone(method, dtype):
    func, t, exact = problem("line", dtype)
    tolerances = {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        pair = odeint(lambda t, y: (func(t, y[0]), func(t, y[1])), (exact[0], exact[0]), t, method=method, **tolerances)
    for member in pair:
        assert relative_error(member, exact) < 1e-4


@pytest.mark.parametrize("is_tuple", [False, True])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4", "dopri5", "bosh3"])
def test_gradients_to_the_start_and_the_parameters_are_those_of_differences(method, is_tuple):
    t = torch.linspace(1.0, 2.0, 4, dtype=torch.float64)
    y0 = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def solve(y0, rate):
        options = {"max_step": 0.1, "first_step": 0.1} if method in ADAPTIVE_METHODS else None
        arguments = {"method": method, "rtol": 1e-3, "atol": 1e-3, "options": options}
        if not is_tuple:
            return odeint(lambda t, y: torch.sin(rate * y) * t, y0, t, **arguments)
        return odeint(lambda t, y: (torch.sin(rate * y[0]) * t, -y[1]), (y0, y0), t, **arguments)[0]

    assert torch.autograd.gradcheck(solve, (y0, rate))


@pytest.mark.parametrize("shapes", [((),), ((), (2, 2)), ((3,), (2, 0), (1,))])
def test_a_norm_of_the_users_own_sees_the_state_as_he_gave_it(shapes):
    seen = []

    def norm(y):
        seen.append([member.shape for member in y])
        return y[0].pow(2).mean().sqrt()

    y0 = tuple(torch.ones(shape) for shape in shapes)
    t = torch.tensor([0.0, 1.0])
    odeint(lambda t, y: y, y0, t, rtol=1e-3, atol=1e-3, options={"norm": norm})
    assert {tuple(shapes) for shapes in seen} == {tuple(torch.Size(shape) for shape in shapes)}
    seen.clear()

    def scalar_norm(y):
        assert isinstance(y, torch.Tensor)
        seen.append(y.shape)
        return y.abs()

    odeint(lambda t, y: y, torch.tensor(1.0), t, rtol=1e-3, atol=1e-3, options={"norm": scalar_norm})
    assert set(seen) == {()}


@pytest.mark.parametrize("method", list(ADAPTIVE_METHODS))
def test_a_larger_norm_takes_at_least_as_many_evaluations(method):
    counts = []
    for scale in (1, 10):
        calls = []
        odeint(
            lambda t, y, calls=calls: calls.append(t) or torch.tanh(y) * torch.sin(20 * t),
            torch.tensor([1.0, 2.0], dtype=torch.float64),
            torch.tensor([0.0, 1.0]),
            method=method,
            rtol=1e-4,
            atol=1e-4,
            options={"norm": lambda y, scale=scale: scale * y.abs().max()},
        )
        counts.append(len(calls))
    assert counts[0] <= counts[1]


def test_a_jump_at_a_known_time_is_handed_over_and_right():
    pytest.importorskip("torchdiffeq")

    def func(t, y):
        return torch.where(t < 0.5, -0.5 * y, y**2)

    options = {"jump_t": torch.tensor([0.5], dtype=torch.float64)}
    y = odeint(func, torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0, 1.0]).double(), options=options)
    middle = math.exp(-0.25)
    assert y[-1].item() == pytest.approx(1 / (1 / middle - 0.5), rel=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
def test_an_event_ends_the_solve_where_its_function_is_zero(method, reverse):
    pytest.importorskip("torchdiffeq")
    func, t, exact = problem("line", torch.float64, reverse)
    options = {"step_size": 0.01, "interp": "cubic"} if method == "rk4" else None
    with torch.no_grad():
        time, y = odeint(
            func, exact[0], t[:2], method=method, options=options, event_fn=lambda t, y: (y - exact[2]).sum()
        )
    assert time.item() == pytest.approx(t[2].item(), rel=1e-4)
    assert y[-1].item() == pytest.approx(exact[2].item(), rel=1e-4)


def test_gradients_to_times_and_complex_states_are_handed_over():
    pytest.importorskip("torchdiffeq")
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad(odeint(lambda t, y: -y, y0, t)[-1].sum(), t)
    assert grad.tolist() == pytest.approx([math.exp(-1), -math.exp(-1)], rel=1e-5)
    y = odeint(lambda t, y: 1j * y, torch.ones(1, dtype=torch.complex128), torch.tensor([0.0, math.pi]).double())
    assert y[-1].item() == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_callers_options_are_left_as_they_were(method):
    options = {"step_size": 0.25} if method in FIXED_METHODS else {"safety": 0.8, "ifactor": 5.0}
    given = dict(options)
    odeint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]), method=method, rtol=1e-2, options=options)
    assert options == given


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_times_on_another_dtype_do_not_change_that_of_the_state(method):
    for time_dtype in (torch.float32, torch.float64):
        y = odeint(lambda t, y: -y * t, torch.ones(3), torch.linspace(0, 1, 3, dtype=time_dtype), method=method)
        assert y.dtype == torch.float32
        assert y[-1, 0].item() == pytest.approx(math.exp(-0.5), rel=1e-3)
