# (kernel bodies are compiled, not executed: their names have no Python types)
"""SiLU in kernels: exact to float32's rounding, or by the one instruction that bfloat16 needs.

    x sigmoid(x) = h + h tanh(h),  h = x / 2

The hardware's tanh has a relative error of 2^-11 (PTX ISA, tanh.approx.f32), so the result is off by at most 2^-12 |x|:
an eighth of what rounding a number as large as x to bfloat16 (2^-9) may take away. The exact form takes two such
instructions and some twelve others.
"""

import torch
import triton
import triton.language as tl

from msf_kernels._triton.machine import is_interpreting


def has_fast_silu(dtype: torch.dtype) -> bool:
    """Return whether results of a dtype may come by the hardware's tanh; the interpreter has none."""
    return dtype == torch.bfloat16 and not is_interpreting()


@triton.jit
def silu(x, FAST: tl.constexpr):
    """Return x sigmoid(x) in fp32."""
    if FAST:
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )  # fmt: skip
        return half + half * tanh
    else:
        return x * tl.sigmoid(x)
