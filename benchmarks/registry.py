"""Every job that is measured: what it does, against whom, which test must pass first, and what is wanted of it.

The jobs themselves are in `benchmarks.suites`, one module per suite. Nothing is built before it is measured: a variant
is a function that makes its tensors and networks when its turn comes, or raises `Unavailable` with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.agreement import Agree, no_agreement
from benchmarks.context import Context
from benchmarks.energy import energy_per_call
from benchmarks.peers import Unavailable
from benchmarks.rows import OURS, RowWriter
from benchmarks.timing import Plan, Timed, interleaved

SUITES = ("ops", "network", "solver", "end-to-end", "train", "memory", "scaling", "decisions")
UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic that no implementation can avoid, per call.

    Args:
        flops: Floating-point operations, two per multiply-add.
        n_bytes: Inputs read once and outputs written once.
        dtype: Fastest type that the job may compute in, whose matmul rate is the limit.
    """

    flops: float
    n_bytes: float
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Subject:
    """A variant, built.

    Args:
        timed: Its call, or the parts of it.
        result: What is compared with the other variants; default: what the call returns.
        note: What a reader must know about this variant.
    """

    timed: Timed
    result: Callable[[], Any] | None = None
    note: str = ""


Build = Callable[[Context], Subject | Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Something to measure.

    Args:
        suite: One of `SUITES`.
        name: Unique.
        note: Sizes and dtypes.
        tests: Test files or node ids that must pass before a time means anything.
        goals: Wanted speed-up over a peer.
    """

    suite: str
    name: str
    note: str
    tests: tuple[str, ...]
    goals: Mapping[str, float] = field(default_factory=dict)

    @abstractmethod
    def measure(self, context: Context) -> None:
        """Measure and add rows.

        Raises:
            AssertionError: Variants that should agree do not; nothing was timed.
        """

    def check(self, context: Context) -> None:  # noqa: B027 - jobs without peers have nothing to compare
        """Compare the variants' results without timing them.

        Raises:
            AssertionError: Variants that should agree do not.
        """


@dataclass(frozen=True, kw_only=True)
class Comparison(Job):
    """Ours against peers: interleaved times, speed-ups round by round, agreement, share of the machine's limit.

    Args:
        variants: How to build each variant, `ours` first.
        unit: Unit of the times.
        plan: How long to measure.
        agree: Compares a peer's result with ours, raises where they must agree and do not, and gives rows to state.
            The first peer that can run decides whether ours is right: where the two disagree, nothing is timed. Another
            one that disagrees is wrong itself: its row says so, and the rest is timed.
        work: For the share of the limit and the roofline.
        n_items: Samples, evaluations or pictures in a call, for a row of items per second; 0: none.
        items: What they are called.
        is_boundary: The difference to a peer is what matters, not the ratio.
        trains: The variants need gradients.
        is_warm: Earlier jobs of the suite ran the same code, and a call takes too long to repeat unmeasured.
        agrees_at_full_size_only: The small models of quick runs decide nothing, so that nothing can be compared.
    """

    variants: Mapping[str, Build]
    unit: str = "us"
    plan: Plan = field(default_factory=Plan)
    agree: Agree = no_agreement
    work: Work | None = None
    n_items: int = 0
    items: str = "samples"
    is_boundary: bool = False
    trains: bool = False
    agrees_at_full_size_only: bool = False
    is_warm: bool = False

    def measure(self, context: Context) -> None:
        """Build all variants, compare their results, then time them in turn."""
        with self._mode():
            subjects = self._build(context)
            if OURS not in subjects:
                return
            for name in self._compare(context, subjects):
                del subjects[name]
            seconds = interleaved(
                {name: subject.timed for name, subject in subjects.items()}, context.plan(self.plan), context.device
            )
            self._add_times(context, subjects, seconds)
            if context.device.type == "cuda":
                for name, subject in subjects.items():
                    self._add_energy(context, name, subject)

    def check(self, context: Context) -> None:
        """Build all variants and compare their results."""
        with self._mode():
            subjects = self._build(context)
            if OURS in subjects:
                self._compare(context, subjects)

    def _mode(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self.trains else torch.inference_mode()

    def _build(self, context: Context) -> dict[str, Subject]:
        subjects = {}
        for name, build in self.variants.items():
            try:
                built = build(context)
                subject = built if isinstance(built, Subject) else Subject(built)
                subjects[name] = subject if self.is_warm else _called_once(subject)
            except Unavailable as reason:
                context.writer.add(self.name, name, "time", self.unit, [], str(reason))
            # Libraries fail in their own ways, which is their result and must not end the run.
            except Exception as error:
                if name.startswith(OURS):
                    raise
                reason_text = f"fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                context.writer.add(self.name, name, "time", self.unit, [], reason_text)
        return subjects

    def _compare(self, context: Context, subjects: Mapping[str, Subject]) -> list[str]:
        """Compare all with ours and return the peers that are wrong, after a row for each that says so.

        Raises:
            AssertionError: Ours and the first peer disagree, or a variant of ours and ours.
        """
        if self.agree is no_agreement or (context.quick and self.agrees_at_full_size_only):
            return []
        ours, wrong = _result(subjects[OURS]), []
        others = [name for name in subjects if name != OURS]
        first_peer = next((name for name in others if not name.startswith(OURS)), None)
        for name in others:
            try:
                stated = list(self.agree(ours, _result(subjects[name])))
            except AssertionError as error:
                if name == first_peer or name.startswith(OURS):
                    raise AssertionError(f"{self.name}: {name} disagrees with ours: {error}") from error
                wrong.append(name)
                reason = (
                    f"not timed: its result is wrong: {' '.join(str(error).split())}; {first_peer} agrees with ours"
                )
                context.writer.add(self.name, name, "time", self.unit, [], reason)
                continue
            for metric, unit, value in stated:
                context.writer.add(self.name, OURS, f"{metric}:{name}", unit, [value], self.note)
        return wrong

    def _add_times(self, context: Context, subjects: Mapping[str, Subject], seconds: Mapping[str, list[float]]) -> None:
        writer, factor = context.writer, UNITS[self.unit]
        notes = {name: "; ".join(filter(None, [self.note, subject.note])) for name, subject in subjects.items()}
        metric = "time" if context.clock is Plan.clock else "processor time"
        for name, samples in seconds.items():
            writer.add(self.name, name, metric, self.unit, [factor * sample for sample in samples], notes[name])
            if self.n_items:
                rates = [self.n_items / sample for sample in samples]
                writer.add(self.name, name, "rate", f"{self.items}/s", rates, notes[name])
            self._add_share(context, name, samples)
        if not self.is_boundary:
            writer.add_speedups(self.name, seconds, notes)
            return
        for peer in [name for name in seconds if name != OURS]:
            extra = [factor * (ours - raw) for ours, raw in zip(seconds[OURS], seconds[peer], strict=True)]
            writer.add(self.name, OURS, f"boundary_over:{peer}", self.unit, extra, self.note)

    def _add_share(self, context: Context, name: str, samples: Sequence[float]) -> None:
        if self.work is None or context.limits is None or context.quick:  # quick runs have other sizes
            return
        least = context.limits.least_seconds(self.work.flops, self.work.n_bytes, self.work.dtype)
        if least is None:
            return
        if name == OURS:
            context.writer.add(self.name, OURS, "arithmetic", "FLOP", [self.work.flops], self.note)
            context.writer.add(self.name, OURS, "traffic", "bytes", [self.work.n_bytes], self.note)
        dtype = str(self.work.dtype).removeprefix("torch.")
        note = f"{self.note}; limit: the larger of arithmetic / {dtype} matmul rate and traffic / copy bandwidth"
        context.writer.add(self.name, name, "share_of_limit", "ratio", [least / sample for sample in samples], note)

    def _add_energy(self, context: Context, name: str, subject: Subject) -> None:
        calls = [subject.timed] if callable(subject.timed) else [part.call for part in subject.timed]
        with contextlib.suppress(Unavailable):
            for metric, unit, value in energy_per_call(calls):
                context.writer.add(self.name, name, metric, unit, [value], self.note)


@dataclass(frozen=True, kw_only=True)
class NotMeasured(Job):
    """A job that this suite leaves out, with the reason as its note."""

    def measure(self, context: Context) -> None:
        """Add the row that says so."""
        context.writer.add(self.name, OURS, "time", "s", [], self.note)


def jobs(suites: Sequence[str] = SUITES) -> Iterator[Job]:
    """Return the jobs of suites, in the order in which they run."""
    for suite in suites:
        module = importlib.import_module(f"benchmarks.suites.{suite.replace('-', '_')}")
        yield from module.jobs()


def verdicts(found: Sequence[Job], writer: RowWriter) -> list[str]:
    """Return one line per goal: met or missed, by the median."""
    lines = []
    for job in found:
        for peer, goal in job.goals.items():
            wanted = (job.name, f"speedup_vs:{peer}")
            medians = [row.median for row in writer.rows if (row.job, row.metric) == wanted and row.median is not None]
            state = "not measured" if not medians else "met" if medians[0] >= goal else "MISSED"
            reached = f" ({medians[0]:.2f}x)" if medians else ""
            lines.append(f"goal {job.name}: at least {goal:g}x {peer}: {state}{reached}")
    return lines


def _called_once(subject: Subject) -> Subject:
    """Run everything once, which shows whether it can run and warms it up; a single call's value is the result."""
    if not callable(subject.timed):
        for part in subject.timed:
            part.call()
        return subject
    value = subject.timed()
    return subject if subject.result is not None else dataclasses.replace(subject, result=lambda: value)


def _result(subject: Subject) -> Any:
    if subject.result is None:
        raise TypeError("a variant in parts must say what its result is")
    return subject.result()
