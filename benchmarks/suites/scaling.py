"""How the cost of a sample or an evaluation of ours grows with everything that can grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from benchmarks.context import Context
from benchmarks.registry import Job, NotMeasured
from benchmarks.rows import OURS
from benchmarks.suites.end_to_end import our_flow
from benchmarks.suites.network import CHANNELS, ours, workload
from benchmarks.timing import Plan, interleaved

SUITE = "scaling"
CLASSIFY_TESTS = (
    "tests/msf/flow/test_classify.py",
    "tests/msf/network/inference",
    "tests/msf/latent/test_latent_flow.py",
)
NETWORK_TESTS = ("tests/msf/network/test_unet.py", "tests/msf/network/inference")
FEW = Plan(n_rounds=3, warm_up_seconds=0.0, sample_seconds=0.0)
MANY = Plan(n_rounds=9, warm_up_seconds=0.5, sample_seconds=0.0)


def jobs() -> Iterator[Job]:
    for name in ("pixel", "latent"):
        yield Curve(
            suite=SUITE,
            name=f"{name}-cost-vs-samples",
            note="one picture, 1 Euler step; without the encoding of the picture",
            tests=CLASSIFY_TESTS,
            points={f"s{n}": Point(_classify(name, n, 1), n) for n in (16, 64, 256, 1024)},
            fixed=_encode(name),
            item="sample",
            plan=FEW,
        )
        yield Curve(
            suite=SUITE,
            name=f"{name}-cost-vs-nfe",
            note="one picture, 16 samples; per sample and evaluation, without the encoding of the picture",
            tests=CLASSIFY_TESTS,
            points={f"nfe{n}": Point(_classify(name, 16, n), 16 * n) for n in (1, 5, 25)},
            fixed=_encode(name),
            item="evaluation",
            plan=FEW,
        )
        yield Curve(
            suite=SUITE,
            name=f"{name}-cost-vs-batch",
            note="published network on 32x32 maps",
            tests=NETWORK_TESTS,
            points={f"b{n}": Point(_evaluate(name, n, 32), n) for n in (1, 2, 4, 8, 16, 32)},
            item="evaluation",
            plan=MANY,
        )
        yield Curve(
            suite=SUITE,
            name=f"{name}-cost-vs-threads",
            note="published network on 32x32 maps, micro-batch 16",
            tests=NETWORK_TESTS,
            points={f"threads{n}": Point(_evaluate(name, 16, 32), 16, threads=n) for n in (1, 2)},
            item="evaluation",
            plan=MANY,
        )
    yield Curve(
        suite=SUITE,
        name="pixel-cost-vs-resolution",
        note="published 28 x 28 network, micro-batch 1; 28 runs at 32",
        tests=NETWORK_TESTS,
        points={f"pixels{n}": Point(_evaluate("pixel", 1, n), 1) for n in (32, 64, 128, 256)},
        item="evaluation",
        plan=FEW,
    )
    yield NotMeasured(
        suite=SUITE,
        name="pixel-cost-vs-resolution-pixels512",
        note="attention over 65,536 tokens takes most of a minute per evaluation on two cores",
        tests=NETWORK_TESTS,
    )
    yield Curve(
        suite=SUITE,
        name="latent-cost-vs-resolution",
        note="published 224 x 224 network, micro-batch 1; pictures eight times the size of the latents",
        tests=NETWORK_TESTS,
        points={f"pixels{8 * n}": Point(_evaluate("latent", 1, n), 1) for n in (16, 32, 64)},
        item="evaluation",
        plan=FEW,
    )


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Args:
        make: Build its call.
        n_items: Samples or evaluations in a call.
        threads: Of the CPU; default: those of the run. Points of different threads are timed one after the other,
            since changing the number in turn would rebuild the pool of threads.
    """

    make: Callable[[Context], Callable[[], object]]
    n_items: int
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve(Job):
    """Cost per item at several points, timed in turn, and the largest cost over the smallest.

    Args:
        points: By what is appended to the job's name.
        item: What the cost is of.
        plan: How long to measure.
        fixed: Work in every call that does not grow, which is timed in the same rounds and subtracted.
    """

    points: Mapping[str, Point]
    item: str
    plan: Plan
    fixed: Callable[[Context], Callable[[], object]] | None = None

    def measure(self, context: Context) -> None:
        """Time all points in turn."""
        # Seconds, not minutes, in a quick run.
        kept = {label: point for label, point in self.points.items() if not context.quick or point.n_items <= 64}
        seconds: dict[str, list[float]] = {}
        for threads in dict.fromkeys(point.threads for point in kept.values()):
            with torch.inference_mode(), _threads(threads):
                calls = {label: point.make(context) for label, point in kept.items() if point.threads == threads}
                if self.fixed is not None:
                    calls["fixed"] = self.fixed(context)
                for call in calls.values():
                    call()
                seconds |= interleaved(calls, context.plan(self.plan), context.device)
        fixed = seconds.pop("fixed", [0.0] * len(next(iter(seconds.values()))))
        if self.fixed is not None:
            note = "per picture, whatever the number of samples: encoding"
            context.writer.add(self.name, OURS, "fixed_cost", "ms", [1e3 * part for part in fixed], note)
        medians = []
        for label, point in kept.items():
            costs = [1e3 * (whole - part) / point.n_items for whole, part in zip(seconds[label], fixed, strict=True)]
            row = context.writer.add(f"{self.name}-{label}", OURS, f"cost_per_{self.item}", "ms", costs, self.note)
            medians.append(row.median or 0.0)
        spread = max(medians) / min(medians)
        context.writer.add(self.name, OURS, "largest_over_smallest", "ratio", [spread], self.note)


def _classify(name: str, n_samples: int, n_steps: int) -> Callable[[Context], Callable[[], object]]:
    def make(context: Context) -> Callable[[], object]:
        flow = our_flow(name, context.quick, context.device)
        image = workload(name, context).images(1).to(context.device)
        return lambda: flow.classify(image, n_samples=n_samples, n_steps=n_steps)

    return make


def _encode(name: str) -> Callable[[Context], Callable[[], object]]:
    def make(context: Context) -> Callable[[], object]:
        flow = our_flow(name, context.quick, context.device)
        image = workload(name, context).images(1).to(context.device)
        return lambda: flow.autoencoder.encode(image)

    return make


def _evaluate(name: str, batch: int, size: int) -> Callable[[Context], Callable[[], object]]:
    def make(context: Context) -> Callable[[], object]:
        field = ours(workload(name, context).network, [1.0, 0.0], context.device)
        z = torch.zeros(batch, CHANNELS[name], size, size, device=context.device)
        return lambda: field(z, 1.0)

    return make


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
