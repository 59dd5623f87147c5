"""What a draw returns."""

from __future__ import annotations

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
        is_captured: Whether the trajectory ran as a CUDA graph.
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
