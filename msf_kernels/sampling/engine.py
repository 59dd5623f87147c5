"""Draw many samples of a trajectory for each of many inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from msf_kernels.checks import require_int
from msf_kernels.philox_normal import SEMANTIC_STREAM
from msf_kernels.sampling.capture import CapturedTrajectory, Evaluate, GraphedFunction, Trajectory
from msf_kernels.sampling.collector import Collector
from msf_kernels.sampling.memory import default_micro_batch, is_out_of_memory
from msf_kernels.sampling.result import SamplingResult
from msf_kernels.sampling.schedule import Chunk, Schedule, block_bounds
from msf_kernels.sampling.statistics import Statistic
from msf_kernels.sampling.stopping import StopRule
from msf_kernels.sampling.work_items import Inputs, Layout, NoiseRule, WorkItems

READOUT = "readout"


def draw(
    trajectory: Trajectory | CapturedTrajectory,
    inputs: Inputs,
    n_samples: int,
    noise_shape: Sequence[int],
    *,
    seed: int = 0,
    stream: int = SEMANTIC_STREAM,
    input_key: Tensor | None = None,
    noise: Tensor | None = None,
    noise_dtype: torch.dtype = torch.float32,
    antithetic: bool = False,
    statistics: Mapping[str, Statistic] | None = None,
    keep_samples: bool | Sequence[str] = False,
    stop: StopRule | None = None,
    micro_batch: int | None = None,
    device: torch.device | str | None = None,
    capture: bool = True,
    order: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SamplingResult:
    """Evaluate a trajectory for every pair (input, sample) and return statistics per input.

    `readout[i, s] = trajectory(inputs[i], noise[i, s])`, with
    `noise[i, s] = philox_normal((key_i & 0x7fffffff) << 32 | s, noise_shape, seed, stream)` for `s < n_samples`.

    Samples are evaluated in micro-batches of one fixed size; the last is filled up with repetitions whose results are
    dropped. Statistics are accumulated while samples stream by, so memory does not grow with `n_samples`.

    Args:
        trajectory: `trajectory(inputs [B, ...], noise [B, *noise_shape]) -> readout`: what one micro-batch does from
            noise to readout, such as all steps of a solver and the distances to class codes. A readout is a tensor
            [B, ...], then named `"readout"`, or a mapping of names to such tensors. A row of the readout must be a
            function of the same row of inputs and noise. A `CapturedTrajectory` keeps CUDA graphs between calls; an
            attribute `nfe` (evaluations of the velocity field per sample) is passed on to the result.
        inputs: What is known of each input: a tensor [N, ...], or a tuple or mapping of tensors with first axis N. It
            may live on another device than `device`; rows are moved as they are needed.
        n_samples: Samples per input; with `stop`, at most. In [1, 2^32).
        noise_shape: Shape of one sample's noise.
        seed: Seed of the noise, in [0, 2^63).
        stream: Number of the noise stream; use different ones for draws that shall be independent under one seed.
        input_key: int64 [N], identifies each input for its noise (the low 31 bits count); default: its number. Give a
            hash of the content if an input's noise shall not depend on where it stands in `inputs`.
        noise: [N, n_samples, *noise_shape], noise to use instead; `seed`, `stream` and `input_key` then do nothing.
        noise_dtype: Floating dtype of the generated noise.
        antithetic: Sample 2 k + 1 gets the negated noise of sample 2 k. The mean of a readout that is nearly linear in
            the noise then varies less; `variance` is still that of single samples.
        statistics: What to accumulate, by a name of your choice; default: `MeanVariance` of every floating-point
            readout, under the readout's name.
        keep_samples: Also return the samples themselves: True for all readouts, or the names of some.
        stop: Rule that ends the sampling of an input early, such as `SettledVote(alpha=0.05)`. It is asked at fixed
            sample counts of each input, so results still do not depend on what else is drawn.
        micro_batch: Samples evaluated at once; default: see `default_micro_batch`. Halved when memory runs out.
        device: Where the trajectory runs; default: where `inputs` are.
        capture: On CUDA, run the micro-batch (noise, trajectory, readout) as one CUDA graph where possible. The
            trajectory must then do the same work whatever the values.
        order: Permutation of the micro-batches' numbers, to evaluate them in that order; results do not depend on it.
        progress: Called as `progress(n_done, n_total)` after each micro-batch, in samples; samples spared by `stop`
            count as done.

    Returns:
        `SamplingResult` with the statistics on `device`.

    Raises:
        TypeError: An argument of the wrong type or dtype, or a readout that is not made of tensors.
        ValueError: A shape or a number out of range, or arguments that exclude each other (`noise` or `stop` with
            `antithetic`, `stop` with `order`).

    Numerics:
        Statistics are fp64. Per-sample readouts, and with them all statistics, are bit for bit the same for an input
        alone or among others, for any `order`, and sample s is the same for any `n_samples`, provided that the
        micro-batch is equal and that the trajectory's rows do not depend on their position in the micro-batch (true of
        convolutions and matrix products on the CPU; not of `sigmoid` and `silu` on tensors whose size is no multiple
        of the vector width). Statistics of n samples may differ in the last bit with and without `stop`.
        No gradients.

    Example:
        >>> result = draw(lambda x, noise: x + noise, torch.zeros(2, 3), 64, (3,))
        >>> result.statistics["readout"]["mean"].shape
        torch.Size([2, 3])
    """
    noise_shape = tuple(noise_shape)
    _check_numbers(n_samples, micro_batch, stop, antithetic, noise, order)
    noise_rule = NoiseRule(noise_shape, seed, stream, noise_dtype, antithetic)
    items = WorkItems(inputs, noise_rule, n_samples, input_key, noise)
    place = torch.device(device) if device is not None else items.device
    if micro_batch is None:
        micro_batch = default_micro_batch(items.bytes_per_sample, place)
    captured = trajectory if isinstance(trajectory, CapturedTrajectory) else CapturedTrajectory(trajectory)
    run: Evaluate = functools.partial(_evaluate, captured.trajectory, items.layout)
    if capture:
        run = captured.bind(items.layout, run, place)

    bounds = block_bounds(n_samples, stop.checkpoints(n_samples) if stop is not None else ())
    schedule = Schedule(items.n_inputs, bounds, is_gated=stop is not None)
    if order is not None:
        schedule.reorder(order, micro_batch)
    collector: Collector | None = None
    n_halvings = n_evaluations = 0
    with torch.no_grad(), torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        while chunks := schedule.take(micro_batch):
            readout = _attempt(run, items, chunks, micro_batch, place)
            if readout is None:
                captured.release()
                schedule.put_back(chunks)
                micro_batch //= 2
                n_halvings += 1
                continue
            n_evaluations += micro_batch
            if collector is None:
                collector = Collector(
                    readout,
                    items.n_inputs,
                    bounds,
                    statistics=statistics,
                    keep_samples=keep_samples,
                    stop=stop,
                    samples_device=items.device,
                )
            collector.add(chunks, readout, schedule)
            if progress is not None:
                progress(collector.n_done, items.n_inputs * n_samples)
    assert collector is not None  # there is at least one input and one sample
    return SamplingResult(
        statistics={name: accumulator.finish() for name, accumulator in collector.accumulators.items()},
        samples=collector.samples,
        n_samples=collector.n_samples,
        settled=collector.settled if stop is not None else None,
        micro_batch=micro_batch,
        n_halvings=n_halvings,
        n_evaluations=n_evaluations,
        nfe=getattr(captured.trajectory, "nfe", None),
        is_captured=isinstance(run, GraphedFunction) and run.is_captured,
    )


def _evaluate(trajectory: Trajectory, layout: Layout, *tensors: Tensor) -> dict[str, Tensor]:
    inputs, noise = layout.arguments(tensors)
    readout = trajectory(inputs, noise)
    named = {READOUT: readout} if isinstance(readout, Tensor) else readout
    if not isinstance(named, Mapping) or not all(isinstance(value, Tensor) for value in named.values()):
        raise TypeError(f"trajectory must return a tensor or a mapping of names to tensors; got {_describe(named)}")
    for name, value in named.items():
        if value.dim() == 0 or value.shape[0] != len(noise):
            raise ValueError(
                f"readout {name!r} must have first axis B = {len(noise)}, the micro-batch; got {list(value.shape)}"
            )
    return dict(named)


def _attempt(
    run: Evaluate, items: WorkItems, chunks: Sequence[Chunk], micro_batch: int, place: torch.device
) -> dict[str, Tensor] | None:
    """Evaluate one micro-batch; None when memory ran out and a smaller one can be tried."""
    try:
        return run(*items.gather(chunks, micro_batch, place))
    except Exception as error:
        if micro_batch > 1 and is_out_of_memory(error):
            return None
        raise


def _check_numbers(
    n_samples: int,
    micro_batch: int | None,
    stop: StopRule | None,
    antithetic: bool,
    noise: Tensor | None,
    order: Sequence[int] | None,
) -> None:
    require_int("n_samples", n_samples, 1, 2**32)
    if micro_batch is not None:
        require_int("micro_batch", micro_batch, 1)
    if antithetic and noise is not None:
        raise ValueError("antithetic must be False when noise is given: the noise decides what is paired")
    if antithetic and stop is not None:
        raise ValueError("antithetic must be False with stop: a stopping rule counts independent samples")
    if order is not None and stop is not None:
        raise ValueError("order must be None with stop: later micro-batches depend on the results of earlier ones")


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {type(each).__name__}" for name, each in value.items()) + "}"
    return type(value).__name__
