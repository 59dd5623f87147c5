"""Every way in which PyTorch takes a derivative, tried on one function of three numbers.

A call with many tensors is moved along three directions of all of them, so that any derivative of it is small, and that
a wrong one of any tensor shows. The function returns two numbers that are not linear in the outputs: a second
derivative that is left out shows too, also where the operator itself is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad, functional

from msf_kernels.testing.case import InputDraw, OperatorCase

N_DIRECTIONS = 3
N_RESULTS = 2

# [3] -> [2]
Curve: TypeAlias = Callable[[Tensor], Tensor]
Derivative: TypeAlias = Callable[[Curve, torch.dtype], Tensor]

DERIVATIVES: dict[str, Derivative] = {}
"""`{name: function of a curve and its dtype}`; each returns one derivative at the same point."""


def curve_of(case: OperatorCase, backend: str, dtype: torch.dtype, moved: Sequence[int] | None = None) -> Curve:
    """Return a case's call on one backend as a curve.

    Args:
        case: The call; inputs are drawn in float32 for every dtype.
        backend: Name of the backend, or `auto`.
        dtype: Dtype of floating inputs.
        moved: Positions of the inputs that move; default all floating ones.
    """
    inputs = [
        tensor.to(dtype) if tensor.is_floating_point() else tensor
        for tensor in case.draw(InputDraw(torch.float32, torch.device("cpu"), seed=0))
    ]
    generator = torch.Generator().manual_seed(1)
    directions = {
        i: _normal(generator, dtype, N_DIRECTIONS, inputs[i].numel())
        for i in (floating_inputs(case) if moved is None else moved)
    }
    function = case.function(backend)

    def curve(s: Tensor) -> Tensor:
        arguments = [
            tensor + (s @ directions[i]).reshape(tensor.shape) if i in directions else tensor
            for i, tensor in enumerate(inputs)
        ]
        result = case.call(function, dtype, *arguments)
        return two_numbers([result] if isinstance(result, Tensor) else result)

    return curve


def floating_inputs(case: OperatorCase) -> list[int]:
    """Return the positions of a case's floating inputs."""
    inputs = case.draw(InputDraw(torch.float32, torch.device("cpu"), seed=0))
    return [i for i, tensor in enumerate(inputs) if tensor.is_floating_point()]


def two_numbers(outputs: Sequence[Tensor]) -> Tensor:
    """Return two cubic functions of all elements of the outputs; [2]."""
    total = outputs[0].new_zeros(N_RESULTS)
    for output in outputs:
        flat = output.reshape(1, -1)
        # No two alike, and nothing random, which vmap would refuse.
        phases = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64) * torch.tensor([[0.7], [1.9]])
        weights = (phases.cos() * max(1, flat.shape[1]) ** -0.5).to(output.dtype)
        total = total + (weights * (flat**3 / 3 + flat**2 / 2)).sum(1)
    return total


def _normal(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def _point(dtype: torch.dtype) -> Tensor:
    return torch.tensor([0.1, -0.2, 0.3], dtype=dtype)


def _direction(dtype: torch.dtype) -> Tensor:
    return torch.tensor([0.7, 0.4, -1.1], dtype=dtype)


def _upstream(dtype: torch.dtype) -> Tensor:
    return torch.tensor([1.0, -2.0], dtype=dtype)


def _sum_of(curve: Curve) -> Curve:
    return lambda s: curve(s).sum()


def _derivative(function: Derivative) -> Derivative:
    DERIVATIVES[function.__name__.removeprefix("_")] = function
    return function


def _grad(output: Tensor, s: Tensor, *, create_graph: bool = False, **options: Any) -> Tensor:
    return torch.autograd.grad(output, s, create_graph=create_graph, **options)[0]


def _reverse(curve: Curve, dtype: torch.dtype, order: int) -> Tensor:
    s = _point(dtype).requires_grad_()
    value = curve(s)[0]
    for _ in range(order - 1):
        value = (_grad(value, s, create_graph=True) * _direction(dtype)).sum()
    return _grad(value, s)


@_derivative
def _first_reverse(curve: Curve, dtype: torch.dtype) -> Tensor:
    return _reverse(curve, dtype, 1)


@_derivative
def _second_reverse(curve: Curve, dtype: torch.dtype) -> Tensor:
    return _reverse(curve, dtype, 2)


@_derivative
def _third_reverse(curve: Curve, dtype: torch.dtype) -> Tensor:
    return _reverse(curve, dtype, 3)


@_derivative
def _many_gradients(curve: Curve, dtype: torch.dtype) -> Tensor:
    s = _point(dtype).requires_grad_()
    return _grad(curve(s), s, grad_outputs=torch.eye(N_RESULTS, dtype=dtype), is_grads_batched=True)


@_derivative
def _gradient_of_many_gradients(curve: Curve, dtype: torch.dtype) -> Tensor:
    s = _point(dtype).requires_grad_()
    eye = torch.eye(N_RESULTS, dtype=dtype)
    gradients = _grad(curve(s), s, grad_outputs=eye, is_grads_batched=True, create_graph=True)
    return _grad((gradients * _direction(dtype)).sum(), s)


@_derivative
def _dual(curve: Curve, dtype: torch.dtype) -> Tensor:
    with forward_ad.dual_level():
        return _tangent(curve(_dual_tensor(_point(dtype), _direction(dtype))))


@_derivative
def _dual_over_reverse(curve: Curve, dtype: torch.dtype) -> Tensor:
    with forward_ad.dual_level():
        s = _dual_tensor(_point(dtype).requires_grad_(), _direction(dtype))
        return _tangent(_grad(curve(s)[0], s, create_graph=True))


@_derivative
def _reverse_of_dual(curve: Curve, dtype: torch.dtype) -> Tensor:
    s = _point(dtype).requires_grad_()
    results = curve(s)
    with forward_ad.dual_level():
        upstream = _dual_tensor(torch.ones(N_RESULTS, dtype=dtype), _upstream(dtype))
        return _tangent(_grad(results, s, grad_outputs=upstream))


@_derivative
def _func_jvp(curve: Curve, dtype: torch.dtype) -> Tensor:
    tangent: Tensor = torch.func.jvp(curve, (_point(dtype),), (_direction(dtype),))[1]
    return tangent


@_derivative
def _func_grad(curve: Curve, dtype: torch.dtype) -> Tensor:
    gradient: Tensor = torch.func.grad(_sum_of(curve))(_point(dtype))
    return gradient


@_derivative
def _func_grad_of_grad(curve: Curve, dtype: torch.dtype) -> Tensor:
    inner = torch.func.grad(_sum_of(curve))
    gradient: Tensor = torch.func.grad(lambda s: (inner(s) * _direction(dtype)).sum())(_point(dtype))
    return gradient


@_derivative
def _func_vjp(curve: Curve, dtype: torch.dtype) -> Tensor:
    gradient: Tensor = torch.func.vjp(curve, _point(dtype))[1](_upstream(dtype))[0]
    return gradient


@_derivative
def _func_vmap(curve: Curve, dtype: torch.dtype) -> Tensor:
    values: Tensor = torch.func.vmap(curve)(torch.stack([_point(dtype), _direction(dtype)]))
    return values


@_derivative
def _func_vmap_of_grad(curve: Curve, dtype: torch.dtype) -> Tensor:
    points = torch.stack([_point(dtype), _direction(dtype)])
    gradients: Tensor = torch.func.vmap(torch.func.grad(_sum_of(curve)))(points)
    return gradients


@_derivative
def _func_jacrev(curve: Curve, dtype: torch.dtype) -> Tensor:
    jacobian: Tensor = torch.func.jacrev(curve)(_point(dtype))
    return jacobian


@_derivative
def _func_jacfwd(curve: Curve, dtype: torch.dtype) -> Tensor:
    jacobian: Tensor = torch.func.jacfwd(curve)(_point(dtype))
    return jacobian


@_derivative
def _func_hessian(curve: Curve, dtype: torch.dtype) -> Tensor:
    hessian: Tensor = torch.func.hessian(_sum_of(curve))(_point(dtype))
    return hessian


@_derivative
def _functional_hessian(curve: Curve, dtype: torch.dtype) -> Tensor:
    hessian: Tensor = functional.hessian(_sum_of(curve), _point(dtype))  # type: ignore[no-untyped-call]
    return hessian


@_derivative
def _functional_hessian_vectorised(curve: Curve, dtype: torch.dtype) -> Tensor:
    hessian: Tensor = functional.hessian(_sum_of(curve), _point(dtype), vectorize=True)  # type: ignore[no-untyped-call]
    return hessian


@_derivative
def _functional_hvp(curve: Curve, dtype: torch.dtype) -> Tensor:
    product: Tensor = functional.hvp(_sum_of(curve), _point(dtype), _direction(dtype))[1]  # type: ignore[no-untyped-call]
    return product


@_derivative
def _functional_jvp(curve: Curve, dtype: torch.dtype) -> Tensor:
    product: Tensor = functional.jvp(curve, _point(dtype), _direction(dtype))[1]  # type: ignore[no-untyped-call]
    return product


@_derivative
def _functional_jacobian_forward(curve: Curve, dtype: torch.dtype) -> Tensor:
    jacobian: Tensor = functional.jacobian(  # type: ignore[no-untyped-call]
        curve, _point(dtype), vectorize=True, strategy="forward-mode"
    )
    return jacobian


def _dual_tensor(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def _tangent(dual: Tensor) -> Tensor:
    tangent: Tensor | None = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(dual) if tangent is None else tangent
