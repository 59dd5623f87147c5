"""Derivatives beyond the first one that a kernel has: by PyTorch's own operators, or not at all.

A kernel with a backward pass of its own knows the first reverse derivative. Where more is asked for, its backward pass
is composed of the definition, which PyTorch differentiates as often as one likes. Forward mode and the transforms of
`torch.func` see through PyTorch's operators only: under them a call must not reach a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from msf_kernels._tracing import constant_while_tracing

NO_TRANSFORMS = 'takes no part in forward mode and torch.func transforms: use backend="reference"'

Results = TypeVar("Results", Tensor, tuple[Tensor, Tensor], Tensor | tuple[Tensor, Tensor])

_functorch = torch._C._functorch
# What a transform puts before and behind every operator.
_LAYERS = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.FuncTorchDynamicLayerBackMode
)


def guard_transforms(library: torch.library.Library, name: str) -> None:
    """Make `<namespace>::<name>` raise where a transform of `torch.func` follows one of its tensors.

    PyTorch would take what it cannot differentiate for a constant. The key is reached inside transforms only, so that
    other calls cost what they did.
    """

    def refuse_or_run(*args: Any) -> Any:
        if any(_functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors_in(args, {})):
            raise NotImplementedError(f"{library.ns}::{name} {NO_TRANSFORMS}")
        with torch._C._ExcludeDispatchKeyGuard(_LAYERS):
            return getattr(getattr(torch.ops, library.ns), name).default(*args)

    library.impl(name, refuse_or_run, "FuncTorchDynamicLayerFrontMode")  # type: ignore[no-untyped-call]


class _FirstOnly(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "a kernel in a call that torch.compile traced has first derivatives only: call the function outside "
                'the compiled region, or with backend="reference"'
            )
        return grad


# An operator, because what is seen here must not be seen through by the tracer, while what lowers its graph must.
_guards = torch.library.Library("msf_guards", "FRAGMENT")  # type: ignore[no-untyped-call]
_guards.define("first_derivative_only(Tensor(a) x) -> Tensor(a)")  # type: ignore[no-untyped-call]
_guards.impl("first_derivative_only", _FirstOnly.apply, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def refusing_second_when_traced(result: Results) -> Results:
    """Return what a kernel's autograd function returned, so that a traced call raises for a second derivative.

    `torch.compile` does not record the backward pass that it has traced, whoever asks for a graph: a second derivative
    would lack a part without a word.
    """
    if not torch.compiler.is_compiling():
        return result
    guarded: Any = _guarded(result) if isinstance(result, Tensor) else tuple(map(_guarded, result))
    return cast(Results, guarded)


def _guarded(tensor: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.msf_guards.first_derivative_only(tensor)) if tensor.requires_grad else tensor


class Derivatives(Enum):
    """Which derivatives a backend has."""

    NONE = "none"
    REVERSE = "reverse"
    """Reverse mode of any order, composed of the definition from the second on."""
    ALL = "all"
    """Those of PyTorch's own operators, of which it is made: any mode and order, and `torch.func`."""


@constant_while_tracing
def is_transforming() -> bool:
    """Return whether a transform of `torch.func` or a level of forward mode is active, for whichever tensors."""
    return _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


@constant_while_tracing
def is_vectorising() -> bool:
    """Return whether one tensor may stand for many: inside `torch.func.vmap`, at any depth, or in forward mode."""
    if forward_ad._current_level >= 0:
        return True
    if _functorch.peek_interpreter_stack() is None:
        return False
    return any(level.key() == _functorch.TransformType.Vmap for level in _functorch.get_interpreter_stack())


def is_transformed(tensor: Tensor) -> bool:
    """Return whether such a transform follows the tensor; only where `is_transforming()`.

    While `torch.compile` traces, which cannot ask a tensor, every one counts.
    """
    if torch.compiler.is_compiling() or _functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return _has_tangent(tensor)


def has_derivative(tensor: Tensor) -> bool:
    """Return whether autograd or forward mode follows the tensor, at any depth of transforms."""
    while True:
        if tensor.requires_grad or _has_tangent(tensor):
            return True
        if torch.compiler.is_compiling() or not _functorch.is_functorch_wrapped_tensor(tensor):
            return False
        tensor = _functorch.get_unwrapped(tensor)


def is_vectorised(tensor: Tensor) -> bool:
    """Return whether the tensor stands for many, at any depth of transforms."""
    while not torch.compiler.is_compiling() and _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def any_transformed(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether a transform follows one of the tensors."""
    return is_transforming() and any(tensor is not None and is_transformed(tensor) for tensor in tensors)


def any_requires_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether autograd records what happens to one of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Return whether anyone may ask for a derivative with respect to one of the tensors."""
    return any_requires_grad(tensors) or any_transformed(tensors)


def tensors_in(args: Sequence[object], kwargs: Mapping[str, object]) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments, those in sequences included."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (item for item in value if isinstance(item, Tensor))


def must_compose(*gradients: Tensor | None) -> bool:
    """Return whether a backward pass that receives these gradients must be made of differentiable operators.

    It must when it is recorded itself (`create_graph=True`), and when forward mode or vmap follows the gradients.
    """
    return torch.is_grad_enabled() or any_transformed(gradients) or _any_vectorised(gradients)


def _any_vectorised(gradients: Sequence[Tensor | None]) -> bool:
    """Return whether one is many, as for `torch.autograd.grad(..., is_grads_batched=True)`."""
    if torch.compiler.is_compiling():
        return False
    return any(gradient is not None and _functorch.is_legacy_batchedtensor(gradient) for gradient in gradients)


def composed_gradients(
    definition: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    is_wanted: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the gradients of the definition's outputs with respect to the wanted inputs, differentiable in turn.

    Args:
        definition: Called with `inputs`; returns a tensor or several. Made of PyTorch's own operators.
        inputs: What the forward pass was given.
        is_wanted: Per input, whether its gradient is; the others come out as None.
        gradients: Per output, its gradient; None: zero.
    """
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh aliases: one tensor may be given twice, and may depend on another input.
        aliases = [
            (x.view_as(x) if is_recorded else x.detach().requires_grad_()) if x is not None and wanted else x
            for x, wanted in zip(inputs, is_wanted, strict=True)
        ]
        result = definition(*aliases)
    outputs = (result,) if isinstance(result, Tensor) else result
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if gradient is not None and output.requires_grad
    ]
    places = [i for i, wanted in enumerate(is_wanted) if wanted and aliases[i] is not None]
    found: list[Tensor | None] = [None] * len(aliases)
    if pairs and places:
        of_places = torch.autograd.grad(
            [output for output, _ in pairs],
            [alias for i in places if (alias := aliases[i]) is not None],
            [gradient for _, gradient in pairs],
            create_graph=is_recorded,
            allow_unused=True,
        )
        for i, gradient in zip(places, of_places, strict=True):
            found[i] = gradient
    return found


def once_then_composed(run: Callable[..., Tensor], definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function with all reverse derivatives, of which the first is its own and the further ones are composed.

    Args:
        run: Called with tensors and other arguments, by position and name; has a first derivative by autograd.
        definition: The same in operators that PyTorch differentiates in any way.
    """

    class OnceThenComposed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            ctx.call = call
            ctx.recorded = _recorded(call, tensors)
            return ctx.recorded[1].detach()  # type: ignore[no-any-return]

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            tensors, is_wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
            if must_compose(grad):
                return None, *composed_gradients(
                    lambda *given: ctx.call.of(definition, given), tensors, is_wanted, (grad,)
                )
            leaves, out = ctx.recorded or _recorded(ctx.call, tensors)
            ctx.recorded = None  # its memory is free for the rest of the pass; a second pass records again
            wanted = [leaf for leaf, needs in zip(leaves, is_wanted, strict=True) if needs]
            found = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
            return None, *(next(found) if needs else None for needs in is_wanted)

    def _recorded(call: _Call, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with torch.enable_grad():
            return leaves, call.of(run, leaves)

    def differentiable(*args: Any, **kwargs: Any) -> Tensor:
        # A compiled call refuses second derivatives by itself.
        if (
            not torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or is_transforming()
            or not any_requires_grad(tensors_in(args, kwargs))
        ):
            return run(*args, **kwargs)
        call, tensors = _Call.without_tensors(args, kwargs)
        out: Tensor = OnceThenComposed.apply(call, *tensors)  # type: ignore[no-untyped-call]
        return out

    return differentiable


@dataclass(frozen=True)
class _Call:
    """The arguments of a call, with places instead of its tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def without_tensors(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[_Call, list[Tensor]]:
        tensors: list[Tensor] = []

        def place_of(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            tensors.append(value)
            return _Place(len(tensors) - 1)

        call = cls(tuple(place_of(value) for value in args), {name: place_of(value) for name, value in kwargs.items()})
        return call, tensors

    def of(self, function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
        def value_at(value: Any) -> Any:
            return tensors[value.index] if isinstance(value, _Place) else value

        args = (value_at(value) for value in self.args)
        return function(*args, **{name: value_at(value) for name, value in self.kwargs.items()})


@dataclass(frozen=True)
class _Place:
    index: int
