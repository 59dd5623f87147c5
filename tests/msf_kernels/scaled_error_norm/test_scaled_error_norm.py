"""The error ratio is its formula, refuses what it cannot take, and has bits that know the item alone."""

import math

import pytest
import torch

from msf_kernels import BackendUnavailableError, backends, scaled_error_norm

BACKENDS = [name for name, reasons in backends()["scaled_error_norm"].items() if not reasons]
WEIGHTS = [0.1, -0.25, 0.5]


def step(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2 + len(WEIGHTS))]


def ratio(tensors, dt=0.1, rtol=1e-2, atol=1e-3, **options):
    return scaled_error_norm(tensors[0], tensors[1], tensors[2:], WEIGHTS, dt, rtol, atol, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_root_mean_square_of_errors_over_tolerances(backend):
    state, after, slope = torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 0.5]]), torch.tensor([[4.0, -6.0]])
    got = scaled_error_norm(state, after, [slope], [0.5], torch.tensor([0.1]), 0.1, 0.2, backend=backend)
    first, second = 0.2 / (0.2 + 0.1 * 3), -0.3 / (0.2 + 0.1 * 2)
    assert got.item() == pytest.approx(math.sqrt((first**2 + second**2) / 2))


SHAPES = [(1,), (33,), (8, 32, 32), (3, 41, 29), (64, 9, 9), (65, 9, 9), (2, 7, 9), (5000,)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_know_neither_batch_nor_threads_nor_strides(shape, dtype, backend):
    tensors, dt = step(5, *shape, dtype=dtype), torch.linspace(0.1, 0.9, 5)
    expected = ratio(tensors, dt, backend=backend)
    for item in range(5):
        alone = ratio([x[item : item + 1] for x in tensors], dt[item : item + 1], backend=backend)
        assert torch.equal(alone, expected[item : item + 1])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(ratio(tensors, dt, backend=backend), expected)
    finally:
        torch.set_num_threads(before)
    strided = [torch.stack([x, x * 3], dim=-1)[..., 0] for x in tensors]
    assert torch.equal(ratio(strided, dt, backend=backend), expected)
    assert torch.equal(ratio([*strided[:2], *tensors[2:]], dt, backend=backend), expected)
    if len(shape) == 3:
        last = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
        for mixed in (last, [*last[:2], *tensors[2:]], [*tensors[:2], *last[2:]]):
            assert torch.equal(ratio(mixed, dt, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", [0, 1, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_its_own_item_only(value, where, backend):
    tensors = step(3, 2, 40, 40)
    clean = ratio(tensors, backend=backend)
    tensors[where][1, 1, 30, 7] = value
    got = ratio(tensors, backend=backend)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    if where < 2 and not math.isnan(value):
        assert got[1] < clean[1]  # an infinite tolerance allows any error
    else:
        assert not got[1].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_items_without_elements_have_no_error_and_a_batch_may_be_empty(backend):
    assert torch.equal(ratio(step(3, 0, 4), backend=backend), torch.zeros(3))
    assert ratio(step(0, 3, 4), backend=backend).shape == (0,)


def test_auto_takes_the_reference_where_a_derivative_may_be_asked_for():
    tensors = [x.double() for x in step(2, 3)]
    tensors[2].requires_grad_()
    assert ratio(tensors).requires_grad
    assert torch.autograd.gradcheck(lambda slope: ratio([*tensors[:2], slope, *tensors[3:]]), (tensors[2],))
    if "native" in BACKENDS:
        with pytest.raises(BackendUnavailableError, match="has no gradient"):
            ratio(tensors, backend="native")
        with torch.no_grad():
            assert not ratio(tensors, backend="native").requires_grad


MISTAKES = [
    ({"state": torch.tensor(1.0)}, ValueError, "state must be"),
    ({"state": torch.ones(2, dtype=torch.int64)}, TypeError, "state must"),
    ({"next_state": torch.ones(3)}, ValueError, "next_state must"),
    ({"next_state": torch.ones(2).double()}, TypeError, "next_state must"),
    ({"slopes": [torch.ones(3)]}, ValueError, r"slopes\[0\] must"),
    ({"slopes": [1.0]}, TypeError, r"slopes\[0\] must"),
    ({"slopes": torch.ones(1, 2)}, TypeError, "slopes and weights must be sequences"),
    ({"weights": [0.5, 0.5]}, ValueError, "weights must be one number per slope"),
    ({"weights": [math.nan]}, ValueError, r"weights\[0\] must be finite"),
    ({"dt": torch.ones(3)}, ValueError, "dt must"),
    ({"dt": math.inf}, ValueError, "dt must be finite"),
    ({"rtol": -1.0}, ValueError, "rtol must be >= 0"),
    ({"atol": math.inf}, ValueError, "atol must be finite"),
    ({"atol": torch.ones(2)}, TypeError, "atol must"),
    ({"backend": "cuda"}, ValueError, "backend must be one of"),
]


@pytest.mark.parametrize(("changed", "error", "text"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_named(changed, error, text):
    given = {
        "state": torch.ones(2),
        "next_state": torch.ones(2),
        "slopes": [torch.ones(2)],
        "weights": [1.0],
        "dt": 0.1,
    }
    with pytest.raises(error, match=text):
        scaled_error_norm(**(given | {"rtol": 1e-3, "atol": 1e-3} | changed))
