"""The bits of an item do not depend on its place, its company, the size of the batch, strides or threads."""

import pytest
import torch

from msf_kernels import backends
from msf_kernels.fixed_order import rms_norm
from msf_kernels.solvers import PIDController, get_tableau, integrate, integrate_adaptive, odeint, tableau, uniform_grid
from msf_kernels.solvers.odeint import ADAPTIVE_METHODS
from msf_kernels.solvers.step_control import power

NAMES = sorted(tableau._BUILT_IN)
PAIRS = [name for name in NAMES if get_tableau(name).error is not None]
BACKENDS = [name for name, reasons in backends()["rk_combine"].items() if not reasons]
# What is interpreted takes a hundred times as long, and refuses what it cannot do: it gets a case of its own.
COMPILED = [name for name in BACKENDS if name != "triton"]
SHAPES = [(), (1,), (5,), (3, 7, 5), (4, 96, 96)]


def by_products(z, t):
    """Multiply and add only: functions such as sine round otherwise at the end of a vector."""
    per_item = t.reshape(-1, *[1] * (z.dim() - 1)) if isinstance(t, torch.Tensor) else t
    return -z * (z.abs() + per_item)


def items(n, shape, dtype=torch.float32):
    z = torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return z * torch.linspace(0.1, 3, n, dtype=dtype).reshape(-1, *[1] * len(shape))


def fields_of(solution):
    return {
        name: getattr(solution, name)
        for name in ("state", "t_reached", "nfe", "n_accepted", "n_rejected", "item_status")
    }


def assert_rows_are_those_of(part, whole, rows):
    for name, value in fields_of(part).items():
        assert torch.equal(value, fields_of(whole)[name][rows]), name
    if part.trajectory is not None:
        assert torch.equal(part.trajectory, whole.trajectory[:, rows])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_an_adaptive_item_has_the_same_bits_alone_in_7_and_in_64(name, shape, dtype, backend):
    z = items(64, shape, dtype)
    loose = dtype == torch.bfloat16
    options = {"rtol": 5e-2 if loose else 1e-4, "atol": 5e-2 if loose else 1e-5, "backend": backend}
    options["output_times"] = [0.3, 1.0]
    whole = integrate_adaptive(by_products, z, 0.0, 1.0, name, **options)
    rows = torch.tensor([63, 5, 17, 0, 40, 41, 8])
    assert_rows_are_those_of(integrate_adaptive(by_products, z[rows], 0.0, 1.0, name, **options), whole, rows)
    for row in (0, 17, 63):
        alone = integrate_adaptive(by_products, z[row : row + 1].clone(), 0.0, 1.0, name, **options)
        assert_rows_are_those_of(alone, whole, slice(row, row + 1))


@pytest.mark.parametrize("name", PAIRS)
def test_neither_threads_nor_strides_change_the_bits_of_large_items(name, threads):
    z = items(3, SHAPES[-1])
    threads(1)
    expected = integrate_adaptive(by_products, z, 0.0, 1.0, name, rtol=1e-3, atol=1e-4)
    for count in (1, 2, 4):
        threads(count)
        for given in (z, z.contiguous(memory_format=torch.channels_last), z.mT.contiguous().mT):
            whole = integrate_adaptive(by_products, given, 0.0, 1.0, name, rtol=1e-3, atol=1e-4)
            assert_rows_are_those_of(whole, expected, slice(None))
            alone = integrate_adaptive(by_products, given[1:2], 0.0, 1.0, name, rtol=1e-3, atol=1e-4)
            assert_rows_are_those_of(alone, expected, slice(1, 2))


@pytest.mark.parametrize("controller", [PIDController(p=0.2, i=0.5), PIDController(p=0.3, i=0.3, d=0.1)], ids=str)
@pytest.mark.parametrize("drop_finished", [True, False])
def test_any_controller_keeps_the_bits(controller, drop_finished):
    z = items(37, (5,))
    options = {"rtol": 1e-5, "atol": 1e-6, "controller": controller, "drop_finished": drop_finished}
    whole = integrate_adaptive(by_products, z, 0.0, 1.0, **options)
    for row in (0, 20, 36):
        alone = integrate_adaptive(by_products, z[row : row + 1], 0.0, 1.0, **options)
        assert torch.equal(alone.state[0], whole.state[row])


@pytest.mark.parametrize("method", list(ADAPTIVE_METHODS))
def test_odeint_per_sample_keeps_the_bits(method):
    y0, t = items(64, (5,)), torch.tensor([0.0, 0.4, 1.0])
    options = {"method": method, "rtol": 1e-4, "atol": 1e-5, "options": {"per_sample": True}}
    whole = odeint(lambda t, y: by_products(y, t), y0, t, **options)
    for rows in (slice(3, 4), slice(10, 17)):
        assert torch.equal(odeint(lambda t, y: by_products(y, t), y0[rows], t, **options), whole[:, rows])


@pytest.mark.parametrize("name", ["heun_euler", "dopri5"])
def test_interpreted_kernels_keep_the_bits_of_adaptive_items(name):
    if "triton" not in BACKENDS:
        pytest.skip("; ".join(backends()["rk_combine"]["triton"]))
    z, options = items(7, (5,)), {"rtol": 1e-2, "atol": 1e-2, "backend": "triton"}
    whole = integrate_adaptive(by_products, z, 0.0, 1.0, name, **options)
    for rows in (slice(4, 5), slice(2, 6)):
        assert_rows_are_those_of(integrate_adaptive(by_products, z[rows], 0.0, 1.0, name, **options), whole, rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_per_sample", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_step_item_has_the_same_bits_alone_in_7_and_in_64(name, is_per_sample, backend):
    z = items(64, (3, 7)) / 3
    steps = torch.rand(64, 5, generator=torch.Generator().manual_seed(1)) / 4
    grid = steps.cumsum(1) if is_per_sample else uniform_grid(4)
    whole = integrate(by_products, z, grid, name, backend=backend).state
    assert whole.isfinite().all()
    for rows in (slice(0, 1), slice(9, 16), slice(63, 64)):
        part = integrate(by_products, z[rows], grid[rows] if is_per_sample else grid, name, backend=backend)
        assert torch.equal(part.state, whole[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-0.2, -1 / 3, -0.5, 0.04, 1 / 3])
def test_powers_do_not_depend_on_the_place_and_are_powers(dtype, exponent):
    base = torch.rand(100, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 5 + 0.01
    together = power(base, exponent)
    assert torch.equal(together, torch.cat([power(one, exponent) for one in base.split(1)]))
    torch.testing.assert_close(together, base.pow(exponent))


@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 64, 1000])
def test_the_norm_is_the_root_mean_square(width):
    scaled = torch.randn(5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = scaled.square().mean(1).sqrt() if width else torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(scaled), expected)
