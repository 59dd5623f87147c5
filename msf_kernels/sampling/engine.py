"""Draw many samples of a trajectory for each of many inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from msf_kernels.checks import as_int, as_tensor, require_int
from msf_kernels.philox_normal import SEMANTIC_STREAM
from msf_kernels.sampling.capture import CapturedTrajectory, Evaluate, GraphedFunction, Trajectory
from msf_kernels.sampling.collector import Collector
from msf_kernels.sampling.memory import default_micro_batch, is_out_of_memory, largest_filled_up
from msf_kernels.sampling.result import InvalidSamplesError, SamplingResult
from msf_kernels.sampling.schedule import Chunk, Schedule, block_bounds
from msf_kernels.sampling.statistics import Statistic
from msf_kernels.sampling.stopping import StopRule
from msf_kernels.sampling.validity import first_of
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
    keep_samples: bool | str | Sequence[str] = False,
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
    dropped, unless the trajectory promises that its bits do not depend on the batch. Statistics are accumulated while
    samples stream by, so memory does not grow with `n_samples`.

    Args:
        trajectory: `trajectory(inputs [B, ...], noise [B, *noise_shape]) -> readout`: what one micro-batch does from
            noise to readout, such as all steps of a solver and the distances to class codes. A readout is a tensor
            [B, ...], then named `"readout"`, or a mapping of names to such tensors. A row of the readout must be a
            function of the same row of inputs and noise. A `CapturedTrajectory` keeps CUDA graphs between calls; an
            attribute `nfe` (evaluations of the velocity field per sample) is passed on to the result. An attribute
            `is_batch_invariant` promises the bits of a row in a batch of any size; then nothing is filled up. An
            attribute `micro_batch` is the default size, where it is smaller than that of the machine.
        inputs: What is known of each input: a tensor or array [N, ...], or a tuple or mapping of such with first axis
            N. It may live on another device than `device`; rows are moved as they are needed.
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
        keep_samples: Also return the samples themselves: True for all readouts, or the name or names of some.
        stop: Rule that ends the sampling of an input early, such as `SettledVote(alpha=0.05)`. It is asked at fixed
            sample counts of each input, so results still do not depend on what else is drawn.
        micro_batch: Samples evaluated at once; default: see `default_micro_batch`. Halved when memory runs out. Where
            it is larger than all the work there is, it is lowered to that, but not below 64 on a CPU or 1024 elsewhere:
            filling up costs time, and up to these sizes it is what keeps bits equal. Where nothing is filled up, as
            many as there are. `SamplingResult.micro_batch` is what it came to, at most.
        device: Where the trajectory runs; default: where `inputs` are.
        capture: On CUDA, run the micro-batch (noise, trajectory, readout) as one CUDA graph where possible, from the
            second one on. The trajectory must then do the same work whatever the values.
        order: Permutation of the micro-batches' numbers, to evaluate them in that order; results do not depend on it.
        progress: Called as `progress(n_done, n_total)` after each micro-batch, in samples; samples spared by `stop`
            count as done.

    Returns:
        `SamplingResult` with the statistics on `device`.

    Raises:
        TypeError: An argument of the wrong type or dtype, or a readout that is not made of tensors.
        ValueError: A shape or a number out of range, or arguments that exclude each other (`noise` or `stop` with
            `antithetic`, `stop` with `order`); a readout that changes its names, shape, dtype or device between
            micro-batches.
        InvalidSamplesError: A readout that is used is NaN or infinite, or no label; a `ValueError`. The text names the
            first such input and sample. It is raised at the end, and `result` has everything that was drawn, so that
            the other inputs are not lost. With `stop`, an invalid input is not settled and draws no more samples.

    Numerics:
        Statistics are fp64. Per-sample readouts, and with them all statistics, are bit for bit the same for an input
        alone or among others, for any `order`, and sample s is the same for any `n_samples`, provided that the
        micro-batch (that of the result) is equal, or the trajectory is batch-invariant, and that the trajectory's rows
        do not depend on their position in the micro-batch (true of convolutions and matrix products on the CPU; not of
        `sigmoid` and `silu` on tensors whose size is no multiple of the vector width). Statistics of n samples may
        differ in the last bit with and without `stop`.
        No gradients.

    Example:
        >>> result = draw(lambda x, noise: x + noise, torch.zeros(2, 3), 64, (3,))
        >>> result.statistics["readout"]["mean"].shape
        torch.Size([2, 3])
    """
    _check_objects(trajectory, statistics, stop, noise_dtype, progress)
    noise_shape = _as_shape(noise_shape)
    n_samples, seed, stream = as_int("n_samples", n_samples), as_int("seed", seed), as_int("stream", stream)
    micro_batch = None if micro_batch is None else as_int("micro_batch", micro_batch)
    keep_samples = _as_names(keep_samples)
    _check_numbers(n_samples, micro_batch, stop, antithetic, noise, order)
    noise_rule = NoiseRule(noise_shape, stream, noise_dtype, antithetic)
    items = WorkItems(inputs, noise_rule, seed, n_samples, as_tensor(input_key), as_tensor(noise))
    place = torch.device(device) if device is not None else items.device
    captured = trajectory if isinstance(trajectory, CapturedTrajectory) else CapturedTrajectory(trajectory)
    plain: Evaluate = functools.partial(_evaluate, captured.trajectory, items.layout)
    # A graph is of one size, whatever the trajectory promises.
    may_replay = capture and captured.serves(place)
    fits_work = getattr(captured.trajectory, "is_batch_invariant", False) and not may_replay
    if micro_batch is None:
        of_machine = default_micro_batch(items.bytes_per_sample, place)
        micro_batch = min(of_machine, getattr(captured.trajectory, "micro_batch", None) or of_machine)
    if not fits_work:
        micro_batch = min(micro_batch, max(items.n_inputs * n_samples, largest_filled_up(place)))

    bounds = block_bounds(n_samples, stop.checkpoints(n_samples) if stop is not None else ())
    schedule = Schedule(items.n_inputs, bounds, is_gated=stop is not None)
    if order is not None:
        schedule.reorder(order, micro_batch)
    collector: Collector | None = None
    n_halvings = n_evaluations = 0
    with (
        torch.no_grad(),
        torch.cuda.device(place) if place.type == "cuda" else nullcontext(),
        captured.bound(items.layout, plain, place) if capture else nullcontext(plain) as run,
    ):
        while chunks := schedule.take(micro_batch):
            size = sum(chunk.count for chunk in chunks) if fits_work else micro_batch
            readout = _attempt(run, items, chunks, size, place)
            if readout is None:
                captured.release()
                schedule.put_back(chunks)
                micro_batch //= 2
                n_halvings += 1
                continue
            n_evaluations += size
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
    records = collector.validity.read()
    first_invalid = first_of(records, items.n_inputs)
    result = SamplingResult(
        statistics={
            name: _without(first_invalid >= 0, accumulator.finish())
            for name, accumulator in collector.accumulators.items()
        },
        samples=collector.samples,
        n_samples=collector.n_samples,
        settled=collector.settled if stop is not None else None,
        micro_batch=micro_batch,
        n_halvings=n_halvings,
        n_evaluations=n_evaluations,
        nfe=getattr(captured.trajectory, "nfe", None),
        is_captured=isinstance(run, GraphedFunction) and run.is_captured,
        first_invalid=first_invalid,
    )
    if bool((first_invalid >= 0).any()):
        raise InvalidSamplesError(result, records)
    return result


def _without(is_invalid: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return results of a statistic, NaN for invalid inputs where they are floating."""
    if not bool(is_invalid.any()):
        return values
    return {
        name: value.index_fill(0, is_invalid.nonzero().flatten().to(value.device), torch.nan)
        if value.is_floating_point()
        else value
        for name, value in values.items()
    }


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


def _check_objects(trajectory: object, statistics: object, stop: object, noise_dtype: object, progress: object) -> None:
    """Refuse what cannot be what the argument is for, in the argument's name."""
    if not callable(trajectory) and not isinstance(trajectory, CapturedTrajectory):
        raise TypeError(f"trajectory must be callable as trajectory(input, noise); got {type(trajectory).__name__}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable as progress(n_done, n_total); got {type(progress).__name__}")
    if not isinstance(noise_dtype, torch.dtype):
        raise TypeError(f"noise_dtype must be a torch.dtype; got {noise_dtype!r}")
    if stop is not None and not _is_made(stop, "checkpoints", "start"):
        raise TypeError(f"stop must be a rule such as SettledVote(); got {stop!r}")
    if statistics is None:
        return
    if not isinstance(statistics, Mapping):
        raise TypeError(f"statistics must be a mapping of names to statistics; got {type(statistics).__name__}")
    for name, statistic in statistics.items():
        if not _is_made(statistic, "start"):
            raise TypeError(f"statistics must be such as Mean(); got {statistic!r} for {name!r}")


def _is_made(value: object, *methods: str) -> bool:
    """Return whether a value has the methods and what it reads, and is not the class of such values."""
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("reads", *methods))


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


def _as_shape(noise_shape: object) -> tuple[int, ...]:
    if isinstance(noise_shape, str) or not isinstance(noise_shape, Iterable):
        raise TypeError(f"noise_shape must be a sequence of sizes, such as (3,); got {noise_shape!r}")
    sizes = tuple(as_int("noise_shape", size) for size in noise_shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"noise_shape must hold sizes >= 0; got {list(sizes)}")
    return sizes


def _as_names(keep_samples: object) -> bool | tuple[str, ...]:
    if isinstance(keep_samples, str):
        return (keep_samples,)
    if keep_samples is None or isinstance(keep_samples, bool):
        return bool(keep_samples)
    names = tuple(keep_samples) if isinstance(keep_samples, Iterable) else (keep_samples,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"keep_samples must be True, False or names of readouts; got {keep_samples!r}")
    return names


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {type(each).__name__}" for name, each in value.items()) + "}"
    return type(value).__name__
