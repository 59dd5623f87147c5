"""The optional native extension: found and loaded at first use, never at import.

An operator's `_native.py` names its operators here with their fakes. Schemas and kernels are in the library, so fakes
reach torch when that is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from msf_kernels._derivatives import guard_transforms
from msf_kernels._schemas import NATIVE, SHARED
from msf_kernels._tracing import constant_while_tracing
from msf_kernels.backend import Backend

NAMESPACE = "msf_native"

_fakes: dict[str, Callable[..., Any]] = {}
_flops: dict[str, Callable[..., int]] = {}
_library: torch.library.Library | None = None
_failure: str | None = None


def operator(name: str, fake: Callable[..., Any], flops: Callable[..., int] | None = None) -> Callable[..., Any]:
    """Return a callable that runs `msf_native::<name>`; it may be called when `machine_reasons()` is empty.

    Args:
        name: Name in the library.
        fake: Allocates the outputs as the operator does, strides included.
        flops: FLOP formula, as for `torch.utils.flop_counter`; None: that of the operator of the same name in
            `msf_triton`, where there is one.
    """
    _fakes[name] = fake
    if flops is not None:
        _flops[name] = flops
    if _library is not None:
        _register(_library, name, fake)

    def run(*args: Any) -> Any:
        return loaded_operator(name)(*args)

    return run


def loaded_operator(name: str) -> Callable[..., Any]:
    """Return `msf_native::<name>` itself; only when `machine_reasons()` is empty."""
    loaded: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return loaded


@constant_while_tracing
def cpu_level() -> int:
    """Return the instruction set of the CPU loops, 0 baseline, 1 AVX2, 2 AVX-512; if `machine_reasons()` is empty."""
    return int(torch.ops.msf_native.cpu_level())


@constant_while_tracing
def has_pair_dots() -> bool:
    """Return whether the CPU loops have dot products of pairs of bfloat16; only when `machine_reasons()` is empty."""
    return bool(torch.ops.msf_native.has_pair_dots())


def native_backend(run: Callable[..., Any], input_reasons: Callable[..., list[str]], **options: Any) -> Backend:
    """Return the `native` entry of an operator's table; arguments and further options as for `Backend`."""
    return Backend("native", run, machine_reasons, input_reasons, **options)


def machine_reasons() -> list[str]:
    """Return why the native backend cannot run here: not built, or failed to load; empty when it can."""
    failure = _load()
    return [] if failure is None else [failure]


def tensor_reasons(name: str, tensors: Iterable[Tensor | None]) -> list[str]:
    """Return why `msf_native::<name>` has no kernel on the devices of these tensors; empty when it has.

    Args:
        name: Name in the library.
        tensors: All tensor arguments of the call; None where an optional one is absent.
    """
    devices = {x.device.type for x in tensors if x is not None}
    reasons: list[str] = []
    if devices == {"cpu"}:
        return reasons
    for device in sorted(devices):
        if device == "cuda" and not _has_cuda_kernel(name):
            reasons.append("built without CUDA: reinstall with nvcc on PATH and a CUDA build of torch")
        elif device not in ("cpu", "cuda"):
            reasons.append(f"has no kernel for tensors on {device}")
    return reasons


@constant_while_tracing
def _load() -> str | None:
    """Load the library once; return why that failed."""
    global _library, _failure
    if _library is None and _failure is None:
        path = _find()
        if path is None:
            _failure = (
                "the native extension is not built: reinstall where torch and a C++ compiler are, with "
                "MSF_BUILD_NATIVE=1 and pip's --no-build-isolation, to build it or to see why it cannot be"
            )
        else:
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]
            except OSError as error:
                _failure = f"the native extension {path.name} failed to load: {error}"
            else:
                _failure = _other_sources(path.name)
                if _failure is None:
                    _library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
                    for name, fake in _fakes.items():
                        _register(_library, name, fake)
    return _failure


def _other_sources(library: str) -> str | None:
    """Return why the loaded library is not of these sources; None: its operators take what is passed to them."""
    for name, schema in (SHARED | NATIVE).items():
        packet = getattr(getattr(torch.ops, NAMESPACE), name, None)
        wanted = str(torch._C.parse_schema(f"{NAMESPACE}::{name}{schema}"))
        found = "absent" if packet is None else str(packet.default._schema)
        if found != wanted:
            return f"the native extension {library} is of other sources ({wanted} is {found} there): reinstall"
    return None


@constant_while_tracing
def _has_cuda_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA")


def _register(library: torch.library.Library, name: str, fake: Callable[..., Any]) -> None:
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    if name in _flops:
        register_flop_formula(packet)(_flops[name])
    guard_transforms(library, name)
    # The families of operators share names and schemas, and so the FLOP formulas that FlopCounterMode looks up.
    twin = getattr(torch.ops.msf_triton, name, None)
    if twin in flop_registry:
        flop_registry[packet] = flop_registry[twin]


def _find() -> Path | None:
    folder = Path(__file__).parent
    candidates = (folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)
