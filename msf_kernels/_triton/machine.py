"""When Triton kernels can serve, and why not; does not import Triton and asks for no device at import."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from msf_kernels.backend import Backend

_IS_BUILT_FOR_GPU = torch.backends.cuda.is_built()  # also with ROCm
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_TRUE = ("1", "true", "yes", "on", "y")


def is_interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter on CPU tensors (environment variable `TRITON_INTERPRET`)."""
    return _HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in _TRUE


def machine_reasons() -> list[str]:
    """Return why no Triton kernel can run on this machine; empty when one can."""
    if not _HAS_TRITON:
        return ["triton is not installed"]
    if not is_interpreting() and not torch.cuda.is_available():
        return ["needs a CUDA device (or TRITON_INTERPRET=1 for tests)"]
    return []


def tensor_reasons(tensors: Iterable[Tensor], dtypes: Iterable[torch.dtype] = ()) -> list[str]:
    """Return why Triton kernels cannot serve these tensors; empty when they can.

    Args:
        tensors: All tensor arguments of the call.
        dtypes: Further floating dtypes that the kernels would read or write.
    """
    tensors = list(tensors)
    wanted = "cpu" if is_interpreting() else "cuda"
    others = sorted({x.device.type for x in tensors} - {wanted})
    reasons = []
    if others:
        where = "Triton's interpreter" if is_interpreting() else "Triton"
        reasons.append(f"{where} takes tensors on {wanted}; got {', '.join(others)}")
    used = {x.dtype for x in tensors}.union(dtypes)
    if torch.float64 in used:
        reasons.append("the kernels compute in float32; float64 is left to the other backends")
    if torch.bfloat16 in used and is_interpreting():
        reasons.append("Triton's interpreter is wrong in bfloat16")
    return reasons


def triton_backend(run: Callable[..., Any], input_reasons: Callable[..., list[str]], **options: Any) -> Backend:
    """Return the `triton` entry of an operator's table.

    Args:
        run: As for `Backend`; imports Triton when called, not before.
        input_reasons: As for `Backend`; usually ends in `tensor_reasons`.
        **options: Further ones of `Backend`.
    """
    return Backend("triton", run, machine_reasons, input_reasons, in_auto=_is_compiled, **options)


def _is_compiled() -> bool:
    # Asked at every call: the cheapest answers come first.
    return _IS_BUILT_FOR_GPU and torch.cuda.is_available() and not is_interpreting()
