"""Derivatives of solves: with respect to the start, the field's parameters and the times; right, or refused by name."""

import pytest
import torch

from msf_kernels import backends
from msf_kernels.solvers import (
    BOSH3,
    DOPRI5,
    EULER,
    HEUN,
    HEUN_EULER,
    MIDPOINT,
    RK4,
    RK4_38,
    integrate,
    integrate_adaptive,
    odeint,
    uniform_grid,
)
from msf_kernels.testing.derivatives import DERIVATIVES, N_DIRECTIONS, two_numbers

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

BACKENDS = [*backends()["rk_combine"], "auto"]
ONLY_WITHOUT_VMAP = {"func_vmap", "func_vmap_of_grad"}
TOLERANCE = 2e-3


def uneven_grid(n, dtype):
    return torch.linspace(0, 1, 4, dtype=dtype) * torch.linspace(0.8, 1.1, n, dtype=dtype)[:, None]


def fixed(tableau, **options):
    def solve(field, z, grid, backend):
        solution = integrate(field, z, uniform_grid(3), tableau, backend=backend, **options)
        return solution.state if solution.trajectory is None else solution.trajectory

    return solve


def per_sample(tableau):
    return lambda field, z, grid, backend: integrate(field, z, grid, tableau, backend=backend).state


def adaptive(tableau, output_times=None):
    def solve(field, z, grid, backend):
        tolerances = {"rtol": 1e-3, "atol": 1e-3}
        solution = integrate_adaptive(
            field, z, 0.0, 1.0, tableau, output_times=output_times, backend=backend, **tolerances
        )
        return solution.state if solution.trajectory is None else solution.trajectory

    return solve


def by_odeint(method, **options):
    def solve(field, z, grid, backend):
        times = torch.linspace(0, 1, 3, dtype=z.dtype)
        return odeint(lambda t, y: field(y, t), z, times, method=method, rtol=1e-3, atol=1e-3, options=options)

    return solve


SOLVES = {
    "euler": fixed(EULER),
    "midpoint with its states": fixed(MIDPOINT, return_trajectory=True),
    "heun": fixed(HEUN),
    "rk4": fixed(RK4),
    "rk4_38": fixed(RK4_38),
    "euler on own times": per_sample(EULER),
    "rk4 on own times": per_sample(RK4),
    "heun_euler": adaptive(HEUN_EULER),
    "bosh3": adaptive(BOSH3),
    "dopri5 with outputs": adaptive(DOPRI5, [0.3, 0.5, 1.0]),
}
BY_ODEINT = {
    "odeint euler": by_odeint("euler"),
    "odeint rk4": by_odeint("rk4"),
    "odeint dopri5": by_odeint("dopri5"),
    "odeint dopri5 per sample": by_odeint("dopri5", per_sample=True),
}
INTERPRETED = ("euler", "heun", "euler on own times")  # Triton's interpreter is slow
CALLS = [
    pytest.param(name, backend, id=f"{name}-{backend}")
    for name in SOLVES
    for backend in BACKENDS
    if backend != "triton" or name in INTERPRETED
]
CALLS += [pytest.param(name, "auto", id=name) for name in BY_ODEINT]


def curve_of(solve, backend, dtype):
    """Return a solve whose start, matrix and times move along three directions."""
    generator = torch.Generator().manual_seed(0)

    def moved(base, scale):
        directions = scale * torch.randn(N_DIRECTIONS, *base.shape, generator=generator, dtype=torch.float64).to(dtype)
        return lambda s: base.to(dtype) + (s @ directions.flatten(1)).reshape(base.shape)

    start = moved(torch.randn(3, 4, generator=generator, dtype=torch.float64), 0.5)
    matrix = moved(0.3 * torch.randn(4, 4, generator=generator, dtype=torch.float64), 0.2)
    times = moved(uneven_grid(3, torch.float64), 0.01)

    def curve(s):
        mixing = matrix(s)

        def field(z, t):
            time = t[:, None] if isinstance(t, torch.Tensor) and t.dim() else t
            return torch.sin(z @ mixing) + time

        return two_numbers([solve(field, start(s), times(s), backend)])

    return curve


def outcome(derivative, curve):
    """Return the derivative, or None and the refusal."""
    try:
        return derivative(curve, torch.float32).detach(), ""
    except NotImplementedError as error:
        return None, str(error)


@pytest.mark.parametrize(("name", "backend"), CALLS)
def test_every_derivative_is_right_or_refused_by_name(name, backend, need_backend):
    if backend != "auto":
        need_backend("rk_combine", backend)
    solve = {**SOLVES, **BY_ODEINT}[name]
    exact, curve = curve_of(solve, "reference", torch.float64), curve_of(solve, backend, torch.float32)
    has_vmap = name not in ("heun_euler", "bosh3") and "dopri5" not in name
    for kind, derivative in DERIVATIVES.items():
        found, refusal = outcome(derivative, curve)
        if found is None:
            assert "reference" in refusal, kind
            assert backend in ("native", "triton") or (kind in ONLY_WITHOUT_VMAP and not has_vmap), kind
            continue
        expected = derivative(exact, torch.float64).detach()
        error = (found.double() - expected).abs().max()
        assert error <= TOLERANCE * expected.abs().max(), f"{kind}: {found} for {expected}"


@pytest.mark.parametrize("name", ["heun", "rk4 on own times", "odeint rk4"])
def test_solves_have_the_derivatives_of_finite_differences(name):
    curve = curve_of({**SOLVES, **BY_ODEINT}[name], "auto", torch.float64)
    s = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(curve, (s,), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(curve, (s,))


def test_a_field_that_forward_mode_enters_late_is_followed():
    rate = torch.tensor(0.7)

    def end(rate):
        return integrate(lambda z, t: z if t < 0.4 else rate * z, torch.ones(2, 3), uniform_grid(4), EULER).state

    _, tangent = torch.func.jvp(end, (rate,), (torch.ones(()),))
    step = 0.25
    expected = (1 + step) ** 2 * 2 * (1 + step * rate) * step
    torch.testing.assert_close(tangent, torch.full((2, 3), expected))


@pytest.mark.parametrize(
    "differentiated",
    [
        lambda solve, t: solve(t.clone().requires_grad_()),
        lambda solve, t: torch.func.jvp(solve, (t,), (t,)),
        lambda solve, t: torch.func.grad(lambda t: solve(t).sum())(t),
        lambda solve, t: torch.func.vmap(solve)(t[None]),
    ],
    ids=["reverse", "jvp", "grad", "vmap"],
)
def test_derivatives_with_respect_to_a_shared_grid_are_refused(differentiated):
    z = torch.ones(2, 3)
    with pytest.raises(NotImplementedError, match=r"time_grid \[S \+ 1\] is read to the host.*give \[N, S \+ 1\]"):
        differentiated(lambda t: integrate(lambda z, t: z, z, t).state, torch.tensor([0.0, 0.5, 1.0]))


def test_derivatives_with_respect_to_the_times_of_odeint_are_refused_in_forward_mode():
    z, t = torch.ones(2, 3), torch.tensor([0.0, 0.5, 1.0])
    with pytest.raises(NotImplementedError, match="t is read to the host"):
        torch.func.jvp(lambda t: odeint(lambda t, y: y, z, t, method="euler"), (t,), (t,))


def test_derivatives_with_respect_to_the_ends_of_an_adaptive_solve_are_refused():
    end = torch.ones(2)
    with pytest.raises(ValueError, match="t_end must not require a gradient"):
        torch.func.jvp(lambda t: integrate_adaptive(lambda z, t: z, torch.ones(2, 3), 0.0, t).state, (end,), (end,))


def test_forward_and_reverse_mode_of_an_adaptive_solve_take_the_steps_as_constants():
    z = torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    def end(z):
        return integrate_adaptive(lambda z, t: -(z**3), z, 0.0, 1.0, HEUN_EULER, rtol=0.05, atol=0.05).state

    _, forward = torch.func.jvp(end, (z,), (torch.ones_like(z),))
    reverse = torch.func.grad(lambda z: end(z).sum())(z)
    torch.testing.assert_close(forward, reverse)
