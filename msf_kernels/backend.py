"""Which implementation serves a call, and why the others do not.

An operator is a table of backends. Each backend can say, for the machine and for given inputs, why it cannot serve;
the list of reasons is empty when it can. `backend="auto"` takes the first backend of the operator's measured order
without a reason; an explicit backend is served or refused, never replaced. A check that raises is a bug and is not
swallowed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from msf_kernels._derivatives import (
    NO_TRANSFORMS,
    Derivatives,
    any_requires_grad,
    any_transformed,
    is_transforming,
    tensors_in,
)
from msf_kernels._measured import MeasuredTable
from msf_kernels.errors import BackendUnavailableError, DerivativeUnavailableError

BACKEND_ENV = "MSF_KERNELS_BACKEND"

_log = logging.getLogger(__name__)
_registry: dict[str, Operator] = {}
# A plain list, not a context variable: torch.compile traces and guards it.
_override: list[str] = []


def _no_reasons(*_args: Any, **_kwargs: Any) -> list[str]:
    return []


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Backend:
    """One way to run an operator.

    Args:
        name: `reference`, `native`, `triton`, or a library's name.
        run: Callable with the operator's own arguments (without the selector).
        machine_reasons: Why it cannot run here, whatever the input; called without arguments.
        input_reasons: Why it cannot serve these inputs; called with the operator's own arguments. Host-only: shapes,
            dtypes, devices and strides, never tensor values.
        in_auto: Whether `auto` may choose it now; by name it always serves (an interpreter for tests is right but
            slow).
        device_type: Type of the only device that it has kernels for, such as `cpu`; None: its `input_reasons` tell.
        derivatives: Which derivatives it has. One that says nothing has none, and refuses a call of which one may be
            taken.
        gradient_reasons: Why it cannot serve these inputs while gradients are recorded; with reverse derivatives only,
            and called as `input_reasons`.
    """

    name: str
    run: Callable[..., Any]
    machine_reasons: Callable[[], list[str]] = _no_reasons
    input_reasons: Callable[..., list[str]] = _no_reasons
    in_auto: Callable[[], bool] = _always
    device_type: str | None = None
    derivatives: Derivatives = Derivatives.NONE
    gradient_reasons: Callable[..., list[str]] = _no_reasons

    def derivative_reasons(self, *args: Any, **kwargs: Any) -> list[str]:
        """Return why it cannot serve these inputs with the derivatives that may be taken; empty when it can."""
        if self.derivatives is Derivatives.ALL:
            return []
        if is_transforming() and any_transformed(tensors_in(args, kwargs)):
            return [NO_TRANSFORMS]
        if not torch.is_grad_enabled():
            return []
        if self.derivatives is Derivatives.NONE and any_requires_grad(tensors_in(args, kwargs)):
            return ['has no gradient: use the other backends in training (backend="reference"), or torch.no_grad()']
        return self.gradient_reasons(*args, **kwargs)

    def call_reasons(self, *args: Any, **kwargs: Any) -> list[str]:
        """Return why it cannot serve these inputs here, with what may be done to them; empty when it can."""
        return self.machine_reasons() or self.input_reasons(*args, **kwargs) or self.derivative_reasons(*args, **kwargs)

    def reasons_on(self, device_type: str) -> list[str]:
        """Return why it cannot serve tensors on such a device on this machine, whatever else they are."""
        reasons = self.machine_reasons()
        if not reasons and self.device_type not in (None, device_type):
            reasons = [f"has no kernels for tensors on {device_type}"]
        return reasons


class Operator:
    """A public operation with its backends, in the order in which `auto` tries them."""

    def __init__(
        self,
        name: str,
        backends: Sequence[Backend],
        auto_order: Callable[..., Sequence[str]] | None = None,
        measured: MeasuredTable | None = None,
        record: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        """Register the operator under its name for `backends()`.

        Args:
            name: Name of the public function.
            backends: In the order in which `auto` tries them.
            auto_order: Where the order depends on the inputs: called with the operator's own arguments, returns the
                names of the backends that `auto` tries.
            measured: Where that order comes from, if from measurements; `msf_kernels.tune` writes it.
            record: Of an operator with many arguments: the named tuple of them, which the backends and `auto_order`
                take in their place.
        """
        self.name = name
        self.measured = measured
        self.backends = {backend.name: backend for backend in backends}
        self._auto_order = auto_order
        self._record = record
        self._logged = False
        _registry[name] = self

    def __call__(self, backend: str, *args: Any, **kwargs: Any) -> Any:
        """Run on the chosen backend; `args` and `kwargs` are already validated."""
        args, kwargs = self._recorded(args, kwargs)
        return self._choose(backend, args, kwargs).run(*args, **kwargs)

    def reasons(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Return, per backend, why it cannot serve these inputs here (empty: it can)."""
        args, kwargs = self._recorded(args, kwargs)
        return {name: backend.call_reasons(*args, **kwargs) for name, backend in self.backends.items()}

    def choose(self, backend: str, *args: Any, **kwargs: Any) -> Backend:
        """Return the backend that serves the call.

        Raises:
            ValueError: The name is not one of this operator's backends.
            BackendUnavailableError: The named backend, or every backend under `auto`, refuses.
            DerivativeUnavailableError: The named backend has not the derivative that may be taken of this call.
        """
        return self._choose(backend, *self._recorded(args, kwargs))

    def _recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as the backends take them."""
        return (args, kwargs) if self._record is None else ((self._record(*args, **kwargs),), {})

    def _choose(self, backend: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Backend:
        wanted = _resolve(backend, self.backends)
        error = BackendUnavailableError
        # Asked once, and before anything else about derivatives: without them a call should not pay for them.
        may_differentiate = torch.is_grad_enabled() or is_transforming()
        if wanted == "auto":
            order = self.backends if self._auto_order is None else self._auto_order(*args, **kwargs)
            for name in order:
                candidate = self.backends[name]
                if (
                    candidate.in_auto()
                    and not candidate.machine_reasons()
                    and not candidate.input_reasons(*args, **kwargs)
                    and not (may_differentiate and candidate.derivative_reasons(*args, **kwargs))
                ):
                    self._log_choice(candidate.name)
                    return candidate
        else:
            if wanted not in self.backends:
                known = ", ".join(["auto", *self.backends])
                raise ValueError(f"{self.name}: backend must be one of {known}; got {wanted!r}")
            named = self.backends[wanted]
            if not named.machine_reasons() and not named.input_reasons(*args, **kwargs):
                if not (may_differentiate and named.derivative_reasons(*args, **kwargs)):
                    return named
                error = DerivativeUnavailableError
        reasons = {name: served.call_reasons(*args, **kwargs) for name, served in self.backends.items()}
        raise error(self.name, wanted, reasons, _describe(args, kwargs))

    def _log_choice(self, chosen: str) -> None:
        if not self._logged and not torch.compiler.is_compiling():
            self._logged = True
            _log.debug("%s: auto chose %s", self.name, chosen)


def measured_tables() -> dict[str, MeasuredTable]:
    """Return the tables of the operators whose backends are chosen by measurements."""
    return {name: op.measured for name, op in sorted(_registry.items()) if op.measured is not None}


def backends(device_type: str | None = None) -> dict[str, dict[str, list[str]]]:
    """Return `{operator: {backend: [reasons it cannot serve on this machine]}}`; an empty list means that it can.

    Args:
        device_type: Also name what has no kernels for tensors on such a device, as `cpu` or `cuda`.
    """
    return {
        name: {
            b.name: b.machine_reasons() if device_type is None else b.reasons_on(device_type)
            for b in operator.backends.values()
        }
        for name, operator in sorted(_registry.items())
    }


def explain(operator: str, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
    """Return, per backend of one operator, why it cannot serve the given inputs, without running anything.

    Args:
        operator: Name of a public operator, such as `"group_norm_silu"`.
        *args: The operator's own positional arguments.
        **kwargs: The operator's own keyword arguments, without `backend`.

    Raises:
        ValueError: Unknown operator; the text lists the known ones.
    """
    if operator not in _registry:
        raise ValueError(f"operator must be one of {', '.join(sorted(_registry))}; got {operator!r}")
    return _registry[operator].reasons(*args, **kwargs)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `backend="auto"` mean `name` inside the block.

    An operator whose backend of that name refuses raises: a forced backend is never replaced. Operators that have no
    backend of that name at all (`"sdpa"` exists for attention only) stay on `auto`. The setting belongs to the
    process, not to a thread. It comes before the environment variable `MSF_KERNELS_BACKEND`; an explicit `backend=`
    argument of a call comes before both.

    Args:
        name: `"reference"`, `"native"`, `"triton"`, `"auto"` or a library backend's name.

    Raises:
        ValueError: No operator has a backend of that name.
    """
    _check_known(name, "backend")
    _override.append(name)
    try:
        yield
    finally:
        _override.pop()


def forced_backend() -> str:
    """Return what `auto` means now to operators that have a backend of that name; `"auto"`: their own order."""
    return _override[-1] if _override else os.environ.get(BACKEND_ENV) or "auto"


def _resolve(backend: str, available: Mapping[str, Backend]) -> str:
    if backend != "auto":
        return backend
    forced = forced_backend()
    if forced != "auto" and forced not in available and not _override:
        _check_known(forced, BACKEND_ENV)
    return forced if forced in available else "auto"


def _check_known(name: str, argument: str) -> None:
    known = {"auto"}.union(*(operator.backends for operator in _registry.values()))
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(sorted(known))}; got {name!r}")


def _describe(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    named = [("", value) for value in args] + [(f"{k}=", value) for k, value in kwargs.items()]
    return ", ".join(name + _describe_one(value) for name, value in named if value is not None)


def _describe_one(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device} with strides {value.stride()}"
    if hasattr(value, "_asdict"):
        return _describe((), value._asdict())
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return "[" + "; ".join(_describe_one(v) for v in value) + "]"
    return repr(value)
