"""The optional native extension: found and loaded at first use, never at import.

Operators register their fake implementations here by decorator; they reach torch when the library is loaded, because
their schemas live in it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TypeVar

import torch

NAMESPACE = "msf_native"

_Function = TypeVar("_Function", bound=Callable[..., Any])

_fakes: dict[str, Callable[..., Any]] = {}
_library: torch.library.Library | None = None
_failure: str | None = None


def register_fake(operator: str) -> Callable[[_Function], _Function]:
    """Register the decorated function as the fake implementation of `msf_native::<operator>`."""

    def register(function: _Function) -> _Function:
        _fakes[operator] = function
        if _library is not None:
            _register(_library, operator, function)
        return function

    return register


def machine_reasons() -> list[str]:
    """Return why the native backend cannot run here: not built, or failed to load; empty when it can."""
    failure = _load()
    return [] if failure is None else [failure]


def device_reasons(operator: str, device: torch.device) -> list[str]:
    """Return why `msf_native::<operator>` has no kernel for tensors of this device; empty when it has one."""
    if device.type == "cpu" or (device.type == "cuda" and _has_kernel(operator, "CUDA")):
        return []
    if device.type == "cuda":
        return ["built without CUDA: reinstall with nvcc on PATH and a CUDA build of torch"]
    return [f"has no kernel for device {device}"]


def _load() -> str | None:
    """Load the library once; return why that failed."""
    global _library, _failure
    if _library is None and _failure is None:
        path = _find()
        if path is None:
            _failure = (
                "the native extension is not built: reinstall where a C++ compiler and torch are, with "
                "MSF_BUILD_NATIVE=1 pip install --no-build-isolation, to build it or see why it cannot be"
            )
        else:
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]
            except OSError as error:
                _failure = f"the native extension {path.name} failed to load: {error}"
            else:
                _library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
                for operator, function in _fakes.items():
                    _register(_library, operator, function)
    return _failure


# torch.compile evaluates the function while it traces and keeps the result: loading a library cannot be traced. The
# attribute is what torch.compiler.assume_constant_result sets; that function would import the compiler here.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _has_kernel(operator: str, dispatch_key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{operator}", dispatch_key)


_has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _register(library: torch.library.Library, operator: str, function: Callable[..., Any]) -> None:
    torch.library.register_fake(f"{NAMESPACE}::{operator}", function, lib=library)


def _find() -> Path | None:
    folder = Path(__file__).parent
    candidates = (folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)
