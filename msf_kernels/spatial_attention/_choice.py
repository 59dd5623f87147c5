"""The order in which `auto` tries attention backends, from what was measured."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels._tracing import constant_while_tracing
from msf_kernels.spatial_attention._measured import TABLE
from msf_kernels.spatial_attention._native import has_fast_path

# On a GPU without measurements. PyTorch's own dispatcher comes first: it is maintained and was tuned for each GPU, and
# reads the strided views without copies. The Triton kernels have not been timed on any GPU yet and follow. The
# libraries serve when they are measured faster or asked for by name: being installed is no evidence.
UNMEASURED_ORDER = ("sdpa", "triton", "reference")

# CPU, forward and backward, torch 2.13.0, AMD EPYC (family 26, AVX-512), one thread, 2026-11-24, milliseconds as
# reference / sdpa: bfloat16 16x64x4x64 (N, T, H, D) 1.7 / 4.0, 8x100x4x64 12.3 / 29.8, 8x256x4x64 25 / 23,
# 2x784x4x64 204 / 143.
SHORTEST_SDPA_GRADIENT_BFLOAT16 = 200
# The native loops for other dtypes and processors serve by name, but for short rows in float32: the processor above, of
# family 25, one thread, sdpa's time over native's 1.17 for 16x16x4x64 (N, T, H, D) and 1.04 for 64x16x2x64, 0.87 at 64
# tokens, 0.85 at 256.
LONGEST_NATIVE_FLOAT32 = 16
AVX512 = 2
# The same processor, two threads, forward, bfloat16, milliseconds as sdpa / native where it multiplies pairs:
# 16x256x4x64 7.5 / 1.5, 16x16x4x64 0.14 / 0.03, 1x256x4x64 0.49 / 0.10, 16x1024x4x64 102 / 29.


def auto_order(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> tuple[str, ...]:
    """Return the names of the backends that `auto` tries, best first. The number of items plays no part in it."""
    n_tokens = qkv.shape[1]
    has_gradient = torch.is_grad_enabled() and qkv.requires_grad
    if qkv.is_cuda:
        head_dim = qkv.shape[2] // (3 * num_heads)
        return _cuda_order(qkv.device.index, str(qkv.dtype).removeprefix("torch."), head_dim, n_tokens, has_gradient)
    if not has_gradient and (has_fast_path(qkv, num_heads) or _is_short_float32(qkv)):
        return ("native", "sdpa", "reference")
    if qkv.device.type == "cpu" and _reference_is_faster(qkv.dtype, n_tokens, has_gradient):
        return ("reference",)
    return ("sdpa", "reference")


def _is_short_float32(qkv: Tensor) -> bool:
    is_on_cpu = qkv.device.type == "cpu" and qkv.dtype == torch.float32
    is_short = is_on_cpu and 0 < qkv.shape[1] <= LONGEST_NATIVE_FLOAT32
    return is_short and not _ext.machine_reasons() and _ext.cpu_level() >= AVX512


def _reference_is_faster(dtype: torch.dtype, n_tokens: int, has_gradient: bool) -> bool:
    """Return what was measured on the CPU named above.

    float32: sdpa is ahead of the reference everywhere (forward 1.05 to 2.5 times). bfloat16: sdpa is level or ahead
    forward; backward it needs long rows. float16: sdpa has no fast path and loses by 2 (forward) to 40 times
    (backward).
    """
    if dtype == torch.float16:
        return True
    return dtype == torch.bfloat16 and has_gradient and n_tokens < SHORTEST_SDPA_GRADIENT_BFLOAT16


@constant_while_tracing
def _cuda_order(
    device_index: int | None, dtype: str, head_dim: int, n_tokens: int, has_gradient: bool
) -> tuple[str, ...]:
    return TABLE.order(
        torch.cuda.get_device_name(device_index),
        UNMEASURED_ORDER,
        dtype=dtype,
        head_dim=head_dim,
        n_tokens=n_tokens,
        has_gradient=has_gradient,
    )
