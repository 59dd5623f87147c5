"""What `precision="auto"` means: a function of the machine and the network's width, never of a timing of the moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from msf.plain_values import require
from msf.precision.processor import Processor, this_processor
from msf.precision.table import (
    Measured,
    filled_micro_batch,
    shipped_table,
    speed_of_bf16,
    user_table,
    user_table_path,
)
from msf_kernels.conv3x3 import is_native_convolution_fast, native_convolution_reasons

PRECISION_ENV = "MSF_PRECISION"
# Bfloat16 rounds more, and its micro-batches are filled up: it must be worth that.
LEAST_SPEED_OF_BF16 = 1.1
_FIRST_CUDA_WITH_BF16 = (8, 0)


@dataclass(frozen=True)
class AutoPrecision:
    """What `auto` is here.

    Args:
        precision: `fp32` or `bf16`.
        why: What decided, in a few words.
    """

    precision: Literal["fp32", "bf16"]
    why: str


def auto_precision(device: torch.device, base_channels: int, n_draws: int | None = None) -> AutoPrecision:
    """Return the arithmetic that `auto` stands for.

    On CUDA bfloat16 from compute capability 8.0 on. On a CPU what was measured: by this user (`msf tune`), else by us
    for this model of processor; else bfloat16 where the processor has fast products of it (`Processor.has_fast_bf16`).
    Float32 everywhere else, and on a CPU whose bfloat16 network is filled up (`fills_up_bf16`) for fewer draws per
    picture than that takes: by the draws that were asked for, not by the pictures that come together. The environment
    variable MSF_PRECISION (`fp32` or `bf16`) comes before all of it.

    Args:
        device: Where the network is.
        base_channels: Width of the network; the measurement of the nearest width counts.
        n_draws: Draws per picture; None: many.

    Raises:
        ValueError: MSF_PRECISION or the user's table holds something else.
    """
    forced = os.environ.get(PRECISION_ENV)
    if forced:
        require(forced in ("fp32", "bf16"), PRECISION_ENV, "fp32 or bf16", forced)
        return AutoPrecision("bf16" if forced == "bf16" else "fp32", PRECISION_ENV)
    if device.type == "cuda":
        return _on_cuda(device)
    if device.type != "cpu":
        return AutoPrecision("fp32", f"no rule for {device.type}")
    found = on_processor(this_processor(), base_channels)
    is_few = n_draws is not None and fills_up_bf16() and n_draws < micro_batch_of_bf16(base_channels)
    if found.precision == "bf16" and is_few:
        return AutoPrecision(
            "fp32", f"{n_draws} draws, of {micro_batch_of_bf16(base_channels)} that bf16 is filled up to"
        )
    return found


def training_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the arithmetic that a network is trained in.

    `auto`: bfloat16 on CUDA as for `auto_precision`, and on a CPU with fast products of it (`Processor.has_fast_bf16`):
    gradients have no native form that would make up for them.

    Args:
        precision: The setting.
        device: Where the network is trained.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return _on_cuda(device).precision
    is_fast = device.type == "cpu" and this_processor().has_fast_bf16 and library_multiplies_bf16()
    return "bf16" if is_fast else "fp32"


def on_processor(processor: Processor, base_channels: int) -> AutoPrecision:
    """Return what `auto` stands for on the CPU of a kind; see `auto_precision`."""
    if not processor.multiplies_bf16:
        return AutoPrecision("fp32", "the processor multiplies no bfloat16")
    if not library_multiplies_bf16():
        return AutoPrecision("fp32", "oneDNN multiplies no bfloat16 here (ONEDNN_MAX_CPU_ISA)")
    rows, where = _measurements(processor)
    if not rows:
        return _by(processor.has_fast_bf16, f"the products of {processor.key}")
    speed = speed_of_bf16(rows, base_channels)
    return _by(speed >= LEAST_SPEED_OF_BF16, f"measured {where}: bf16 {speed:.2f} times as fast")


def library_multiplies_bf16() -> bool:
    """Return whether oneDNN multiplies bfloat16: the environment variable ONEDNN_MAX_CPU_ISA may hold it back."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fills_up_bf16() -> bool:
    """Return whether a bfloat16 network is evaluated for one number of samples on this CPU, which are filled up to it.

    So it is where its convolutions are the library's, whose bits may depend on the batch.
    """
    return not is_native_convolution_fast(torch.device("cpu"), torch.bfloat16)


def micro_batch_of_bf16(base_channels: int) -> int:
    """Return how many samples a bfloat16 network is filled up to where it is; see `filled_micro_batch`.

    Args:
        base_channels: Width of the network.

    Raises:
        ValueError: The user's table holds something else.
    """
    return filled_micro_batch(_measurements(this_processor())[0], base_channels)


def _measurements(processor: Processor) -> tuple[Sequence[Measured], str]:
    """Return what is known of a processor and where it was measured: the user's own first."""
    own = user_table().get(processor.key, ())
    if own:
        return own, f"here ({user_table_path()})"
    # What was measured for the package are the native forms.
    cpu = torch.device("cpu")
    has_native = not any(native_convolution_reasons(cpu, dtype) for dtype in (torch.float32, torch.bfloat16))
    return (shipped_table().get(processor.key, ()) if has_native else ()), f"on {processor.key}"


def _on_cuda(device: torch.device) -> AutoPrecision:
    capability = torch.cuda.get_device_capability(device)
    return _by(capability >= _FIRST_CUDA_WITH_BF16, f"compute capability {capability[0]}.{capability[1]}")


def _by(is_bf16: bool, why: str) -> AutoPrecision:
    return AutoPrecision("bf16" if is_bf16 else "fp32", why)
