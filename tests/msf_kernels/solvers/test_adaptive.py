import re

import pytest
import torch

from msf_kernels.solvers import (
    BOSH3,
    DOPRI5,
    FEHLBERG2,
    HEUN,
    HEUN_EULER,
    PIDController,
    SolveStatus,
    Tableau,
    integrate_adaptive,
)

PAIRS = [HEUN_EULER, FEHLBERG2, BOSH3, DOPRI5]
# Tolerances at which each pair needs at most a few thousand steps.
RTOL = {"heun_euler": 1e-4, "fehlberg2": 1e-6, "bosh3": 1e-7, "dopri5": 1e-9}


def by_name(tableau):
    return tableau.name


def different_speeds(z, t):
    """Rows oscillate at very different frequencies, so a shared step would follow the fastest."""
    frequency = z[:, 2:]
    return torch.cat([frequency * z[:, 1:2], -frequency * z[:, :1], torch.zeros_like(frequency)], dim=1)


def speeds_start(frequencies=(0.1, 1.0, 5.0, 30.0, 0.5)):
    w = torch.tensor(frequencies, dtype=torch.float64)[:, None]
    return torch.cat([torch.ones_like(w), torch.zeros_like(w), w], dim=1)


@pytest.mark.parametrize("tableau", PAIRS, ids=by_name)
def test_the_end_state_is_within_tolerance_forward_and_backward(tableau, problem):
    rtol = RTOL[tableau.name]
    p = problem
    there = integrate_adaptive(p.field, p.start, p.t_start, p.t_end, tableau, rtol=rtol, atol=rtol)
    back = integrate_adaptive(p.field, p.end, p.t_end, p.t_start, tableau, rtol=rtol, atol=rtol)
    assert there.status is back.status is SolveStatus.SUCCESS
    # The tolerance is per step; the factor is what these problems amplify it by.
    assert (there.state - p.end).abs().max() < 3000 * rtol
    assert (back.state - p.start).abs().max() < 3000 * rtol
    assert torch.equal(there.t_reached, torch.full_like(there.t_reached, p.t_end))


@pytest.mark.parametrize("tableau", PAIRS, ids=by_name)
def test_a_tighter_tolerance_gives_a_smaller_error(tableau, problem):
    p = problem
    errors = [
        (integrate_adaptive(p.field, p.start, p.t_start, p.t_end, tableau, rtol=r, atol=r).state - p.end).abs().max()
        for r in (1e-2, 1e-3, 1e-4, 1e-5)
    ]
    assert errors[3] < errors[0] / 10


@pytest.mark.parametrize("drop_finished", [True, False])
@pytest.mark.parametrize("tableau", PAIRS, ids=by_name)
def test_a_sample_takes_the_same_steps_alone_as_in_any_batch(tableau, drop_finished):
    z = speeds_start((0.1, 1.0, 5.0, 15.0, 0.5))
    start = torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0], dtype=torch.float64)
    end = torch.tensor([1.0, -1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    outputs = torch.stack([torch.lerp(start, end, share) for share in (0.0, 0.3, 1.0)], dim=1)
    options = {"rtol": 1e-3, "atol": 1e-4, "drop_finished": drop_finished}
    batch = integrate_adaptive(different_speeds, z, start, end, tableau, output_times=outputs, **options)
    for i in range(5):
        alone = integrate_adaptive(
            different_speeds, z[i : i + 1], start[i].item(), end[i].item(), tableau, output_times=outputs[i], **options
        )
        assert torch.equal(batch.state[i], alone.state[0])
        assert torch.equal(batch.trajectory[:, i], alone.trajectory[:, 0])
        assert batch.n_accepted[i] == alone.n_accepted[0]
        assert batch.n_rejected[i] == alone.n_rejected[0]
        if drop_finished:
            assert batch.nfe[i] == alone.nfe[0]
    assert batch.n_accepted.unique().numel() >= 4  # or the test would not show that steps are each item's own


@pytest.mark.parametrize("drop_finished", [True, False])
@pytest.mark.parametrize("tableau", PAIRS, ids=by_name)
def test_counts_of_each_sample_are_those_of_the_recorded_calls(tableau, drop_finished, recorder):
    z = speeds_start()
    identity = torch.arange(5)
    calls = torch.zeros(5, dtype=torch.int64)

    def field(z, t, who):
        calls.index_add_(0, who, torch.ones_like(who))
        return different_speeds(z, t)

    solution = integrate_adaptive(
        field, z, 0.0, 1.0, tableau, rtol=1e-3, atol=1e-4, context=[identity], drop_finished=drop_finished
    )
    assert torch.equal(solution.nfe, calls)
    n_steps = solution.n_accepted + solution.n_rejected
    if drop_finished and tableau.is_first_same_as_last:
        assert torch.equal(calls, 2 + n_steps * (tableau.n_stages - 1))
    elif drop_finished:
        # The first slope of a step is taken anew after an accepted step only.
        assert torch.equal(calls, 2 + n_steps * (tableau.n_stages - 1) + solution.n_accepted - 1)
    else:
        assert calls.unique().numel() == 1


def test_finished_samples_are_left_out_of_the_batch(recorder):
    field = recorder(different_speeds)
    integrate_adaptive(field, speeds_start(), 0.0, 1.0, DOPRI5, rtol=1e-5)
    sizes = [z.shape[0] for z in field.states]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 5
    assert sizes[-1] == 1


def test_a_sample_needs_fewer_evaluations_than_when_the_batch_is_one_system():
    z = speeds_start()
    alone = integrate_adaptive(different_speeds, z, 0.0, 1.0, rtol=1e-5)
    coupled = integrate_adaptive(lambda y, t: different_speeds(y[0], t)[None], z[None], 0.0, 1.0, rtol=1e-5)
    assert alone.nfe[0] * 5 < coupled.nfe[0]


@pytest.mark.parametrize("tableau", PAIRS, ids=by_name)
def test_states_between_steps_are_as_accurate_as_the_steps(tableau):
    z = speeds_start((1.0, 5.0))
    times = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    rtol = RTOL[tableau.name]
    solution = integrate_adaptive(different_speeds, z, 0.0, 1.0, tableau, rtol=rtol, atol=rtol, output_times=times)
    angle = times[:, None] * z[:, 2]
    error = (solution.trajectory[..., 0] - torch.cos(angle)).abs()
    at_ends = error[[0, -1]].max()
    assert solution.n_accepted.max() > 4
    assert error.max() < 10 * at_ends + rtol
    assert torch.equal(solution.trajectory[-1], solution.state)
    assert torch.equal(solution.trajectory[0], z)


def test_output_times_may_come_in_any_order_and_do_not_change_the_steps():
    z = speeds_start()
    plain = integrate_adaptive(different_speeds, z, 0.0, 1.0, rtol=1e-4)
    ordered = integrate_adaptive(different_speeds, z, 0.0, 1.0, rtol=1e-4, output_times=[0.0, 0.2, 0.7])
    shuffled = integrate_adaptive(different_speeds, z, 0.0, 1.0, rtol=1e-4, output_times=[0.7, 0.0, 0.2])
    assert torch.equal(plain.nfe, ordered.nfe)
    assert torch.equal(ordered.trajectory, shuffled.trajectory[[1, 2, 0]])


def test_at_the_step_limit_the_last_state_is_returned_with_a_status_that_says_what_to_change():
    z = speeds_start((0.1, 30.0))
    solution = integrate_adaptive(
        different_speeds, z, 0.0, 1.0, rtol=1e-6, atol=1e-8, max_steps=20, output_times=[0.01, 1.0]
    )
    assert solution.status is SolveStatus.STEP_LIMIT
    assert "raise max_steps" in solution.status.explanation
    assert solution.item_status.tolist() == [SolveStatus.SUCCESS, SolveStatus.STEP_LIMIT]
    assert (solution.n_accepted + solution.n_rejected).tolist()[1] == 20
    reached = solution.t_reached[1]
    assert 0 < reached < 1
    torch.testing.assert_close(solution.state[1, 0], torch.cos(30 * reached), rtol=0, atol=1e-4)
    assert bool(solution.trajectory[1, 1].isnan().all())
    assert bool(solution.trajectory[0].isfinite().all())


def test_a_step_that_becomes_too_small_for_the_time_dtype_ends_with_a_status():
    # y' = y^2 from y(0) = 1 leaves every bound at t = 1.
    z = torch.ones(1, 1, dtype=torch.float64)
    solution = integrate_adaptive(lambda z, t: z**2, z, 0.0, 2.0, rtol=1e-6, max_steps=100_000)
    assert solution.status in (SolveStatus.STEP_UNDERFLOW, SolveStatus.NON_FINITE)
    assert abs(solution.t_reached.item() - 1.0) < 1e-3
    assert bool(solution.state.isfinite().all())


def test_a_velocity_that_is_nan_from_some_time_on_stops_that_sample_only_and_before_it():
    def field(z, t):
        return torch.where((z[:, 1:] > 0) & (t[:, None] > 0.5), torch.nan, torch.cat([-z[:, :1], 0 * z[:, 1:]], 1))

    z = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    solution = integrate_adaptive(field, z, 0.0, 1.0)
    assert solution.item_status.tolist() == [SolveStatus.SUCCESS, SolveStatus.NON_FINITE]
    assert 0.3 < solution.t_reached[1] <= 0.5
    assert "NaN" in solution.status.explanation


def test_a_velocity_that_is_nan_at_the_start_stops_at_once():
    solution = integrate_adaptive(lambda z, t: z * torch.nan, torch.ones(2, 1), 0.0, 1.0)
    assert solution.item_status.tolist() == [SolveStatus.NON_FINITE] * 2
    assert solution.nfe.tolist() == [2, 2]
    assert torch.equal(solution.state, torch.ones(2, 1))


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("tableau", [HEUN_EULER, DOPRI5], ids=by_name)
def test_state_and_time_dtypes_never_mix(state_dtype, time_dtype, tableau, recorder):
    field = recorder(lambda z, t: -z)
    z = torch.ones(2, 3, dtype=state_dtype)
    start = 0.0 if time_dtype is None else torch.zeros(2, dtype=time_dtype)
    solution = integrate_adaptive(field, z, start, 1.0, tableau, rtol=1e-2, atol=1e-2, output_times=[0.5, 1.0])
    default = torch.float64 if state_dtype == torch.float64 else torch.float32
    assert {z.dtype for z in field.states} == {state_dtype}
    assert {t.dtype for t in field.times} == {time_dtype or default}
    assert solution.state.dtype == solution.trajectory.dtype == state_dtype
    assert solution.t_reached.dtype == (time_dtype or default)
    assert solution.status.is_success


def test_slopes_of_lower_precision_are_taken_with_a_float32_state(recorder):
    field = recorder(lambda z, t: (-z).bfloat16())
    solution = integrate_adaptive(field, torch.ones(3, 2), 0.0, 1.0, HEUN_EULER, rtol=1e-2, atol=1e-2)
    assert solution.state.dtype == torch.float32
    torch.testing.assert_close(solution.state, torch.full((3, 2), 0.3679), rtol=0.02, atol=0)


@pytest.mark.parametrize("tableau", [HEUN_EULER, DOPRI5], ids=by_name)
@pytest.mark.parametrize("output_times", [None, [0.3, 1.0]])
def test_gradients_are_those_of_the_solution(tableau, output_times):
    z = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    rtol = 1e-5 if tableau is HEUN_EULER else 1e-8
    solution = integrate_adaptive(
        lambda z, t: -rate * z, z, 0.0, 1.0, tableau, rtol=rtol, atol=rtol, output_times=output_times
    )
    total = solution.state.sum() if output_times is None else solution.trajectory.sum()
    times = torch.tensor([1.0] if output_times is None else output_times, dtype=torch.float64)
    grad_z, grad_rate = torch.autograd.grad(total, (z, rate))
    decay = torch.exp(-0.7 * times)
    torch.testing.assert_close(grad_z, decay.sum() * torch.ones_like(z), rtol=100 * rtol, atol=0)
    torch.testing.assert_close(grad_rate, -(times * decay).sum() * z.detach().sum(), rtol=100 * rtol, atol=0)


def test_step_limits_are_kept(recorder):
    field = recorder(lambda z, t: -z)
    z = torch.ones(1, 1, dtype=torch.float64)
    integrate_adaptive(field, z, 0.0, 1.0, BOSH3, first_step=0.01, max_step=0.02, rtol=1e-2)
    ends = [t.item() for t in field.times[3::3]]
    steps = torch.tensor([0.0, *ends], dtype=torch.float64).diff()
    assert steps[0] == 0.01
    assert steps.max() <= 0.02 * (1 + 1e-4) + 1e-12
    coarse = integrate_adaptive(lambda z, t: -50 * z, z, 0.0, 1.0, BOSH3, first_step=0.1, min_step=0.1, rtol=1e-12)
    assert (coarse.n_accepted.item(), coarse.n_rejected.item()) == (10, 0)


def test_items_of_any_shape_and_tolerances_per_element_are_taken():
    z = torch.ones(3, 2, 4, dtype=torch.float64)
    atol = torch.full((2, 4), 1e-8, dtype=torch.float64)
    atol[0] = 1e3  # anything goes for the first half
    rates = torch.tensor([[40.0], [1.0]], dtype=torch.float64)
    solution = integrate_adaptive(lambda z, t: -rates * z, z, 0.0, 0.1, rtol=0.0, atol=atol)
    strict = integrate_adaptive(lambda z, t: -rates * z, z, 0.0, 0.1, rtol=0.0, atol=1e-8)
    assert (solution.state[:, 1] - torch.exp(torch.tensor(-0.1, dtype=torch.float64))).abs().max() < 1e-7
    assert solution.nfe.max() < strict.nfe.max()
    for shape in [(0, 3), (2, 0), (4,)]:
        solved = integrate_adaptive(lambda z, t: -z, torch.ones(shape), 0.0, 1.0, output_times=[0.5])
        assert solved.state.shape == shape
        assert solved.trajectory.shape == (1, *shape)
        assert solved.status.is_success


def test_an_exception_of_the_velocity_field_arrives_unchanged():
    error = KeyError("mine")

    def field(z, t):
        raise error

    with pytest.raises(KeyError) as caught:
        integrate_adaptive(field, torch.ones(1, 1), 0.0, 1.0)
    assert caught.value is error


def test_proportional_control_spends_fewer_rejections_on_a_stiff_problem(van_der_pol):
    z = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    options = {"rtol": 1e-5, "atol": 1e-7}
    plain = integrate_adaptive(van_der_pol, z, 0.0, 20.0, **options)
    damped = integrate_adaptive(van_der_pol, z, 0.0, 20.0, controller=PIDController(p=0.4, i=0.3), **options)
    torch.testing.assert_close(plain.state, damped.state, rtol=1e-3, atol=1e-3)
    assert damped.n_rejected.item() < 0.7 * plain.n_rejected.item()


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        ({"i": 0.0}, "i must be finite and > 0; got 0.0"),
        ({"safety": 1.5}, r"safety must be in \(0.0, 1.0\]; got 1.5"),
        ({"min_factor": 0.0}, "min_factor must be finite and > 0"),
        ({"max_factor": 0.5}, "max_factor must be >= 1; got 0.5"),
        ({"p": float("nan")}, "p must be finite; got nan"),
    ],
)
def test_a_wrong_controller_is_refused(controller, message):
    with pytest.raises(ValueError, match=message):
        PIDController(**controller)


RALSTON3 = Tableau(
    "ralston3",
    nodes=(0, 1 / 2, 3 / 4),
    matrix=((), (1 / 2,), (0, 3 / 4)),
    weights=(2 / 9, 1 / 3, 4 / 9),
    order=3,
    error_weights=(2 / 9, 1 / 3 - 1, 4 / 9),
    embedded_order=2,
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"z_start": 1.0}, TypeError, "z_start must be a tensor [N, ...]; got float"),
        ({"z_start": torch.ones(2).long()}, TypeError, "floating dtype; got torch.int64"),
        ({"z_start": torch.tensor(1.0)}, ValueError, "one item per row"),
        ({"t_end": 0.0}, ValueError, "t_start and t_end must be finite and differ"),
        ({"t_end": float("nan")}, ValueError, "t_start and t_end must be finite and differ"),
        ({"t_end": torch.ones(3)}, ValueError, "t_end must be a number or [N] with N = 2; got [3]"),
        ({"t_end": torch.ones(2, dtype=torch.int64)}, TypeError, "t_end must be a number or a floating tensor [N]"),
        ({"t_end": torch.ones(2, requires_grad=True)}, ValueError, "t_end must not require a gradient"),
        ({"tableau": HEUN}, ValueError, "tableau must have error_weights, such as bosh3 or dopri5; got heun"),
        ({"rtol": -1.0}, ValueError, "rtol must be finite and >= 0; got -1.0"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "must not both be 0"),
        ({"atol": torch.ones(5)}, ValueError, "atol must broadcast over one item, [3]; got [5]"),
        ({"atol": -torch.ones(3)}, ValueError, "atol must be finite and >= 0 everywhere"),
        ({"max_steps": 0}, ValueError, "max_steps must be >= 1"),
        ({"first_step": -0.1}, ValueError, "first_step must be finite and > 0; got -0.1"),
        ({"max_step": 0.0}, ValueError, "max_step must be finite and > 0"),
        ({"min_step": -1.0}, ValueError, "min_step must be finite and > 0"),
        ({"output_times": [1.5]}, ValueError, "output_times must lie between t_start and t_end"),
        ({"output_times": torch.ones(3, 2)}, ValueError, "output_times must be [T] or [N, T] with N = 2; got [3, 2]"),
        ({"context": [torch.ones(3)]}, ValueError, "context[0] must be [N, ...] with N = 2; got [3]"),
        ({"tableau": RALSTON3, "output_times": [0.5]}, ValueError, "output_times must be None for ralston3"),
        ({"velocity_field": lambda z, t: z[:1]}, ValueError, "velocity_field must return the shape of z"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    defaults = {"velocity_field": lambda z, t: z, "z_start": torch.ones(2, 3), "t_start": 0.0, "t_end": 1.0}
    with pytest.raises(error, match=re.escape(message)):
        integrate_adaptive(**{**defaults, **arguments})


def test_a_users_own_pair_is_solved():
    z = torch.ones(2, 1, dtype=torch.float64)
    solution = integrate_adaptive(lambda z, t: -z, z, 0.0, 1.0, RALSTON3, rtol=1e-7, atol=1e-9)
    assert (solution.state - torch.exp(-torch.ones_like(z))).abs().max() < 1e-6
