"""Turning launches into compilations: what a launcher would run on a GPU, seen without one.

Inside `record_launches`, `launch` runs nothing and leaves one `AotCase` per configuration. Launchers are called on meta
tensors, so that what is compiled ahead of time is what they really launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from msf_kernels._triton.aot_case import AotCase

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
}

_recorders: list[tuple[str, int | None, bool, list[AotCase]]] = []


@contextmanager
def record_launches(label: str, arch: int | None = None, *, first_only: bool = False) -> Iterator[list[AotCase]]:
    """Collect launches as cases instead of running them.

    Args:
        label: Start of each case's label; the kernel's name and configuration follow.
        arch: Compute capability, such as 90, where the launcher's choices depend on it (see `compute_capability`).
        first_only: Only in the configuration that runs unless all are tried.
    """
    cases: list[AotCase] = []
    _recorders.append((label, arch, first_only, cases))
    try:
        yield cases
    finally:
        _recorders.pop()


def is_recording() -> bool:
    """Return whether `launch` records instead of running."""
    return bool(_recorders)


def records_first_only() -> bool:
    """Return whether only the configuration that would run is recorded."""
    return _recorders[-1][2]


def compute_capability(device: torch.device) -> int | None:
    """Return the architecture that is launched on, such as 90, or recorded for; None in the interpreter."""
    if _recorders:
        return _recorders[-1][1]
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _type_of(value: torch.Tensor | float) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def record(
    kernel: Any,
    arguments: Mapping[str, Any],
    blocks: Mapping[str, int],
    num_warps: int,
    num_stages: int,
    matmul: bool,
    n_programs: int,
) -> None:
    """Add the case of one launch, specialised as Triton's run time would: 1, None and multiples of 16 are known."""
    label, _, _, cases = _recorders[-1]
    compile_time = {kernel.arg_names[i] for i in kernel.constexprs}
    signature: dict[str, str | tuple[str, ...]] = {}
    constexprs: dict[str, Any] = dict(blocks)
    unaligned = set()
    for name, value in arguments.items():
        if name in compile_time or value is None or (isinstance(value, int) and value == 1):
            constexprs[name] = value
        else:
            signature[name] = tuple(_type_of(item) for item in value) if isinstance(value, tuple) else _type_of(value)
            if isinstance(value, int) and value % 16:
                unaligned.add(name)
    sizes = " ".join(f"{name}={value}" for name, value in blocks.items())
    cases.append(
        AotCase(
            label=f"{label} {kernel.__name__} {sizes} warps={num_warps} stages={num_stages}",
            kernel=kernel,
            signature=signature,
            constexprs=constexprs,
            num_warps=num_warps,
            num_stages=num_stages,
            unaligned=frozenset(unaligned),
            is_matmul=matmul,
            n_programs=n_programs,
        )
    )
