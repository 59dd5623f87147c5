"""Device functions that kernels share, run one by one in Triton's interpreter; private names are used on purpose."""

import math

import pytest
import torch

pytestmark = pytest.mark.interpreter

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = triton.language

from msf_kernels import class_distance, symmetric_path  # noqa: E402
from msf_kernels._triton.offsets import block_offsets  # noqa: E402
from msf_kernels._triton.philox import _cos_sin_turns, _log  # noqa: E402


@triton.jit
def _write_offsets_kernel(out_ptr, pid, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), block_offsets(pid, BLOCK))


@triton.jit
def _write_log_kernel(out_ptr, u_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, _log(tl.load(u_ptr + offsets)))


@triton.jit
def _write_cos_sin_kernel(cos_ptr, sin_ptr, u_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    cosine, sine = _cos_sin_turns(tl.load(u_ptr + offsets))
    tl.store(cos_ptr + offsets, cosine)
    tl.store(sin_ptr + offsets, sine)


@pytest.mark.parametrize("pid", [0, 2**21 - 1, 2**21, 2**22 + 3, 2**31 - 1])
def test_offsets_hold_beyond_two_to_the_31(pid):
    offsets = torch.empty(1024, dtype=torch.int64)
    _write_offsets_kernel[(1,)](offsets, pid, BLOCK=1024)
    assert torch.equal(offsets, pid * 1024 + torch.arange(1024))


def uniforms():
    """Return 2^18 values over (0, 1] with both ends dense, as the generator makes them."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2**32, (2**18,), generator=generator)
    words[: 2**16] >>= torch.arange(2**16) % 32
    words[2**16 : 2**17] = 2**32 - 1 - (words[2**16 : 2**17] >> (torch.arange(2**16) % 32))
    words[:2] = torch.tensor([0, 2**32 - 1])
    return words.float() * 2.0**-32 + 2.0**-33


def test_the_logarithm_is_accurate_in_relative_terms_next_to_one_too():
    u = uniforms()
    got = torch.empty_like(u)
    _write_log_kernel[(1,)](got, u, BLOCK=len(u))
    exact = u.double().log()
    assert torch.equal(got[exact == 0], torch.zeros(int((exact == 0).sum())))
    relative = ((got.double() - exact) / exact)[exact != 0].abs()
    assert relative.max() < 1e-7


def test_cosine_and_sine_are_accurate_over_the_whole_turn():
    u = uniforms()
    cosine, sine = torch.empty_like(u), torch.empty_like(u)
    _write_cos_sin_kernel[(1,)](cosine, sine, u, BLOCK=len(u))
    angle = u.double() * (2 * math.pi)
    assert (cosine - angle.cos()).abs().max() < 1.2e-7
    assert (sine - angle.sin()).abs().max() < 1.2e-7


def test_quarter_turns_are_exact():
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 0.125, 0.375, 0.625])
    cosine, sine = torch.empty_like(u), torch.empty_like(u)
    _write_cos_sin_kernel[(1,)](cosine, sine, u, BLOCK=8)
    assert cosine[:5].tolist() == [1.0, 0.0, -1.0, 0.0, 1.0]
    assert sine[:5].tolist() == [0.0, 1.0, 0.0, -1.0, 0.0]


def far_apart(values, stride):
    """Return the items of a batch with so many unused elements between them; pages that nobody touches cost nothing."""
    storage = torch.empty(stride * (len(values) - 1) + values[0].numel(), dtype=values.dtype)
    spread = storage.as_strided(values.shape, (stride, *values.stride()[1:]))
    return spread.copy_(values)


def test_items_more_than_two_to_the_31_elements_apart_are_found():
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).half()
    spread = far_apart(values, 2**31 + 16)
    codes = torch.eye(3)
    for got, expected in zip(
        class_distance(spread, codes, backend="triton"), class_distance(values, codes, backend="triton"), strict=True
    ):
        assert torch.equal(got, expected)
    rest = {"sample_index": torch.arange(2), "seed": 0, "backend": "triton"}
    t = torch.tensor([0.25, 0.5])
    for got, expected in zip(
        symmetric_path(spread, values, t, **rest), symmetric_path(values, values, t, **rest), strict=True
    ):
        assert torch.equal(got, expected)
