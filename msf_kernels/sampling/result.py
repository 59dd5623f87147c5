"""What a draw returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamplingResult:
    """Statistics of N inputs' samples, and how they were drawn. Tensors have first axis N.

    Args:
        statistics: Results by name of statistic, then by name of result: `result.statistics["distance"]["mean"]`.
        samples: Kept samples by name of readout, [N, n_samples, ...], on the inputs' device; empty unless asked for.
            Where an input stopped early, the rest is NaN (floating point) or 0.
        n_samples: int64 [N] on the CPU, samples that count for each input.
        settled: bool [N] on the CPU, whether the stopping rule settled each input; None without a rule.
        micro_batch: Samples evaluated at once at the end of the draw. Bits are equal between draws only if this is.
        n_halvings: How often the micro-batch was halved for lack of memory. Where this is not 0, earlier samples were
            evaluated in larger micro-batches; pin `micro_batch` to repeat the draw bit for bit.
        n_evaluations: Evaluations of the trajectory, in samples: counted ones, padding, and what was evaluated ahead
            for inputs that settled.
        nfe: Evaluations of the velocity field per sample, where the trajectory says so by an attribute `nfe`.
        is_captured: Whether the trajectory ran as a CUDA graph at the end of the draw.
        first_invalid: int64 [N] on the CPU, number of each input's first sample that is not finite or that a statistic
            cannot use; -1 where all are fine. Only an `InvalidSamplesError` carries a result with others.
    """

    statistics: dict[str, dict[str, Tensor]]
    samples: dict[str, Tensor]
    n_samples: Tensor
    settled: Tensor | None
    micro_batch: int
    n_halvings: int
    n_evaluations: int
    nfe: int | None
    is_captured: bool
    first_invalid: Tensor


class InvalidSamplesError(ValueError):
    """Samples of some inputs are NaN or infinite, or no labels; what became of the others is kept.

    Args:
        result: The whole draw. Floating statistics of invalid inputs are NaN and they are never settled; those of the
            others are as if they had been drawn alone.
        wanted: By (name of readout, what it must be): int64 [N], the first sample of each input that is not so, or -1.

    Attributes:
        result: As given; `result.first_invalid` says which inputs are invalid.
        input_index: Number of the first invalid input.
        sample_index: Number of its first invalid sample.
        readout: Name of the readout that was invalid there.
    """

    def __init__(self, result: SamplingResult, wanted: Mapping[tuple[str, str], Tensor]) -> None:
        """Find the first offending sample of the first offending input, and word it."""
        self.result = result
        invalid = (result.first_invalid >= 0).nonzero().flatten().tolist()
        self.input_index: int = invalid[0]
        self.sample_index = int(result.first_invalid[self.input_index])
        self.readout, text = next(
            key for key, first in wanted.items() if int(first[self.input_index]) == self.sample_index
        )
        super().__init__(
            f"readout {self.readout!r} must {text}; sample {self.sample_index} of input {self.input_index} is not so "
            f"(inputs with such samples: {len(invalid)} of {len(result.first_invalid)}): check the trajectory and the "
            "input there; results of the other inputs are in this error's `result`"
        )
