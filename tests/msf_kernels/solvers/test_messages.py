"""Numbers and arrays in any form are taken; what is wrong is named in the words of the caller's call."""

import re

import numpy as np
import pytest
import torch

from msf_kernels.solvers import (
    RK4,
    RK4_38,
    PIDController,
    SolveStatus,
    get_tableau,
    grid_from_step_size,
    integrate,
    integrate_adaptive,
    odeint,
    tableau,
    uniform_grid,
)

NAMES = [*tableau._BUILT_IN, *tableau._OTHER_NAMES]
Z = torch.linspace(-1, 1, 6).reshape(2, 3)
T = torch.tensor([0.0, 0.5, 1.0])


def decay(z, t):
    return -z


def func(t, y):
    return -y


@pytest.mark.parametrize("name", NAMES)
def test_a_tableau_may_be_given_by_name(name):
    chosen = get_tableau(name)
    assert torch.equal(integrate(decay, Z, (0.0, 1.0), name).state, integrate(decay, Z, (0.0, 1.0), chosen).state)
    if chosen.error is not None:
        by_name = integrate_adaptive(decay, Z, 0.0, 1.0, name, rtol=1e-2)
        assert torch.equal(by_name.state, integrate_adaptive(decay, Z, 0.0, 1.0, chosen, rtol=1e-2).state)


def test_rk4_means_what_the_documentation_says_and_unambiguous_names_mean_one_thing():
    assert get_tableau("rk4") is get_tableau("rk4_classic") is RK4
    assert get_tableau("rk4_38") is RK4_38
    for method, chosen in (("rk4", RK4_38), ("rk4_38", RK4_38), ("rk4_classic", RK4)):
        expected = integrate(lambda z, t: z * t, Z, T, chosen).state
        assert torch.equal(odeint(lambda t, y: y * t, Z, T, method=method)[-1], expected)
    for documented in (get_tableau, odeint):
        assert "3/8 rule" in documented.__doc__


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor, np.array])
def test_numbers_in_any_form_are_taken(number):
    rtol, atol = float(number(1e-3)), float(number(1e-4))
    expected = integrate_adaptive(decay, Z, 0.0, 1.0, rtol=rtol, atol=atol, max_step=0.5).state
    actual = integrate_adaptive(
        decay,
        Z,
        number(0.0),
        number(1.0),
        rtol=number(1e-3),
        atol=number(1e-4),
        max_step=number(0.5),
        max_steps=np.int64(99),
    )
    torch.testing.assert_close(actual.state.float(), expected, rtol=1e-5, atol=1e-6)
    assert uniform_grid(np.int64(2), number(0.0), number(1.0)) == (0.0, 0.5, 1.0)
    assert grid_from_step_size(number(0.5)) == (0.0, 0.5, 1.0)
    assert PIDController(safety=number(0.5), p=number(0.25)) == PIDController(safety=0.5, p=0.25)
    grid = [number(value) for value in (0.0, 0.5, 1.0)]
    assert torch.equal(integrate(decay, Z, grid).state, integrate(decay, Z, (0.0, 0.5, 1.0)).state)
    options = {"first_step": number(0.125), "safety": number(0.5), "max_num_steps": np.int32(500)}
    plain = {"first_step": 0.125, "safety": 0.5, "max_num_steps": 500}
    ours = odeint(func, Z, T, rtol=number(1e-3), atol=number(1e-4), options=options)
    torch.testing.assert_close(ours, odeint(func, Z, T, rtol=rtol, atol=atol, options=plain), rtol=1e-5, atol=1e-6)
    steps = {"step_size": number(0.25)}
    assert torch.equal(
        odeint(func, Z, T, method="euler", options=steps),
        odeint(func, Z, T, method="euler", options={"step_size": 0.25}),
    )
    pair = odeint(lambda t, y: (-y[0], -y[1]), (Z, Z), T, rtol=(number(1e-3), 1e-3), atol=number(1e-4))
    assert pair[0].shape == (3, 2, 3)


def test_arrays_are_taken_as_tensors_are():
    z, t = Z.numpy(), T.numpy()
    assert torch.equal(integrate(decay, z, t).state, integrate(decay, Z, T).state)
    per_item = np.stack([t, t])
    assert torch.equal(integrate(decay, z, per_item).state, integrate(decay, Z, torch.tensor(per_item)).state)
    for method in ("euler", "dopri5"):
        assert torch.equal(odeint(func, z, t, method=method), odeint(func, Z, T, method=method))
    ends = np.array([1.0, 0.5], dtype=np.float32)
    options = {"rtol": np.full(3, 1e-3, dtype=np.float32), "output_times": np.array([0.25, 0.5])}
    actual = integrate_adaptive(decay, z, 0.0, ends, **options)
    expected = integrate_adaptive(decay, Z, 0.0, torch.tensor(ends), **{k: torch.tensor(v) for k, v in options.items()})
    assert torch.equal(actual.trajectory, expected.trajectory)


RESULTS = [
    (None, TypeError, "{f} must return a tensor; got NoneType"),
    (0.5, TypeError, "{f} must return a tensor; got float"),
    ((Z,), TypeError, "{f} must return a tensor; got tuple"),
    (Z[:1], ValueError, "{f} must return the shape of {y}, [2, 3]; got [1, 3]"),
    (Z.T, ValueError, "{f} must return the shape of {y}, [2, 3]; got [3, 2]"),
    (Z.long(), TypeError, "{f} must return a tensor of real floating numbers; got torch.int64"),
    (Z + 0j, TypeError, "{f} must return a tensor of real floating numbers; got torch.complex64"),
    (Z.to("meta"), ValueError, "{f} must return a tensor on the device of {y}, cpu; got meta"),
]


@pytest.mark.parametrize(("result", "error", "text"), RESULTS)
def test_a_wrong_result_is_named_in_the_callers_words(result, error, text):
    ours = re.escape(text.format(f="velocity_field", y="z"))
    for name in ("euler", "heun", "dopri5"):
        with pytest.raises(error, match=ours):
            integrate(lambda z, t: result, Z, (0.0, 1.0), name)
    with pytest.raises(error, match=ours):
        integrate_adaptive(lambda z, t: result, Z, 0.0, 1.0)
    for method in ("euler", "heun2", "dopri5"):
        with pytest.raises(error, match=re.escape(text.format(f="func", y="y0"))):
            odeint(lambda t, y: result, Z, T, method=method)


def test_a_wrong_tuple_is_named():
    for result, error, text in (
        (Z, TypeError, "func must return a tuple of 2 tensors, like y0; got Tensor"),
        ((Z,), TypeError, "func must return a tuple of 2 tensors, like y0; got tuple of 1"),
        ((Z, Z[:1]), ValueError, "func's result 1 must return the shape of y0[1]"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            odeint(lambda t, y, result=result: result, (Z, Z), T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_a_start_that_is_not_finite_is_named(method, bad):
    y0 = Z.clone()
    y0[1, 2] = bad
    with pytest.raises(ValueError, match=re.escape(f"y0 must be finite; got {bad} at index [1, 2]")):
        odeint(func, y0, T, method=method)
    with pytest.raises(ValueError, match=re.escape(f"y0[1] must be finite; got {bad} at index [1, 2]")):
        odeint(lambda t, y: (-y[0], -y[1]), (Z, y0), T, method=method)


@pytest.mark.parametrize("field", [decay, lambda z, t: torch.ones_like(z)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_item_that_starts_or_ends_outside_the_numbers_is_no_success(field, bad):
    z = Z.clone()
    z[1, 2] = bad
    solution = integrate_adaptive(field, z, 0.0, 1.0)
    assert solution.item_status.tolist() == [SolveStatus.SUCCESS, SolveStatus.NON_FINITE]
    assert torch.equal(solution.state[0], integrate_adaptive(field, Z[:1], 0.0, 1.0).state[0])
    left = integrate_adaptive(lambda z, t: torch.full_like(z, 3e38), torch.full((1, 1), 2e38), 0.0, 1.0, first_step=0.9)
    assert not left.status.is_success


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: integrate(decay, Z, 10), TypeError, "time_grid must be a sequence of times, such as uniform_grid(10)"),
        (lambda: integrate(decay, Z, {0.0, 1.0}), TypeError, "time_grid must be a sequence of times"),
        (
            lambda: integrate(decay, Z, T.clone().requires_grad_()),
            NotImplementedError,
            "time_grid [S + 1] is read to the host",
        ),
        (lambda: integrate(decay, Z, T, "rk5"), ValueError, "tableau must be one of bosh3"),
        (lambda: integrate(decay, Z, T, 4), TypeError, "tableau must be a Tableau or the name of one; got int"),
        (lambda: integrate_adaptive(decay, Z, "0", 1.0), TypeError, "t_start must be a number; got str"),
        (lambda: integrate_adaptive(decay, Z, 0.0, 1.0, "heun"), ValueError, "tableau must have error_weights"),
        (lambda: integrate_adaptive(decay, Z, 0.0, 1.0, rtol="x"), TypeError, "rtol must be a number; got str"),
        (lambda: integrate_adaptive(decay, Z, 0.0, 1.0, max_steps=2.0), TypeError, "max_steps must be an integer"),
        (
            lambda: integrate_adaptive(decay, Z, 0.0, 1.0, output_times=0.5),
            TypeError,
            "output_times must be a sequence",
        ),
        (lambda: uniform_grid(2.0), TypeError, "n_steps must be an integer; got float"),
        (lambda: uniform_grid(2, "a"), TypeError, "start must be a number; got str"),
        (lambda: grid_from_step_size("0.1"), TypeError, "step_size must be a number; got str"),
        (lambda: odeint(3, Z, T), TypeError, "func must be callable as func(t, y); got int"),
        (lambda: odeint(func, Z, T, options=[1]), TypeError, "options must be a mapping"),
        (lambda: odeint(func, Z, T, method="Euler"), ValueError, "method must be one of euler"),
        (lambda: odeint(func, Z, T, rtol="x"), TypeError, "rtol must be a number or a tensor"),
        (
            lambda: odeint(func, Z, T, method="euler", options={"step_size": "0.1"}),
            TypeError,
            "options['step_size'] must be a number; got str",
        ),
        (
            lambda: odeint(func, Z, T, method="euler", options={"step_size": -0.1}),
            ValueError,
            "options['step_size'] must be finite and > 0",
        ),
        (
            lambda: odeint(func, Z, T, options={"max_num_steps": 2.5}),
            TypeError,
            "options['max_num_steps'] must be an int",
        ),
        (lambda: odeint(func, Z, T, options={"dfactor": 0.0}), ValueError, "options['dfactor'] must be finite and > 0"),
        (
            lambda: odeint(func, Z, T, options={"norm": "seminorm"}),
            TypeError,
            "options['norm'] must be callable; got str",
        ),
        (lambda: odeint(func, Z, T, options={"dtype": torch.int64}), TypeError, "options['dtype'] must be a floating"),
        (
            lambda: odeint(func, Z, T, options={"per_sample": 1}),
            TypeError,
            "options['per_sample'] must be True or False",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()
