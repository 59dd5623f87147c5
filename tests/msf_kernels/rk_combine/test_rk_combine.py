import pytest
import torch

from msf_kernels import rk_combine
from msf_kernels.rk_combine.api import choose_rk_combine

INFINITY = float("inf")


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_combination_is_the_formula_of_the_documentation():
    state, first, second = seeded(4, 3, seed=1), seeded(4, 3, seed=2), seeded(4, 3, seed=3)
    combined = rk_combine(state, [first, second], [0.25, -2.0], 0.5, backend="reference")
    torch.testing.assert_close(combined, state + 0.5 * (0.25 * first - 2.0 * second), rtol=0, atol=1e-15)


def test_every_item_has_its_own_step_even_when_the_batch_is_as_large_as_another_axis():
    state, slope, dt = (
        seeded(4, 4, 4, 4, seed=1),
        seeded(4, 4, 4, 4, seed=2),
        torch.tensor([0.0, 1.0, -2.0, 0.5]).double(),
    )
    combined = rk_combine(state, [slope], [1.0], dt, backend="reference")
    for n in range(4):
        assert torch.equal(combined[n], rk_combine(state[n], [slope[n]], [1.0], float(dt[n]), backend="reference"))


def test_a_float32_state_does_not_lose_what_a_bfloat16_state_would():
    state = torch.ones(3)
    slope = torch.ones(3, dtype=torch.bfloat16)
    for _ in range(64):
        state = rk_combine(state, [slope], [1.0], 2.0**-12, backend="reference")
    assert torch.equal(state, torch.full((3,), 1 + 2.0**-6))


def test_a_slope_of_weight_zero_is_not_read():
    state, slope = seeded(2, 3), seeded(2, 3, seed=1)
    broken = torch.full_like(state, float("nan"))
    combined = rk_combine(state, [broken, slope], [0.0, 1.0], 0.1, backend="reference")
    assert torch.equal(combined, rk_combine(state, [slope], [1.0], 0.1, backend="reference"))


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
@pytest.mark.parametrize("dt", [0.3, torch.tensor([0.1, -0.2, 0.3])], ids=["number", "per item"])
@pytest.mark.parametrize("cast_to", [None, torch.float16])
def test_the_chosen_function_returns_what_the_public_function_returns(backend, dt, cast_to, need_backend):
    need_backend("rk_combine", backend)
    state, *slopes = seeded(3, 3, 5, 7, dtype=torch.float32)
    expected = rk_combine(state, slopes, [0.5, -0.25], dt, cast_to=cast_to, backend=backend)
    chosen = choose_rk_combine(state, slopes, [0.5, -0.25], dt, cast_to=cast_to, backend=backend)
    got = chosen(state, slopes, [0.5, -0.25], dt, cast_to=cast_to)
    for one, other in zip([got] if cast_to is None else got, [expected] if cast_to is None else expected, strict=True):
        assert torch.equal(one, other)


def test_without_slopes_the_result_is_a_copy_of_the_state():
    state = seeded(2, 3)
    combined = rk_combine(state, [], [], 0.1, backend="reference")
    assert torch.equal(combined, state)
    assert combined.data_ptr() != state.data_ptr()


def test_the_cast_is_rounded_once_and_never_shares_memory():
    state, slope = seeded(2, 3, dtype=torch.float32), seeded(2, 3, seed=1, dtype=torch.float32)
    combined, cast = rk_combine(state, [slope], [1.0], 0.1, cast_to=torch.bfloat16, backend="reference")
    assert torch.equal(cast, combined.bfloat16())
    combined, cast = rk_combine(state, [slope], [1.0], 0.1, cast_to=torch.float32, backend="reference")
    assert cast.data_ptr() != combined.data_ptr()
    half = state.bfloat16()
    _, wide = rk_combine(half, [slope], [1.0], 0.1, cast_to=torch.float32, backend="reference")
    assert torch.equal(wide, rk_combine(half.float(), [slope], [1.0], 0.1, backend="reference"))


BACKENDS = ["reference", "native", pytest.param("triton", marks=pytest.mark.interpreter)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every other"])
def test_out_receives_the_result_whatever_its_strides(need_backend, backend, layout):
    need_backend("rk_combine", backend)
    state, slope = seeded(3, 4, 5, 6, dtype=torch.float32), seeded(3, 4, 5, 6, seed=1, dtype=torch.float32)
    expected, expected_cast = rk_combine(state, [slope], [0.5], 0.1, cast_to=torch.float16, backend=backend)
    out = torch.full((3, 4, 5, 6), float("nan"))
    if layout == "channels_last":
        out = out.contiguous(memory_format=torch.channels_last)
    if layout == "every other":
        out = torch.full((3, 4, 5, 12), float("nan"))[..., ::2]
    combined, cast = rk_combine(state, [slope], [0.5], 0.1, out=out, cast_to=torch.float16, backend=backend)
    assert combined is out
    assert torch.equal(out, expected)
    assert torch.equal(cast, expected_cast)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_may_be_the_state_itself(need_backend, backend):
    need_backend("rk_combine", backend)
    state, slope = seeded(3, 700, dtype=torch.float32), seeded(3, 700, seed=1, dtype=torch.float32)
    dt = torch.tensor([0.1, -0.2, 0.3])
    expected = rk_combine(state, [slope, slope], [0.5, 0.25], dt, backend=backend)
    assert rk_combine(state, [slope, slope], [0.5, 0.25], dt, out=state, backend=backend) is state
    assert torch.equal(state, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_item_has_the_same_bits_in_any_batch(need_backend, backend):
    need_backend("rk_combine", backend)
    state, slope = seeded(5, 3, 7, 11, dtype=torch.float32), seeded(5, 3, 7, 11, seed=1, dtype=torch.float32)
    dt = seeded(5, seed=2, dtype=torch.float32)
    together = rk_combine(state, [slope, state], [0.3, 0.7], dt, backend=backend)
    for n in range(5):
        item = slice(n, n + 1)
        alone = rk_combine(state[item], [slope[item], state[item]], [0.3, 0.7], dt[item], backend=backend)
        assert torch.equal(alone, together[item])


def test_a_state_without_axes_works():
    assert float(rk_combine(torch.tensor(1.0), [torch.tensor(2.0)], [0.5], 0.25, backend="reference")) == 1.25


@pytest.mark.parametrize("is_per_item", [False, True])
def test_gradients_are_right_to_second_order_on_the_reference(is_per_item):
    dt = seeded(2, seed=3).requires_grad_() if is_per_item else 0.3

    def function(state, first, second, *step):
        return rk_combine(
            state, [first, second], [0.5, -1.5], step[0] if step else dt, cast_to=torch.float64, backend="reference"
        )

    inputs = [seeded(2, 3, seed=i).requires_grad_() for i in range(3)] + ([dt] if is_per_item else [])
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradients_flow_where_only_one_output_or_one_input_is_used():
    from msf_kernels.rk_combine._ops import rk_combine_triton

    state, slope = seeded(2, 3, dtype=torch.float32), seeded(2, 3, seed=1, dtype=torch.float32)
    dt = torch.tensor([0.5, 2.0], requires_grad=True)
    for use in (0, 1):
        outputs = rk_combine_triton(state, [slope], [0.5], dt, cast_to=torch.float32)
        (grad,) = torch.autograd.grad(outputs[use].sum(), dt)
        torch.testing.assert_close(grad, 0.5 * slope.sum(1))
    slope.requires_grad_()
    (grad,) = torch.autograd.grad(rk_combine_triton(state, [state, slope], [1.0, 0.25], 2.0).sum(), slope)
    assert torch.equal(grad, torch.full_like(slope, 0.5))


STATE = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rk_combine(1.0, [], [], 0.1), TypeError, "state must be a tensor; got float"),
        (lambda: rk_combine(STATE.int(), [], [], 0.1), TypeError, "state must have dtype .*; got torch.int32"),
        (
            lambda: rk_combine(STATE, STATE, [1.0, 1.0], 0.1),
            TypeError,
            "slopes must be a sequence of tensors; got Tensor",
        ),
        (lambda: rk_combine(STATE, [STATE], 1.0, 0.1), TypeError, "weights must be a sequence of numbers; got float"),
        (
            lambda: rk_combine(STATE, [STATE], [], 0.1),
            ValueError,
            "weights must be one number per slope; got 0 for 1 slopes",
        ),
        (lambda: rk_combine(STATE, [1.0], [1.0], 0.1), TypeError, r"slopes\[0\] must be a tensor; got float"),
        (
            lambda: rk_combine(STATE, [STATE.T], [1.0], 0.1),
            ValueError,
            r"slopes\[0\] must be the shape of state = \[2, 3\]; got",
        ),
        (
            lambda: rk_combine(STATE, [STATE.long()], [1.0], 0.1),
            TypeError,
            r"slopes\[0\] must have dtype .*; got torch.int64",
        ),
        (
            lambda: rk_combine(STATE, [STATE.to("meta")], [1.0], 0.1),
            ValueError,
            r"slopes\[0\] must be on the device of state, cpu; got meta",
        ),
        (lambda: rk_combine(STATE, [STATE], [INFINITY], 0.1), ValueError, r"weights\[0\] must be finite; got inf"),
        (lambda: rk_combine(STATE, [STATE], ["1"], 0.1), TypeError, r"weights\[0\] must be a number; got str"),
        (lambda: rk_combine(STATE, [STATE], [1.0], float("nan")), ValueError, "dt must be finite; got nan"),
        (lambda: rk_combine(STATE, [STATE], [1.0], None), TypeError, "dt must be a number; got NoneType"),
        (
            lambda: rk_combine(STATE, [STATE], [1.0], torch.ones(3)),
            ValueError,
            r"dt must be \[N of state\] = \[2\]; got shape \[3\]",
        ),
        (lambda: rk_combine(STATE, [STATE], [1.0], torch.tensor(1.0)), ValueError, r"dt must be \[N\]; got shape \[\]"),
        (
            lambda: rk_combine(STATE[0, 0], [], [], torch.ones(1)),
            ValueError,
            "dt must be a number when state has no axes; got a tensor",
        ),
        (
            lambda: rk_combine(STATE, [STATE], [1.0], torch.ones(2).to("meta")),
            ValueError,
            "dt must be on the device of state, cpu; got meta",
        ),
        (
            lambda: rk_combine(STATE, [], [], 0.1, out=STATE[0]),
            ValueError,
            r"out must be the shape of state = \[2, 3\]; got shape \[3\]",
        ),
        (
            lambda: rk_combine(STATE, [], [], 0.1, out=STATE.half()),
            TypeError,
            "out must have the dtype of state, torch.float32; got torch.float16",
        ),
        (lambda: rk_combine(STATE, [], [], 0.1, cast_to=torch.int8), TypeError, "cast_to must be .*; got torch.int8"),
        (lambda: rk_combine(STATE, [], [], 0.1, cast_to="half"), TypeError, "cast_to must be .*; got half"),
        (
            lambda: rk_combine(STATE.clone().requires_grad_(), [], [], 0.1, out=STATE.clone()),
            ValueError,
            "out must be None while gradients are recorded",
        ),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(call, error, message):
    with pytest.raises(error, match=message):
        call()
