"""Ways to run a call and its backward pass: with poisoned memory, compiled, or as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.budget import outputs_and_gradients, poison_empty, random_upstream

Results = list[tuple[str, Tensor]]
Run = Callable[[Callable[..., Any], Sequence[Tensor], torch.dtype, Sequence[int]], Results]

_WARM_UPS = 3


def run_poisoned(
    function: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype, gradients_of: Sequence[int]
) -> Results:
    """Run as `outputs_and_gradients` does, where every fresh tensor starts as NaN."""
    with _quiet_about_determinism(), poison_empty(native=True):
        return outputs_and_gradients(function, inputs, dtype, gradients_of)


def run_compiled(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    gradients_of: Sequence[int],
    *,
    compiler: str = "inductor",
) -> Results:
    """Run as `outputs_and_gradients` does, compiled as one graph; a graph break raises."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=compiler)
    return outputs_and_gradients(compiled, inputs, dtype, gradients_of)


def run_captured(
    function: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype, gradients_of: Sequence[int]
) -> Results:
    """Run forward and backward as a replayed CUDA graph whose results must be those of plain runs, bit for bit.

    Raises:
        ArithmeticError: Two plain runs differ, or the replay differs from them.
    """
    leaves = [tensor.detach() for tensor in inputs]
    first = function(*leaves)
    upstream = random_upstream([first] if isinstance(first, Tensor) else list(first), dtype)

    def work() -> Results:
        results = outputs_and_gradients(function, inputs, dtype, gradients_of, upstream=upstream)
        # A gradient may be the upstream gradient itself, which must outlive the overwriting below.
        return [(name, tensor.clone()) for name, tensor in results]

    plain = work()
    require_same_bits(plain, work(), "a second run")
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for _, tensor in captured:
        tensor.fill_(7)
    graph.replay()
    torch.cuda.synchronize()
    require_same_bits(plain, captured, "the replayed graph")
    return captured


def require_same_bits(wanted: Results, actual: Results, what: str) -> None:
    """Compare two runs bit for bit.

    Args:
        wanted: Results of the first run.
        actual: Results of another one.
        what: What the other one is, for the message.

    Raises:
        ArithmeticError: They differ.
    """
    for (name, first), (_, second) in zip(wanted, actual, strict=True):
        n_wrong = int((_bits(first) != _bits(second)).sum())
        if n_wrong:
            raise ArithmeticError(f"{name} of {what} differs from the first run in {n_wrong} bytes")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


@contextmanager
def _quiet_about_determinism() -> Iterator[None]:
    """Poisoning goes through PyTorch's deterministic mode, which warns of operations that have no such variant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*determinis.*", category=UserWarning)
        yield
