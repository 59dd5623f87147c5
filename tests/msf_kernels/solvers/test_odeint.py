import math
import re
import sys

import pytest
import torch

from msf_kernels.solvers import odeint

FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAPTIVE = ["dopri5", "bosh3", "adaptive_heun", "fehlberg2"]


def decay(t, y):
    return -y


def seeded(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def without_torchdiffeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE, None])
def test_the_result_has_time_first_and_starts_with_the_initial_state(method):
    y0 = seeded(2, 3)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    y = odeint(decay, y0, t, method=method, rtol=1e-4, atol=1e-6)
    assert y.shape == (6, 2, 3)
    assert y.dtype == y0.dtype
    assert torch.equal(y[0], y0)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4, 5), (0, 3)])
def test_states_of_any_shape_are_solved(method, shape):
    y0 = torch.ones(shape, dtype=torch.float64)
    y = odeint(decay, y0, torch.tensor([0.0, 1.0]), method=method, options=None)
    assert y.shape == (2, *shape)
    if y0.numel():
        assert (y[1] - math.exp(-1.0)).abs().max() < (0.01 if method == "rk4" else 1e-6)


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
def test_a_tuple_state_is_solved_member_by_member(method):
    y0 = (seeded(2, 3), torch.tensor(1.0, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    tolerances = {"rtol": 1e-7, "atol": 1e-9} if method == "dopri5" else {"rtol": 1e-4, "atol": 1e-6}

    def func(t, y):
        assert [member.shape for member in y] == [(2, 3), (), (4,)]
        return y[1] * y[0], -y[1], torch.ones_like(y[2])

    y = odeint(func, y0, t, method=method, **tolerances)
    assert isinstance(y, tuple)
    assert [member.shape for member in y] == [(11, 2, 3), (11,), (11, 4)]
    accuracy = 0.1 if method == "euler" else 5e-3
    assert (y[1] - torch.exp(-t)).abs().max() < accuracy
    assert (y[0][-1] - y0[0] * math.exp(1 - math.exp(-1))).abs().max() < 2 * accuracy
    torch.testing.assert_close(y[2], 1 + t[:, None].expand(11, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_decreasing_times_solve_backward(method):
    t = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    seen = []

    def func(t, y):
        seen.append(t.item())
        return -2 * t * y

    y = odeint(func, torch.ones(1, dtype=torch.float64), t, method=method)
    expected = torch.exp(1.0 - t.square())
    assert (y[:, 0] - expected).abs().max() < (1e-2 if method == "rk4" else 1e-6)
    assert min(seen) >= 0
    assert max(seen) <= 1
    assert seen[0] == 1.0


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_func_receives_a_scalar_time_in_the_dtype_of_the_state(method, dtype):
    def func(t, y):
        assert t.shape == ()
        assert t.dtype == dtype
        assert y.dtype == dtype
        return -y

    y = odeint(func, torch.ones(2, dtype=dtype), torch.tensor([0.0, 0.5]), method=method, rtol=1e-3, atol=1e-4)
    assert y.dtype == dtype


@pytest.mark.parametrize("step_size", [0.3, 0.15, 0.07, 0.1])
@pytest.mark.parametrize("backward", [False, True])
def test_a_step_size_sets_the_grid_and_outputs_between_are_on_straight_lines(step_size, backward):
    t = torch.tensor([0.0, 0.05, 0.31, 1.0], dtype=torch.float64)
    t = t.flip(0) if backward else t
    calls = []

    def func(t, y):
        calls.append(t.item())
        return torch.ones_like(y) * (1 if t < 0.5 else 3)

    y = odeint(func, torch.zeros(1, dtype=torch.float64), t, method="euler", options={"step_size": step_size})
    n_steps = math.ceil(1 / step_size - 1e-9)
    assert len(calls) == n_steps
    sign = -1 if backward else 1
    grid = [*(t[0].item() + sign * i * step_size for i in range(n_steps)), t[-1].item()]
    assert calls == pytest.approx(grid[:-1])
    state = [0.0]
    for a, b in zip(grid, grid[1:], strict=False):
        state.append(state[-1] + (b - a) * (1 if a < 0.5 else 3))
    for j, time in enumerate(t.tolist()):
        m = next(
            i for i in range(len(grid) - 1) if min(grid[i : i + 2]) - 1e-12 <= time <= max(grid[i : i + 2]) + 1e-12
        )
        share = (time - grid[m]) / (grid[m + 1] - grid[m])
        assert y[j].item() == pytest.approx(state[m] + share * (state[m + 1] - state[m]))


def test_a_grid_constructor_sets_the_grid():
    calls = []

    def func(t, y):
        calls.append(t.item())
        return y

    def constructor(func, y0, t):
        return torch.tensor([1.0, 0.9, 0.2, 0.0])

    y0 = torch.ones(1)
    y = odeint(func, y0, torch.tensor([1.0, 0.0]), method="euler", options={"grid_constructor": constructor})
    assert calls == pytest.approx([1.0, 0.9, 0.2])
    assert y[-1].item() == pytest.approx(0.9 * 0.3 * 0.8)
    with pytest.raises(ValueError, match="start and end where t does"):
        odeint(func, y0, torch.tensor([1.0, 0.1]), method="euler", options={"grid_constructor": constructor})
    with pytest.raises(ValueError, match="step_size or grid_constructor, not both"):
        odeint(
            func,
            y0,
            torch.tensor([1.0, 0.0]),
            method="euler",
            options={"grid_constructor": constructor, "step_size": 0.1},
        )


def test_without_options_the_times_are_the_grid():
    calls = []

    def func(t, y):
        calls.append(t.item())
        return y

    odeint(func, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 0.2, 1.0]).double(), method="midpoint")
    assert calls == pytest.approx([0.0, 0.1, 0.2, 0.6])


def test_adaptive_options_are_obeyed():
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    times = []

    def func(t, y):
        times.append(t.item())
        return -y

    odeint(func, y0, t, method="bosh3", rtol=1e-2, options={"first_step": 0.03125, "max_step": 0.0625})
    assert 0.03125 in times
    ends = times[3::3]
    assert max(b - a for a, b in zip(ends, ends[1:], strict=False)) <= 0.0625 * (1 + 1e-4)

    times.clear()
    odeint(func, y0, t, rtol=1e-2, options={"safety": 0.5})
    cautious = len(times)
    times.clear()
    odeint(func, y0, t, rtol=1e-2, options={"safety": 0.9, "ifactor": 10.0, "dfactor": 0.2})
    assert len(times) < cautious

    times.clear()
    odeint(func, y0, t, rtol=1e-10)
    strict = len(times)
    times.clear()
    odeint(func, y0, t, rtol=1e-10, options={"norm": lambda y: torch.zeros(())})
    assert len(times) < 0.5 * strict  # nothing is ever too wrong for this norm


def test_a_custom_norm_sees_the_tuple():
    shapes = []

    def norm(y):
        shapes.append([member.shape for member in y])
        return y[0].abs().max()

    y0 = (torch.ones(2), torch.ones(3, 1))
    odeint(lambda t, y: (-y[0], y[1]), y0, torch.tensor([0.0, 1.0]), options={"norm": norm}, rtol=1e-3, atol=1e-3)
    assert shapes[0] == [(2,), (3, 1)]


def test_tolerances_may_differ_per_member_of_a_tuple():
    def func(t, y):
        return -40 * y[0], -y[1]

    y0 = (torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    counts = []
    for atol in (1e-9, (1e3, torch.tensor(1e-9))):
        calls = []
        y = odeint(
            lambda t, y, calls=calls: calls.append(1) or func(t, y),
            y0,
            torch.tensor([0.0, 0.1]),
            rtol=0.0,
            atol=atol,
        )
        assert (y[1][-1] - math.exp(-float(torch.tensor(0.1)))).abs().max() < 1e-8
        counts.append(len(calls))
    assert counts[1] < counts[0]
    with pytest.raises(ValueError, match="atol must have one entry per member of y0, 2; got 3"):
        odeint(func, y0, torch.tensor([0.0, 0.1]), atol=(1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="rtol must be a number or a tensor for a tensor state"):
        odeint(decay, y0[0], torch.tensor([0.0, 0.1]), rtol=(1.0,))


def test_an_adaptive_method_is_one_system_unless_it_is_asked_to_step_per_sample():
    y0 = torch.ones(3, 1, dtype=torch.float64)
    rates = torch.tensor([[0.01], [1.0], [50.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    shapes = []

    def func(t, y):
        shapes.append(t.shape)
        return -rates * y

    expected = torch.exp(-rates * t[:, None, None])
    whole = odeint(func, y0, t, rtol=1e-6, atol=1e-8)
    assert set(shapes) == {()}
    shapes.clear()
    rows = odeint(func, y0, t, rtol=1e-6, atol=1e-8, options={"per_sample": True})
    assert set(shapes) == {(3,)}
    for y in (whole, rows):
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    shapes.clear()
    z0 = torch.cat([y0, rates], dim=1)
    dropped = odeint(
        lambda t, z: shapes.append(t.shape) or torch.stack([-z[:, 1] * z[:, 0], 0 * z[:, 0]], 1),
        z0,
        t,
        rtol=1e-6,
        atol=1e-8,
        options={"per_sample": True, "drop_finished": True},
    )
    torch.testing.assert_close(dropped[..., :1], expected, rtol=1e-5, atol=1e-6)
    assert (1,) in shapes
    with pytest.raises(ValueError, match="per_sample"):
        odeint(decay, (y0,), t, options={"per_sample": True})


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
def test_gradients_reach_the_initial_state_and_the_parameters(method):
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    y = odeint(lambda t, y: -rate * y, y0, t, method=method, rtol=1e-6, atol=1e-6)
    grad_y0, grad_rate = torch.autograd.grad(y[-1].sum(), (y0, rate))
    tolerance = 0.05 if method == "euler" else 1e-3
    torch.testing.assert_close(grad_y0, torch.full_like(y0, math.exp(-0.5)), rtol=tolerance, atol=0)
    torch.testing.assert_close(grad_rate, torch.tensor(-3 * math.exp(-0.5)).double(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("method", ["euler", "dopri5"])
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.tensor([0.0, 1.0, 0.5]), ValueError, "t must be strictly increasing or strictly decreasing; got 1.0"),
        (torch.tensor([0.0, 0.0]), ValueError, "t must be strictly increasing or strictly decreasing"),
        (torch.tensor([0.0, math.nan]), ValueError, "t must be finite; got nan at index 1"),
        (torch.tensor([[0.0, 1.0]]), ValueError, "t must be [T] with at least one time; got shape [1, 2]"),
        (torch.tensor([]), ValueError, "t must be [T] with at least one time; got shape [0]"),
        (torch.tensor([0, 1]), TypeError, "t must be a floating tensor [T]; got torch.int64"),
        ([0.0, 1.0], TypeError, "t must be a floating tensor [T]; got list"),
    ],
)
def test_wrong_times_are_refused(method, t, error, message):
    with pytest.raises(error, match=re.escape(message)):
        odeint(decay, torch.ones(1), t, method=method)


@pytest.mark.parametrize(
    ("y0", "error", "message"),
    [
        (1.0, TypeError, "y0 must be a tensor or a tuple of tensors; got float"),
        ([torch.ones(1)], TypeError, "y0 must be a tensor or a tuple of tensors; got list"),
        (torch.ones(1, dtype=torch.int64), TypeError, "y0 must hold floating tensors; got torch.int64"),
        ((torch.ones(1), 1.0), TypeError, "y0 must hold floating tensors; got float"),
        ((), ValueError, "y0 must hold at least one tensor"),
    ],
)
def test_wrong_states_are_refused(y0, error, message):
    with pytest.raises(error, match=re.escape(message)):
        odeint(decay, y0, torch.tensor([0.0, 1.0]))


def test_one_time_returns_the_initial_state():
    y0 = (torch.ones(2), torch.zeros(3))
    y = odeint(decay, y0, torch.tensor([0.5]))
    assert [member.shape for member in y] == [(1, 2), (1, 3)]


def test_the_step_limit_raises_and_says_what_to_change():
    with pytest.raises(RuntimeError, match=r"stopped at t = .*options\['max_num_steps'\]"):
        odeint(lambda t, y: -1e3 * y, torch.ones(1), torch.tensor([0.0, 1.0]), options={"max_num_steps": 5})


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_an_option_that_no_method_knows_is_reported(method):
    with pytest.warns(UserWarning, match=r"does not use options \['stepsize'\]"):
        odeint(decay, torch.ones(1), torch.tensor([0.0, 1.0]), method=method, options={"stepsize": 0.1})


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"method must be one of euler, .*dopri5, dopri8, .*; got 'rk5'"):
        odeint(decay, torch.ones(1), torch.tensor([0.0, 1.0]), method="rk5")


class WithCallback:
    def callback_step(self, t, y, dt):
        pass

    def __call__(self, t, y):
        return -y


ONLY_TORCHDIFFEQ = [
    ({"method": "dopri8"}, "method 'dopri8'"),
    ({"method": "implicit_adams"}, "method 'implicit_adams'"),
    ({"method": "scipy_solver", "options": {"solver": "LSODA"}}, "method 'scipy_solver'"),
    ({"event_fn": lambda t, y: y[0] - 0.5}, "event handling (event_fn)"),
    ({"options": {"step_t": torch.tensor([0.5])}}, "options['step_t']"),
    ({"options": {"jump_t": torch.tensor([0.5])}}, "options['jump_t']"),
    ({"method": "euler", "options": {"perturb": True}}, "options['perturb']"),
    ({"method": "euler", "options": {"interp": "cubic"}}, "options['interp'] = 'cubic'"),
    ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, "a gradient with respect to t"),
    ({"y0": torch.ones(1, dtype=torch.complex64)}, "a complex state"),
    ({"func": WithCallback()}, "func.callback_step"),
]


@pytest.mark.parametrize(("arguments", "feature"), ONLY_TORCHDIFFEQ, ids=lambda p: p if isinstance(p, str) else "")
def test_what_only_torchdiffeq_has_is_handed_to_it(arguments, feature):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    call = {"func": decay, "y0": torch.ones(1), "t": torch.tensor([0.0, 1.0]), **arguments}
    ours, theirs = odeint(**call), torchdiffeq.odeint(**call)
    if not isinstance(ours, tuple):
        ours, theirs = (ours,), (theirs,)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("arguments", "feature"), ONLY_TORCHDIFFEQ, ids=lambda p: p if isinstance(p, str) else "")
def test_what_only_torchdiffeq_has_is_refused_clearly_without_it(arguments, feature, without_torchdiffeq):
    call = {"func": decay, "y0": torch.ones(1), "t": torch.tensor([0.0, 1.0]), **arguments}
    with pytest.raises(ImportError, match=re.escape(f"odeint hands {feature} to torchdiffeq, which is not installed")):
        odeint(**call)


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
def test_our_own_methods_need_no_torchdiffeq(method, without_torchdiffeq):
    odeint(decay, torch.ones(1), torch.tensor([0.0, 1.0]), method=method, rtol=1e-3, atol=1e-3)
