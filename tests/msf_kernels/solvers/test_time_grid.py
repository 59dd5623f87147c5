import math

import pytest
import torch

from msf_kernels.solvers import check_time_grid, cubic_grid, grid_from_step_size, uniform_grid

AWKWARD = [0.3, 0.15, 0.07, 0.1, 1 / 3, 1 / 7, 0.9999999, 1.0, 2.0, math.pi / 10, 1e-3, 0.05]


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-2.5, 0.1), (0.7, 0.1)])
@pytest.mark.parametrize("step", AWKWARD)
def test_a_grid_from_a_step_size_holds_both_ends_and_no_longer_step(step, start, end):
    grid = grid_from_step_size(step, start, end)
    assert (grid[0], grid[-1]) == (start, end)
    lengths = [abs(b - a) for a, b in zip(grid, grid[1:], strict=False)]
    assert max(lengths) <= step * (1 + 1e-5)
    assert min(lengths) > 1e-7 * step
    assert check_time_grid(grid) == grid


@pytest.mark.parametrize(
    ("step", "n_steps"), [(0.3, 4), (0.1, 10), (0.2, 5), (1 / 3, 3), (0.07, 15), (1.0, 1), (5.0, 1)]
)
def test_a_step_size_that_divides_the_interval_leaves_no_sliver(step, n_steps):
    assert len(grid_from_step_size(step)) == n_steps + 1


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 25, 1000])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7)])
def test_a_uniform_grid_is_exact_at_its_ends_and_equally_spaced(n_steps, start, end):
    grid = uniform_grid(n_steps, start, end)
    assert len(grid) == n_steps + 1
    assert (grid[0], grid[-1]) == (start, end)
    for a, b in zip(grid, grid[1:], strict=False):
        assert math.isclose(b - a, (end - start) / n_steps, rel_tol=1e-9)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 16, 10**5])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7), (1.0, 0.01), (-2.0, 3.0)])
def test_a_cubic_grid_is_equally_spaced_in_the_cube_root_of_what_is_left_to_one(n_steps, start, end):
    grid = cubic_grid(n_steps, start, end)
    assert len(grid) == n_steps + 1
    assert (grid[0], grid[-1]) == (start, end)
    assert check_time_grid(grid) == grid
    roots = [math.cbrt(1 - t) for t in grid[:: max(1, n_steps // 16)]]
    expected = [
        math.cbrt(1 - start) + (math.cbrt(1 - end) - math.cbrt(1 - start)) * (i / n_steps)
        for i in range(0, n_steps + 1, max(1, n_steps // 16))
    ]
    # A double beside 1 keeps 1e-16, whose cube root is 5e-6.
    assert roots == pytest.approx(expected, abs=1e-5)


def test_a_cubic_grid_is_the_same_in_both_directions_and_as_its_formula_says():
    there, back = cubic_grid(16), cubic_grid(16, 1.0, 0.0)
    assert there == pytest.approx(back[::-1], abs=1e-15)
    assert back == pytest.approx([1 - (i / 16) ** 3 for i in range(17)], abs=1e-15)
    assert cubic_grid(1, 1.0, 0.0) == uniform_grid(1, 1.0, 0.0)


def test_shared_grids_become_floats_and_per_sample_grids_stay_tensors():
    assert check_time_grid(torch.tensor([0.0, 0.5, 1.0])) == (0.0, 0.5, 1.0)
    assert check_time_grid([0, 1]) == (0.0, 1.0)
    grid = torch.tensor([[0.0, 0.5], [1.0, 0.0]])
    assert check_time_grid(grid) is grid


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: uniform_grid(0), ValueError, "n_steps must be >= 1; got 0"),
        (lambda: uniform_grid(2.0), TypeError, "n_steps must be an integer; got float"),
        (lambda: uniform_grid(2, 1.0, 1.0), ValueError, "start and end must be finite and differ; got 1.0 and 1.0"),
        (lambda: uniform_grid(2, 0.0, math.inf), ValueError, "start and end must be finite"),
        (lambda: cubic_grid(0), ValueError, "n_steps must be >= 1; got 0"),
        (lambda: cubic_grid(2.0), TypeError, "n_steps must be an integer; got float"),
        (lambda: cubic_grid(2, 1.0, 1.0), ValueError, "start and end must be finite and differ; got 1.0 and 1.0"),
        (lambda: cubic_grid(10**6), ValueError, "every cubic step from 0.0 to 1.0 has a length; got 1000000"),
        (lambda: grid_from_step_size(0.0), ValueError, "step_size must be finite and > 0"),
        (lambda: grid_from_step_size(-0.1, 1.0, 0.0), ValueError, "also backward in time; got -0.1"),
        (lambda: grid_from_step_size(math.nan), ValueError, "step_size must be finite"),
        (lambda: check_time_grid([0.0]), ValueError, "at least two times, the start and the end; got 1"),
        (lambda: check_time_grid([]), ValueError, "at least two times"),
        (lambda: check_time_grid([0.0, 0.5, 0.5]), ValueError, "got 0.5 followed by 0.5 at index 2"),
        (lambda: check_time_grid([0.0, 0.5, 0.4]), ValueError, "strictly increasing or strictly decreasing"),
        (lambda: check_time_grid([0.0, math.nan]), ValueError, "time_grid must be finite; got nan at index 1"),
        (lambda: check_time_grid(["a", 1.0]), TypeError, "time_grid must hold numbers; got str at index 0"),
        (lambda: check_time_grid(torch.zeros(2, 1)), ValueError, r"got \[2, 1\]"),
        (lambda: check_time_grid(torch.zeros(2, 3, 4)), ValueError, r"got \[2, 3, 4\]"),
        (lambda: check_time_grid(torch.tensor([[0, 1]])), TypeError, "must be floating when it is per sample"),
        (
            lambda: check_time_grid(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]])),
            ValueError,
            r"item 1 has \[0.0, 1.0, 0.5\]",
        ),
        (lambda: check_time_grid(torch.tensor([[0.0, math.inf]])), ValueError, "must be finite"),
    ],
)
def test_a_wrong_grid_is_refused_with_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
