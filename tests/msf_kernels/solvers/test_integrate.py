import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from msf_kernels.solvers import (
    BOSH3,
    DOPRI5,
    EULER,
    FEHLBERG2,
    HEUN,
    HEUN3,
    HEUN_EULER,
    MIDPOINT,
    RK4,
    RK4_38,
    SolveStatus,
    Tableau,
    Workspace,
    grid_from_step_size,
    integrate,
    uniform_grid,
)

TABLEAUX = [EULER, MIDPOINT, HEUN, HEUN3, RK4, RK4_38, HEUN_EULER, FEHLBERG2, BOSH3, DOPRI5]
RALSTON = Tableau("ralston", nodes=(0, 2 / 3), matrix=((), (2 / 3,)), weights=(1 / 4, 3 / 4), order=2)


def by_name(tableau):
    return tableau.name


def fitted_order(field, start, end, t_start, t_end, tableau):
    """Least-squares slope of log error against log step."""
    finest = {1: 1600, 2: 800}.get(tableau.order, 400)
    counts = [finest // 4, finest // 2, finest]
    errors = [
        (integrate(field, start, uniform_grid(n, t_start, t_end), tableau).state - end).abs().max().item()
        for n in counts
    ]
    x = torch.tensor([math.log(1 / n) for n in counts])
    y = torch.tensor([math.log(e) for e in errors])
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize("tableau", [*TABLEAUX, RALSTON], ids=by_name)
def test_the_order_of_convergence_is_the_declared_one_forward_and_backward(tableau, regular_problem):
    p = regular_problem
    forward = fitted_order(p.field, p.start, p.end, p.t_start, p.t_end, tableau)
    backward = fitted_order(p.field, p.end, p.start, p.t_end, p.t_start, tableau)
    assert abs(forward - tableau.order) < 0.15, forward
    assert abs(backward - tableau.order) < 0.15, backward


@pytest.mark.parametrize("tableau", TABLEAUX, ids=by_name)
@pytest.mark.parametrize("grid", [(0.0, 0.2, 0.9, 1.0), (1.0, 0.55, 0.5, 0.0)])
def test_recorded_times_are_the_nodes_and_nfe_counts_the_calls(tableau, grid, recorder):
    field = recorder(lambda z, t: z * t)
    solution = integrate(field, torch.ones(2, 1), grid, tableau)
    n_stages = tableau.n_stages - tableau.is_first_same_as_last
    assert solution.nfe == len(field.times) == n_stages * 3
    assert all(type(t) is float for t in field.times)
    nodes = [
        end if c == 1.0 else start + c * (end - start)
        for start, end in zip(grid, grid[1:], strict=False)
        for c in tableau.nodes[:n_stages]
    ]
    assert field.times == nodes
    assert solution.status is SolveStatus.SUCCESS


@pytest.mark.parametrize("step", [0.3, 0.15, 0.07, 1 / 3])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_straight_path_is_exact_whatever_the_step_size(step, start, end):
    solution = integrate(
        lambda z, t: torch.full_like(z, 2.0),
        torch.zeros(3, dtype=torch.float64),
        grid_from_step_size(step, start, end),
    )
    torch.testing.assert_close(
        solution.state, torch.full((3,), 2.0 * (end - start), dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_one_euler_step_is_start_plus_step_times_velocity():
    z = torch.tensor([[1.0, -2.0]])
    assert torch.equal(integrate(lambda z, t: 3 * z, z, (1.0, 0.0)).state, z - 3 * z)


@pytest.mark.parametrize("tableau", TABLEAUX, ids=by_name)
def test_forward_then_backward_returns_to_the_start_within_the_order(tableau, regular_problem):
    p = regular_problem

    def gap(n):
        there = integrate(p.field, p.start, uniform_grid(n, p.t_start, p.t_end), tableau).state
        back = integrate(p.field, there, uniform_grid(n, p.t_end, p.t_start), tableau).state
        return (back - p.start).abs().max().item()

    n = 800 // tableau.order**2
    coarse, fine = gap(n), gap(2 * n)
    assert fine < 1e-13 or math.log2(coarse / fine) > tableau.order - 0.3


def test_trajectory_holds_the_state_at_every_grid_time(problem):
    grid = uniform_grid(5, problem.t_start, problem.t_end)
    solution = integrate(problem.field, problem.start, grid, RK4, return_trajectory=True)
    assert solution.trajectory.shape == (6, *problem.start.shape)
    assert torch.equal(solution.trajectory[0], problem.start)
    assert torch.equal(solution.trajectory[-1], solution.state)
    half = integrate(problem.field, problem.start, grid[:4], RK4)
    assert torch.equal(solution.trajectory[3], half.state)
    assert integrate(problem.field, problem.start, grid, RK4).trajectory is None


@pytest.mark.parametrize("tableau", TABLEAUX, ids=by_name)
@pytest.mark.parametrize("return_trajectory", [False, True])
def test_a_workspace_changes_no_bit_even_when_the_velocity_is_a_view_of_the_state(tableau, return_trajectory):
    z = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    before = z.clone()
    workspace = Workspace()

    def sometimes_a_view(z, t):
        return z.mT if t < 0.3 else z * t

    for field in (lambda z, t: z, lambda z, t: z.mT, lambda z, t: z.flip(0) * t, sometimes_a_view):
        plain = integrate(field, z, uniform_grid(5), tableau, return_trajectory=return_trajectory)
        for _ in range(2):
            again = integrate(
                field, z, uniform_grid(5), tableau, return_trajectory=return_trajectory, workspace=workspace
            )
            assert torch.equal(plain.state, again.state)
            if return_trajectory:
                assert torch.equal(plain.trajectory, again.trajectory)
    assert torch.equal(z, before)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("cast_to", [None, torch.bfloat16])
@pytest.mark.parametrize("is_per_sample", [False, True])
def test_a_workspace_changes_no_bit_with_casts_and_per_sample_times(backend, cast_to, is_per_sample):
    z = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    grid = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).cumsum(1) if is_per_sample else uniform_grid(5)
    workspace = Workspace()
    for field in (lambda z, t: torch.sin(z), lambda z, t: z.mT):
        plain = integrate(field, z, grid, RK4, cast_to=cast_to, backend=backend)
        again = integrate(field, z, grid, RK4, cast_to=cast_to, backend=backend, workspace=workspace)
        assert torch.equal(plain.state, again.state)


def test_a_workspace_is_right_under_tensors_whose_address_tells_nothing():
    class Wrapped(torch.Tensor):
        pass

    z = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    plain = integrate(lambda z, t: z.mT, z, uniform_grid(5), HEUN)
    wrapped = integrate(lambda z, t: z.mT, z.as_subclass(Wrapped), uniform_grid(5), HEUN, workspace=Workspace())
    assert torch.equal(plain.state, wrapped.state.as_subclass(torch.Tensor))


@pytest.mark.parametrize("workspace", [None, Workspace()])
def test_a_velocity_that_moves_to_another_device_on_the_way_is_refused(workspace):
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match="velocity_field must return a tensor on the device of z, cpu; got meta"):
        integrate(lambda z, t: z if t < 0.5 else z.to("meta"), z, uniform_grid(4), workspace=workspace)


def test_a_workspace_takes_no_state_that_only_the_caller_gets():
    workspace = Workspace()
    integrate(lambda z, t: -z, torch.ones(2, 3), uniform_grid(1), EULER, workspace=workspace)
    assert workspace.n_bytes == 0


def test_what_a_solve_returns_is_not_overwritten_by_the_next_one_with_the_same_workspace():
    workspace = Workspace()
    z = torch.ones(2, 3)
    first = integrate(lambda z, t: -z, z, uniform_grid(4), HEUN, workspace=workspace, return_trajectory=True)
    state, trajectory = first.state.clone(), first.trajectory.clone()
    integrate(lambda z, t: z, z, uniform_grid(4), HEUN, workspace=workspace)
    assert torch.equal(first.state, state)
    assert torch.equal(first.trajectory, trajectory)


def test_a_workspace_holds_one_buffer_per_evaluation_and_state_and_follows_the_shape():
    workspace = Workspace()
    for shape in [(8, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4)]:
        integrate(lambda z, t: -z, torch.ones(shape), uniform_grid(4), HEUN, workspace=workspace)
        assert workspace.n_bytes == 2 * 4 * math.prod(shape)
    integrate(lambda z, t: -z, torch.ones(3, 5, dtype=torch.float64), uniform_grid(4), RK4, workspace=workspace)
    with torch.inference_mode():
        integrate(lambda z, t: -z, torch.ones(3, 5), uniform_grid(4), RK4, workspace=workspace)
    integrate(lambda z, t: -z, torch.ones(3, 5), uniform_grid(4), RK4, workspace=workspace)
    assert workspace.n_bytes == 4 * 4 * 15
    workspace.clear()
    assert workspace.n_bytes == 0


@pytest.mark.parametrize("tableau", [EULER, HEUN, DOPRI5], ids=by_name)
def test_per_sample_grids_solve_each_item_on_its_own_times(tableau, recorder):
    grid = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.9, 0.1], [0.2, 0.3, 0.35]], dtype=torch.float64)
    z = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)

    def rows(z, t):
        return torch.sin(z) * (t[:, None] if isinstance(t, torch.Tensor) else t)

    field = recorder(rows)
    solution = integrate(field, z, grid, tableau, return_trajectory=True)
    for i in range(3):
        alone = integrate(rows, z[i : i + 1], grid[i].tolist(), tableau, return_trajectory=True)
        torch.testing.assert_close(solution.trajectory[:, i : i + 1], alone.trajectory, rtol=1e-14, atol=1e-14)
        assert solution.nfe == alone.nfe
    assert all(t.shape == (3,) and t.dtype == torch.float64 for t in field.times)
    assert torch.equal(field.times[0], grid[:, 0])


@pytest.mark.parametrize("state_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tableau", [EULER, DOPRI5], ids=by_name)
def test_state_and_time_dtypes_never_mix(state_dtype, time_dtype, tableau, recorder):
    field = recorder(lambda z, t: -z)
    grid = torch.linspace(0, 1, 4, dtype=time_dtype).expand(2, 4)
    solution = integrate(field, torch.ones(2, 3, dtype=state_dtype), grid, tableau, return_trajectory=True)
    assert {z.dtype for z in field.states} == {state_dtype}
    assert {t.dtype for t in field.times} == {time_dtype}
    assert solution.state.dtype == solution.trajectory.dtype == state_dtype


def test_a_float32_state_takes_bfloat16_slopes_without_losing_its_own_precision():
    z = torch.ones(2, 3)
    slope = torch.tensor(0.1).bfloat16()
    state = integrate(lambda z, t: slope.expand(2, 3), z, uniform_grid(1000)).state
    assert state.dtype == torch.float32
    # A step adds 1e-4, which a bfloat16 state (spacing 8e-3 at 1) would round away every time.
    assert (state - (1.0 + slope.float())).abs().max() < 1e-4
    lost = integrate(lambda z, t: slope.expand(2, 3), z.bfloat16(), uniform_grid(1000)).state
    assert torch.equal(lost, z.bfloat16())


def test_the_field_reads_the_state_in_the_dtype_it_asked_for_while_the_state_stays_in_float32(recorder):
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    field = recorder(lambda z, t: -z)
    solution = integrate(field, z, uniform_grid(3), HEUN, cast_to=torch.bfloat16, return_trajectory=True)
    assert {z.dtype for z in field.states} == {torch.bfloat16}
    assert solution.trajectory.dtype == torch.float32
    assert torch.equal(field.states[2], solution.trajectory[1].bfloat16())


def test_memory_format_of_the_start_is_kept():
    z = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state = integrate(lambda z, t: z, z, uniform_grid(2), HEUN).state
    assert state.is_contiguous(memory_format=torch.channels_last)


def test_the_start_is_not_modified_and_not_returned():
    z = torch.zeros(2)
    for workspace in (None, Workspace()):
        solution = integrate(lambda z, t: torch.zeros_like(z), z, (0.0, 1.0), workspace=workspace)
        assert solution.state.data_ptr() != z.data_ptr()


def test_an_exception_of_the_velocity_field_arrives_unchanged():
    class Special(Exception):
        pass

    error = Special("mine")

    def field(z, t):
        if t > 0.5:
            raise error
        return z

    with pytest.raises(Special) as caught:
        integrate(field, torch.ones(2), uniform_grid(4), HEUN)
    assert caught.value is error


@pytest.mark.parametrize("tableau", [EULER, RK4, DOPRI5], ids=by_name)
def test_gradients_flow_to_the_start_the_parameters_and_the_per_sample_times(tableau):
    z = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grid = torch.tensor([[0.0, 0.4, 1.0], [1.0, 0.7, 0.2]], dtype=torch.float64, requires_grad=True)

    def solve(z, weight, grid):
        return integrate(lambda z, t: torch.tanh(z @ weight) * t[:, None], z, grid, tableau).state

    assert torch.autograd.gradcheck(solve, (z, weight, grid))


# A CPU build of PyTorch can pretend to have CUDA tensors, but cannot transpose them or copy into them.
@pytest.mark.parametrize(
    ("device", "is_per_sample", "has_workspace"),
    [("cpu", False, False), ("cpu", False, True), ("cpu", True, False), ("cpu", True, True), ("cuda", False, False)],
)
@pytest.mark.parametrize("tableau", [EULER, HEUN, DOPRI5], ids=by_name)
def test_the_loop_never_reads_a_value_back_from_the_device(device, is_per_sample, has_workspace, tableau):
    with FakeTensorMode(allow_non_fake_inputs=False):
        z = torch.empty(4, 2, 3, 3, device=device)
        with pytest.raises(DataDependentOutputException):
            z.sum().item()  # what this test relies on
        grid = torch.empty(4, 6, device=device) if is_per_sample else uniform_grid(5)

        def field(z, t):
            return z * (t.reshape(4, 1, 1, 1) if is_per_sample else t)

        solution = integrate(
            field, z, grid, tableau, return_trajectory=True, workspace=Workspace() if has_workspace else None
        )
    assert solution.state.device.type == device
    assert solution.trajectory.shape == (6, 4, 2, 3, 3)


@pytest.mark.parametrize("change", ["dtype", "gradient"])
def test_velocities_that_change_their_kind_on_the_way_are_checked_anew(change):
    weight = torch.ones(3, requires_grad=True)

    def field(z, t):
        if t < 0.5:
            return -z
        return (-z).bfloat16() if change == "dtype" else -z * weight

    z = torch.ones(2, 3)
    plain = integrate(field, z, uniform_grid(4), HEUN)
    assert plain.state.dtype == torch.float32
    if change == "dtype":
        reused = integrate(field, z, uniform_grid(4), HEUN, workspace=Workspace())
        assert torch.equal(plain.state, reused.state)
    else:
        assert torch.autograd.grad(plain.state.sum(), weight)[0].abs().min() > 0
        with pytest.raises(ValueError, match="gradients"):
            integrate(field, z, uniform_grid(4), HEUN, workspace=Workspace())


@pytest.mark.parametrize("tableau", [EULER, HEUN, DOPRI5], ids=by_name)
def test_a_solve_compiles_into_one_graph_and_keeps_its_gradient(tableau):
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def solve(z):
        return integrate(lambda z, t: torch.tanh(z @ weight) * t, z, uniform_grid(2), tableau).state

    compiled = torch.compile(solve, backend="aot_eager", fullgraph=True)
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(z), solve(z))
    (expected,) = torch.autograd.grad(solve(z).sum(), weight)
    (actual,) = torch.autograd.grad(compiled(z).sum(), weight)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 4), (5,), (), (2, 3, 4, 5, 6)])
def test_any_shape_is_solved_empty_ones_included(shape):
    solution = integrate(lambda z, t: -z, torch.ones(shape), uniform_grid(3), HEUN, return_trajectory=True)
    assert solution.state.shape == shape
    assert solution.trajectory.shape == (4, *shape)


def test_an_item_does_not_depend_on_its_batch():
    z = torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = integrate(lambda z, t: torch.sin(z) + t, z, uniform_grid(5), HEUN).state
    alone = torch.cat(
        [integrate(lambda z, t: torch.sin(z) + t, z[i : i + 1], uniform_grid(5), HEUN).state for i in range(7)]
    )
    assert torch.equal(batch, alone)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"z_start": [1.0]}, TypeError, r"z_start must be a tensor \[N, ...\]; got list"),
        ({"z_start": torch.ones(2, dtype=torch.int64)}, TypeError, "floating dtype; got torch.int64"),
        ({"time_grid": [0.0, 0.0]}, ValueError, "strictly increasing or strictly decreasing"),
        ({"time_grid": torch.tensor([[0.0, 1.0]] * 3)}, ValueError, r"for z_start \[2\]; got \[3, 2\]"),
        ({"velocity_field": lambda z, t: z[:1]}, ValueError, r"return the shape of z, \[2\]; got \[1\]"),
        ({"velocity_field": lambda z, t: None}, TypeError, "must return a tensor; got NoneType"),
        ({"velocity_field": lambda z, t: z.long()}, TypeError, "int64"),
        ({"cast_to": torch.int8}, TypeError, "int8"),
        ({"backend": "nonsense"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    defaults = {"velocity_field": lambda z, t: z, "z_start": torch.ones(2), "time_grid": (0.0, 1.0)}
    with pytest.raises(error, match=message):
        integrate(**{**defaults, **arguments})


def test_a_workspace_while_gradients_are_recorded_is_refused():
    z = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="gradients"):
        integrate(lambda z, t: z, z, uniform_grid(2), workspace=Workspace())
    with torch.no_grad():
        integrate(lambda z, t: z, z, uniform_grid(2), workspace=Workspace())
