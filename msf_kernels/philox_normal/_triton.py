"""Counter-based normals in Triton.

A program owns BLOCK counter blocks of one sample, hence 4 BLOCK neighbouring positions: no input is read but the sample
index, every output is written once (4 bytes per fp32 value), about 35 integer and 30 floating-point operations each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import block_offsets
from msf_kernels._triton.philox import normal_block, philox_words
from msf_kernels._triton.recording import record_launches

# Not measured on any GPU yet; the first is what runs.
CONFIGS = (
    KernelConfig({"BLOCK": 128}, num_warps=4),
    KernelConfig({"BLOCK": 256}, num_warps=4),
    KernelConfig({"BLOCK": 512}, num_warps=8),
)
WORDS_CONFIGS = (KernelConfig({"BLOCK": 256}, num_warps=4),)


@triton.jit(do_not_specialize=["seed", "stream"])
def _philox_normal_fwd_kernel(
    out_ptr, sample_index_ptr, seed, seed_ptr, stream, n_positions, stride_sample, BLOCK: tl.constexpr
):
    pid = tl.program_id(0)
    n_programs = tl.cdiv(n_positions, 4 * BLOCK)
    sample = tl.cast(pid // n_programs, tl.int64)
    pid_block = pid % n_programs
    sample_index = tl.load(sample_index_ptr + sample * stride_sample)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)

    noise = normal_block(block_offsets(pid_block, BLOCK), stream, sample_index, seed)

    positions = block_offsets(pid_block, 4 * BLOCK)
    tl.store(out_ptr + sample * n_positions + positions, noise, mask=positions < n_positions)


@triton.jit
def _philox_words_fwd_kernel(
    out_ptr, counter_ptr, key_ptr, n_counters, stride_counter, stride_word, stride_key, BLOCK: tl.constexpr
):
    counters = block_offsets(tl.program_id(0), BLOCK)
    in_counters = counters < n_counters
    c_ptr = counter_ptr + counters * stride_counter
    c_0 = tl.load(c_ptr, mask=in_counters, other=0)
    c_1 = tl.load(c_ptr + stride_word, mask=in_counters, other=0)
    c_2 = tl.load(c_ptr + 2 * stride_word, mask=in_counters, other=0)
    c_3 = tl.load(c_ptr + 3 * stride_word, mask=in_counters, other=0)
    key_0 = tl.load(key_ptr)
    key_1 = tl.load(key_ptr + stride_key)

    sample_index = (c_2 & 0xFFFFFFFF) | (c_3 << 32)
    seed = (key_0 & 0xFFFFFFFF) | (key_1 << 32)
    x_0, x_1, x_2, x_3 = philox_words(c_0, c_1, sample_index, seed)

    words = tl.interleave(tl.interleave(x_0, x_2), tl.interleave(x_1, x_3))
    positions = block_offsets(tl.program_id(0), 4 * BLOCK)
    tl.store(out_ptr + positions, tl.cast(words, tl.int64), mask=positions < 4 * n_counters)


def launch_philox_normal_fwd(
    sample_index: Tensor, shape: Sequence[int], seed: int | Tensor, stream: int, dtype: torch.dtype
) -> Tensor:
    """Return the noise; [N] -> [N, *shape]. A seed in memory is read by the kernel, so that a graph follows it."""
    is_in_memory = isinstance(seed, Tensor)
    n, n_positions = sample_index.shape[0], math.prod(shape)
    out = torch.empty((n, *shape), dtype=dtype, device=sample_index.device)
    launch(
        _philox_normal_fwd_kernel,
        CONFIGS,
        lambda blocks: (n * triton.cdiv(n_positions, 4 * blocks["BLOCK"]),),
        configuration_key=(n, n_positions, dtype),
        out_ptr=out,
        sample_index_ptr=sample_index,
        seed=0 if is_in_memory else seed,
        seed_ptr=seed if is_in_memory else None,
        stream=stream,
        n_positions=n_positions,
        stride_sample=sample_index.stride(0),
    )
    return out


def launch_philox_words_fwd(counter: Tensor, key: Tensor) -> Tensor:
    """Return the words; [M, 4], [2] -> [M, 4]."""
    n_counters = counter.shape[0]
    out = torch.empty((n_counters, 4), dtype=torch.int64, device=counter.device)
    launch(
        _philox_words_fwd_kernel,
        WORDS_CONFIGS,
        lambda blocks: (triton.cdiv(n_counters, blocks["BLOCK"]),),
        out_ptr=out,
        counter_ptr=counter,
        key_ptr=key,
        n_counters=n_counters,
        stride_counter=counter.stride(0),
        stride_word=counter.stride(1),
        stride_key=key.stride(0),
    )
    return out


def aot_cases(arch: int) -> list[AotCase]:
    """Return every compilation that real calls need: noise in each dtype, and the words."""
    index = torch.empty(64, dtype=torch.int64, device="meta")
    seeds = {"": 7, " seed in memory": torch.empty((), dtype=torch.int64, device="meta")}
    cases: list[AotCase] = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for kind, seed in seeds.items():
            with record_launches(f"philox_normal {dtype}{kind}".replace("torch.", "")) as recorded:
                launch_philox_normal_fwd(index, (3, 32, 32), seed, 5, dtype)
            cases += recorded
    with record_launches("philox_words") as recorded:
        launch_philox_words_fwd(
            torch.empty((4096, 4), dtype=torch.int64, device="meta"),
            torch.empty(2, dtype=torch.int64, device="meta"),
        )
    return cases + recorded
