"""Arguments of an autograd function that torch.compile can trace."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Replace every repetition of a tensor by a view of it.

    Dynamo cannot trace an `autograd.Function` that is given one tensor twice, as in a step with two equal slopes.
    """
    return [
        tensor.view_as(tensor) if any(tensor is earlier for earlier in tensors[:i]) else tensor
        for i, tensor in enumerate(tensors)
    ]
