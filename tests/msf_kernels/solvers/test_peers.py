import pytest
import torch

from msf_kernels.solvers import (
    BOSH3,
    DOPRI5,
    EULER,
    HEUN,
    HEUN3,
    HEUN_EULER,
    MIDPOINT,
    RK4_38,
    PIDController,
    integrate,
    integrate_adaptive,
    odeint,
    uniform_grid,
)

FIXED = {"euler": EULER, "midpoint": MIDPOINT, "heun2": HEUN, "heun3": HEUN3, "rk4": RK4_38}


@pytest.fixture
def torchdiffeq():
    return pytest.importorskip("torchdiffeq")


@pytest.fixture
def torchode():
    return pytest.importorskip("torchode")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("method", list(FIXED))
def test_fixed_steps_agree_with_torchdiffeq_to_round_off(method, direction, problem, torchdiffeq):
    p = problem
    start, t0, t1 = (p.start, p.t_start, p.t_end) if direction == "forward" else (p.end, p.t_end, p.t_start)
    grid = uniform_grid(23, t0, t1)
    t = torch.tensor(grid, dtype=torch.float64)
    theirs = torchdiffeq.odeint(lambda t, y: p.field(y, t), start, t, method=method)
    ours = integrate(p.field, start, grid, FIXED[method], return_trajectory=True)
    torch.testing.assert_close(ours.trajectory, theirs, rtol=1e-12, atol=1e-12)
    drop_in = odeint(lambda t, y: p.field(y, t), start, t, method=method)
    torch.testing.assert_close(drop_in, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", list(FIXED))
def test_fixed_steps_agree_with_torchdiffeq_on_a_stiffish_problem(method, van_der_pol, torchdiffeq):
    y0 = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    options = {"step_size": 0.002}
    ours = odeint(lambda t, y: van_der_pol(y, t), y0, t, method=method, options=options)
    theirs = torchdiffeq.odeint(lambda t, y: van_der_pol(y, t), y0, t, method=method, options=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step_size", [0.3, 0.15, 0.07])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_awkward_step_sizes_land_where_torchdiffeq_lands(method, step_size, problem, torchdiffeq):
    p = problem
    t = torch.tensor([p.t_start, 0.5 * (p.t_start + p.t_end), p.t_end], dtype=torch.float64)
    arguments = {"method": method, "options": {"step_size": step_size}}
    ours = odeint(lambda t, y: p.field(y, t), p.start, t, **arguments)
    theirs = torchdiffeq.odeint(lambda t, y: p.field(y, t), p.start, t, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun", "fehlberg2"])
def test_adaptive_drop_in_agrees_with_torchdiffeq_to_tolerance(method, problem, torchdiffeq):
    p = problem
    t = torch.linspace(p.t_start, p.t_end, 5, dtype=torch.float64)
    rtol = {"dopri5": 1e-7, "bosh3": 1e-5}.get(method, 1e-4)
    arguments = {"method": method, "rtol": rtol, "atol": rtol}
    ours = odeint(lambda t, y: p.field(y, t), p.start, t, **arguments)
    theirs = torchdiffeq.odeint(lambda t, y: p.field(y, t), p.start, t, **arguments)
    # One state per step is wrong by up to the tolerance in both; these problems amplify and add that up.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1000 * rtol)


def test_adaptive_solves_of_a_stiffish_problem_agree_with_torchdiffeq(van_der_pol, torchdiffeq):
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 3.0, 12.0], dtype=torch.float64)
    arguments = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-10}
    calls = {"ours": 0, "theirs": 0}

    def counted(who):
        def func(t, y):
            calls[who] += 1
            return van_der_pol(y, t)

        return func

    ours = odeint(counted("ours"), y0, t, **arguments)
    theirs = torchdiffeq.odeint(counted("theirs"), y0, t, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert calls["ours"] < 1.1 * calls["theirs"]


def per_sample_with_torchode(torchode, method, field, z, t_start, t_end, rtol, atol, controller):
    term = torchode.ODETerm(lambda t, y: field(y, t))
    solver = torchode.AutoDiffAdjoint(
        getattr(torchode, method)(term=term),
        torchode.PIDController(
            atol, rtol, controller.p, controller.i, controller.d, term=term, safety=controller.safety
        ),
    )
    problem = torchode.InitialValueProblem(
        y0=z, t_start=torch.full((len(z),), t_start, dtype=z.dtype), t_end=torch.full((len(z),), t_end, dtype=z.dtype)
    )
    solution = solver.solve(problem)
    return solution.ys[:, -1], solution.stats


@pytest.mark.parametrize(("method", "tableau"), [("Dopri5", DOPRI5), ("Heun", HEUN_EULER)])
@pytest.mark.parametrize("controller", [PIDController(), PIDController(p=0.2, i=0.5)], ids=["I", "PI"])
def test_per_sample_results_match_torchode(method, tableau, controller, van_der_pol, torchode):
    z = torch.tensor([[2.0, 0.0], [0.5, 0.5], [-1.0, 3.0], [0.01, 0.0]], dtype=torch.float64)
    rtol, atol, t_end = (1e-6, 1e-8, 6.0) if tableau is DOPRI5 else (1e-4, 1e-6, 1.5)
    theirs, stats = per_sample_with_torchode(torchode, method, van_der_pol, z, 0.0, t_end, rtol, atol, controller)
    ours = integrate_adaptive(van_der_pol, z, 0.0, t_end, tableau, rtol=rtol, atol=atol, controller=controller)
    exact = integrate_adaptive(van_der_pol, z, 0.0, t_end, rtol=1e-11, atol=1e-12).state
    own_error = (ours.state - exact).abs().max()
    their_error = (theirs - exact).abs().max()
    assert own_error < 2 * their_error + 1000 * atol
    # Each sample's steps are its own in both; ours must not need more of them.
    steps = ours.n_accepted + ours.n_rejected
    assert bool((steps <= 1.1 * stats["n_steps"] + 3).all()), (steps, stats["n_steps"])


def test_ours_evaluates_a_finished_sample_no_more_while_torchode_does(van_der_pol, torchode):
    z = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)  # the second one is at rest
    ours = integrate_adaptive(van_der_pol, z, 0.0, 6.0, BOSH3, rtol=1e-5)
    assert ours.nfe[1] < 0.1 * ours.nfe[0]
    _, stats = per_sample_with_torchode(torchode, "Dopri5", van_der_pol, z, 0.0, 6.0, 1e-5, 1e-6, PIDController())
    assert torch.as_tensor(stats["n_f_evals"]).unique().numel() == 1
