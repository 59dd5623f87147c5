"""Operators of the `msf_triton` namespace: schema, fake, CUDA kernel, and a CPU body without one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from msf_kernels._derivatives import guard_transforms, is_differentiated, tensors_in
from msf_kernels._schemas import SHARED
from msf_kernels._triton.machine import is_interpreting

NAMESPACE = "msf_triton"

LAUNCHERS: dict[str, Callable[..., Any]] = {}
"""What runs the kernels of each operator; on meta tensors inside `record_launches` it says what they would be."""

_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def register(
    schema: str, *, kernel: Callable[..., Any] | str, formula: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Register `msf_triton::<name>` and return a callable that runs it.

    Args:
        schema: Name of one of `msf_kernels._schemas.SHARED`; or, of an operator that only Triton has, name and
            signature, such as `"scale_fwd(Tensor x, float factor) -> Tensor"`.
        kernel: Runs the Triton kernel, for CUDA tensors and for CPU tensors in the interpreter. `"module:function"` is
            imported at the first call, because it imports Triton; a callable does so in its body.
        formula: The same in plain PyTorch, for CPU tensors outside the interpreter: registration, fakes, autograd and
            compilation can be tested on any machine. Its outputs must not alias its inputs.
        fake: Allocates the outputs as `kernel` does, strides included.
    """
    name = schema.partition("(")[0]
    if name == schema:
        schema += SHARED[name]
    launch = imported_when_called(kernel) if isinstance(kernel, str) else kernel
    LAUNCHERS[name] = launch
    # Strides of the outputs follow from strides of the inputs, so a compiler must not change those.
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))

    def refuse_derivatives(*args: Any) -> None:
        if is_differentiated(*tensors_in(args, {})):
            raise NotImplementedError(
                f"{NAMESPACE}::{name} has no derivatives of its own: call the function of msf_kernels, with "
                'backend="reference" for forward mode'
            )

    def run_kernel(*args: Any) -> Any:
        refuse_derivatives(*args)
        return launch(*args)

    def run_on_cpu(*args: Any) -> Any:
        refuse_derivatives(*args)
        return launch(*args) if is_interpreting() else formula(*args)

    _library.impl(name, run_kernel, "CUDA")
    _library.impl(name, run_on_cpu, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    guard_transforms(_library, name)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def imported_when_called(place: str) -> Callable[..., Any]:
    """Return a callable that imports `"module:function"` and runs it."""
    module, _, function = place.partition(":")

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args)

    return run
