"""What `torch.compile` may not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def constant_while_tracing(function: Callable[P, R]) -> Callable[P, R]:
    """Let `torch.compile` call the function while it traces and keep the result, as for reading files.

    The attribute is what `torch.compiler.assume_constant_result` sets; that function would import the compiler here.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
