"""Launching a kernel in one of its few configurations."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor

from msf_kernels._triton.aot_case import FLOAT_OPTIONS
from msf_kernels._triton.machine import is_interpreting
from msf_kernels._triton.recording import is_recording, record, records_first_only

TRY_ENV = "MSF_KERNELS_TRY_CONFIGURATIONS"
_OLD_TRY_ENV = "MSF_KERNELS_TUNE"

_fastest: dict[Hashable, KernelConfig] = {}


@dataclass(frozen=True)
class KernelConfig:
    """One way to cut a kernel's work.

    Args:
        blocks: Values of the kernel's block-size parameters, by name.
        num_warps: Warps per program.
        num_stages: Depth of the load pipeline of loops.
    """

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 1


def launch(
    kernel: Any,
    configs: Sequence[KernelConfig],
    grid: Callable[[Mapping[str, int]], tuple[int, ...]],
    *,
    configuration_key: Hashable | None = None,
    is_matmul: bool = False,
    **arguments: Any,
) -> None:
    """Run a kernel, in its first configuration unless all are to be tried.

    With the environment variable `MSF_KERNELS_TRY_CONFIGURATIONS=1`, the first call for a `configuration_key` times
    every configuration and the process keeps the fastest. That is never done while a CUDA graph is captured.

    Triton launches on the current device, whatever its arguments are on: theirs is made the current one meanwhile.

    Args:
        kernel: `triton.jit` function.
        configs: At most six; the first is valid everywhere. All must give the same bits.
        grid: Number of programs per axis, from the configuration's block sizes. No program: nothing is launched.
        configuration_key: What the best configuration depends on (dtypes, sizes). None where a second run of the
            kernel would change its result: then the first configuration is used.
        is_matmul: Whether compilations ahead of time must show tensor-core instructions.
        **arguments: The kernel's arguments by name, without block sizes.
    """
    if is_recording():
        for config in configs[:1] if configuration_key is None or records_first_only() else configs:
            record(
                kernel,
                arguments,
                config.blocks,
                config.num_warps,
                config.num_stages,
                is_matmul,
                math.prod(grid(config.blocks)),
            )
        return

    def run(config: KernelConfig) -> None:
        programs = grid(config.blocks)
        if all(programs):
            kernel[programs](
                **arguments,
                **config.blocks,
                **FLOAT_OPTIONS,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
            )

    with _on_device_of(arguments.values()):
        config = configs[0]
        if configuration_key is not None and len(configs) > 1 and _tries_all():
            key = (kernel, torch.cuda.current_device(), configuration_key)
            if key not in _fastest and not torch.cuda.is_current_stream_capturing():
                _fastest[key] = min(configs, key=lambda candidate: triton.testing.do_bench(lambda: run(candidate)))
            config = _fastest.get(key, config)
        run(config)


def _on_device_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """Return what makes the tensors' GPU the current one; nothing where there is none."""
    for value in arguments:
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Tensor) and each.device.type == "cuda":
                return torch.cuda.device(each.device)
    return nullcontext()


def _tries_all() -> bool:
    if os.environ.get(_OLD_TRY_ENV):
        warnings.warn(
            f"{_OLD_TRY_ENV} is now {TRY_ENV}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
    return os.environ.get(TRY_ENV, os.environ.get(_OLD_TRY_ENV)) == "1" and not is_interpreting()
