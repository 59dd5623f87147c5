"""Outputs that share memory with inputs: written over one element by element, or refused."""

import pytest
import torch

from msf_kernels import rk_combine

BACKENDS = ["reference", "native", pytest.param("triton", marks=pytest.mark.interpreter)]


def memory(n=60):
    return torch.randn(n, generator=torch.Generator().manual_seed(n))


def shifted(x):
    return x[:24].view(4, 6), x[1:25].view(4, 6)


def transposed(x):
    return x[:36].view(6, 6), x[:36].view(6, 6).T


def flat_and_strided(x):
    return x[:12], x[:24:2]


def other_type(x):
    return x[:12], x.view(torch.float16)[4:16]


def last_byte(x):
    return x[:12], x[11:23]


PARTLY = [shifted, transposed, flat_and_strided, last_byte]


@pytest.mark.parametrize("views", PARTLY, ids=lambda views: views.__name__)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_an_output_partly_over_an_input_is_refused(need_backend, backend, views):
    if backend != "auto":
        need_backend("rk_combine", backend)
    for swap in (False, True):
        out, other = views(memory())[:: -1 if swap else 1]
        apart = torch.randn(out.shape)
        before = out.clone()
        with pytest.raises(ValueError, match="out must be state itself or share no memory with state"):
            rk_combine(other, [apart], [1.0], 0.1, out=out, backend=backend)
        with pytest.raises(ValueError, match=r"out must be slopes\[1\] itself or share no memory with slopes\[1\]"):
            rk_combine(apart, [apart, other], [1.0, 0.5], 0.1, out=out, backend=backend)
        assert torch.equal(out, before)


def test_an_output_over_a_slope_of_another_type_or_over_the_step_is_refused():
    out, slope = other_type(memory())
    with pytest.raises(ValueError, match=r"share no memory with slopes\[0\]"):
        rk_combine(torch.zeros(12), [slope], [1.0], 0.1, out=out)
    state = torch.randn(12)
    with pytest.raises(ValueError, match="out must share no memory with dt"):
        rk_combine(state, [state], [1.0], out, out=out)


@pytest.mark.parametrize(
    "out", [torch.zeros(1).expand(12), torch.zeros(13).as_strided((6, 2), (2, 0)), torch.zeros(13).unfold(0, 2, 1)]
)
def test_an_output_with_elements_on_one_another_is_refused(out):
    state = torch.randn(out.shape)
    with pytest.raises(ValueError, match="out must hold every element in memory of its own"):
        rk_combine(state, [state], [1.0], 0.1, out=out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ["state", "slope", "both"])
@pytest.mark.parametrize("shape_of", [lambda x: x.view(5, 4, 3), lambda x: x.view(3, 4, 5).permute(2, 1, 0)])
def test_an_output_may_be_an_input(need_backend, backend, place, shape_of):
    need_backend("rk_combine", backend)
    out = shape_of(memory())
    state = out if place in ("state", "both") else torch.randn(out.shape)
    slope = out if place in ("slope", "both") else torch.randn(out.shape)
    expected = state + 0.5 * (slope + 0.25 * state)
    rk_combine(state, [slope, state.clone()], [1.0, 0.25], 0.5, out=out, backend=backend)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_output_between_the_elements_of_an_input_is_filled(need_backend, backend):
    need_backend("rk_combine", backend)
    pairs = memory().view(30, 2)
    state, out = pairs.unbind(1)
    expected = state * 1.5
    rk_combine(state, [state], [1.0], 0.5, out=out, backend=backend)
    torch.testing.assert_close(out, expected)
    channels = torch.randn(2, 6, 3, 3)
    expected = 1.5 * channels[:, :3]
    rk_combine(channels[:, :3], [channels[:, :3]], [1.0], 0.5, out=channels[:, 3:], backend=backend)
    torch.testing.assert_close(channels[:, 3:], expected)


def test_empty_outputs_overlap_nothing():
    x = torch.empty(0, 3)
    assert rk_combine(x, [x[:, :]], [1.0], 0.5, out=x) is x
