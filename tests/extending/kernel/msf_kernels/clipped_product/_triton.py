# mypy: ignore-errors
"""The clipped product in Triton: reads two numbers and writes one per element."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import block_offsets
from msf_kernels._triton.recording import record_launches

CONFIGS = (KernelConfig({"BLOCK": 1024}),)


@triton.jit
def _clipped_product_fwd_kernel(out_ptr, x_ptr, y_ptr, limit, n_elements, BLOCK: tl.constexpr):
    offs = block_offsets(tl.program_id(0), BLOCK)
    inside = offs < n_elements
    x = tl.load(x_ptr + offs, mask=inside).to(tl.float32)
    y = tl.load(y_ptr + offs, mask=inside).to(tl.float32)
    tl.store(out_ptr + offs, tl.minimum(tl.maximum(x * y, -limit), limit), mask=inside)


def launch_clipped_product(x: Tensor, y: Tensor, limit: float) -> Tensor:
    """Return the product in new memory."""
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    n_elements = x.numel()
    launch(
        _clipped_product_fwd_kernel,
        CONFIGS,
        lambda blocks: (triton.cdiv(n_elements, blocks["BLOCK"]),),
        out_ptr=out,
        x_ptr=x,
        y_ptr=y,
        limit=limit,
        n_elements=n_elements,
    )
    return out


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations; the same for every architecture."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.empty(8, 64, dtype=dtype, device="meta")
        with record_launches(f"clipped_product {dtype}".replace("torch.", "")) as cases:
            launch_clipped_product(x, x, 1.0)
        yield from cases
