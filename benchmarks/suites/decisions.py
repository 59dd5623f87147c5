"""Decisions against what a user would take instead, for the same processor time on the same splits.

Peers are a ResNet-18 of torchvision, as it is, with a temperature, with MC dropout, and an ensemble of three whose
members share the time. All are judged by the same code. A row has a value per seed; its note has the interval of each
seed from resampled test pictures. What a peer does better stays in the table.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.context import Context
from benchmarks.peers import Unavailable, resnet
from benchmarks.registry import Job
from benchmarks.rows import OURS
from msf import MedSymmFlow
from msf.config import RECIPES, CodeConfig, DataConfig, ExperimentConfig, UNetConfig
from msf.data import ImageDataset, load_dataset, make_phantoms
from msf.judge.intervals import metric_intervals
from msf.judge.metrics import PUBLISHED_SCORE
from msf.judge.resampling import Resamples
from msf.judge.uncertainty import Prediction
from msf.training.train import train

SUITE = "decisions"
DATASETS = ("pneumoniamnist", "retinamnist")
MINUTES, QUICK_MINUTES = 5.0, 0.01
SEEDS = (0, 1)
SCORE = "least_confidence"
FIGURES = ("accuracy", "auc_macro_ovr_of_probability", "nll", "ece")
TESTS = ("tests/msf/judge", "tests/msf/flow/test_classify.py", "tests/msf/training/test_train.py")
_N_RESAMPLES = 300
_N_TIMED = 3
_TINY = UNetConfig(base_channels=8, n_groups=4, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(),
                   head_channels=8)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A trained way to decide.

    Args:
        decide: Returns the predictions of the test pictures; what is timed.
        minutes: Processor time of its training.
        evaluations: Of a network, per decision.
        note: What a reader must know.
    """

    decide: Callable[[], Prediction]
    minutes: float
    evaluations: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Decisions(Job):
    """All candidates on one data set.

    Args:
        dataset: Its name.
    """

    dataset: str

    def measure(self, context: Context) -> None:
        """Train every candidate with every seed, judge it and time it."""
        try:
            data = _tiny() if context.quick else load_dataset(self.dataset)
        except ValueError as error:
            context.writer.add(self.name, OURS, "accuracy", "share", [], str(error).splitlines()[0])
            return
        minutes = QUICK_MINUTES if context.quick else MINUTES
        samples: dict[tuple[str, str, str], list[float]] = {}
        notes: dict[tuple[str, str, str], list[str]] = {}
        for seed in SEEDS:
            try:
                found = {OURS: _ours(data, minutes, seed, quick=context.quick)}
                found |= _peers(data, minutes, seed)
            except Unavailable as reason:
                context.writer.add(self.name, "resnet18", "accuracy", "share", [], str(reason))
            for variant, candidate in found.items():
                for metric, unit, values, note in _rows(candidate, data, seed):
                    key = (variant, metric, unit)
                    samples.setdefault(key, []).extend(values)
                    notes.setdefault(key, []).append(note)
        for (variant, metric, unit), values in samples.items():
            note = "; ".join([self.note, *filter(None, notes[variant, metric, unit])])
            context.writer.add(self.name, variant, metric, unit, values, note)


def jobs() -> Iterator[Job]:
    for name in DATASETS:
        yield Decisions(
            suite=SUITE,
            name=f"decisions-{name}",
            note=f"{name}, test split, {MINUTES:g} processor minutes to train each, seeds {', '.join(map(str, SEEDS))}",
            tests=TESTS,
            dataset=name,
        )


def _rows(candidate: Candidate, data: ImageDataset, seed: int) -> Iterator[tuple[str, str, list[float], str]]:
    """Yield metric, unit, values and note of a candidate."""
    seconds = []
    for _ in range(_N_TIMED):
        started = time.process_time()
        prediction = candidate.decide()
        seconds.append(time.process_time() - started)
    labels = data.test.labels
    found = metric_intervals(prediction, labels, Resamples(len(labels), _N_RESAMPLES, seed))
    for name in FIGURES:
        yield name, _unit(name), *_figure(found["overall"][name], seed, candidate.note)
    for name, score in (("aurc", SCORE), (f"aurc:{PUBLISHED_SCORE}", PUBLISHED_SCORE)):
        yield name, "share", *_figure(found["score_intervals"][score]["aurc"], seed, "")
    yield "training", "processor minutes", [candidate.minutes], ""
    yield "evaluations", "per decision", [float(candidate.evaluations)], ""
    yield "processor time", "ms/decision", [1000 * value / len(labels) for value in seconds], ""


def _figure(interval: Mapping[str, float | None], seed: int, note: str) -> tuple[list[float], str]:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return [], f"seed {seed}: undefined on these pictures"
    ends = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
    return [value], f"seed {seed}: {value:.4f}{ends}{', ' if note else ''}{note}"


def _unit(name: str) -> str:
    return "nats" if name == "nll" else "share"


def _ours(data: ImageDataset, minutes: float, seed: int, *, quick: bool) -> Candidate:
    experiment = _experiment(data, seed, quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        # Epochs are whole, and so is the schedule: as many as fit, by the time that one takes.
        started = time.process_time()
        train(_with_epochs(experiment, 1), data, Path(folder) / "first", device="cpu")
        n_epochs = max(1, int(60 * minutes / (time.process_time() - started)))
        started = time.process_time()
        train(_with_epochs(experiment, n_epochs), data, Path(folder) / "run", device="cpu")
        taken = (time.process_time() - started) / 60
        flow = MedSymmFlow.from_pretrained(Path(folder) / "run")
    settings = flow.config.inference.classify
    return Candidate(
        lambda: flow.classify(data.test.images, seed=seed),
        taken,
        settings.n_samples,
        f"{n_epochs} epochs of recipe {'tiny' if quick else 'cpu-small'} with code simplex, {settings.n_samples} draws",
    )


def _experiment(data: ImageDataset, seed: int, *, quick: bool) -> ExperimentConfig:
    recipe = RECIPES["cpu-small"]
    return dataclasses.replace(
        recipe,
        data=DataConfig(dataset=data.name, image_size=8 if quick else recipe.data.image_size),
        code=CodeConfig(name="simplex"),
        network=_TINY if quick else recipe.network,
        train=dataclasses.replace(recipe.train, seed=seed),
    )


def _with_epochs(experiment: ExperimentConfig, epochs: int) -> ExperimentConfig:
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, epochs=epochs, steps=None))


def _peers(data: ImageDataset, minutes: float, seed: int) -> dict[str, Candidate]:
    """Return what a ResNet-18 gives; temperature and softmax are of one network."""
    seconds, test = 60 * minutes, data.test
    plain = resnet.train(data, seconds, seed=seed)
    temperature = resnet.temperature_of(plain.network, data)
    dropped = resnet.train(data, seconds, seed=seed, dropout=resnet.DROPOUT)
    members = [
        resnet.train(data, seconds / resnet.N_MEMBERS, seed=1000 * (seed + 1) + number)
        for number in range(resnet.N_MEMBERS)
    ]

    def softmax(scale: float = 1.0) -> Prediction:
        return resnet.as_prediction([(resnet.logits(plain.network, test, data) / scale).softmax(1)])

    def passes() -> Prediction:
        return resnet.as_prediction(
            [
                resnet.logits(dropped.network, test, data, is_random=True).softmax(1)
                for _ in range(resnet.N_PASSES)
            ]
        )  # fmt: skip

    def ensemble() -> Prediction:
        return resnet.as_prediction([resnet.logits(each.network, test, data).softmax(1) for each in members])

    shared = sum(each.seconds for each in members) / 60
    return {
        "resnet18": Candidate(softmax, plain.seconds / 60, 1, f"{plain.n_steps} steps"),
        "resnet18-temperature": Candidate(
            lambda: softmax(temperature), plain.seconds / 60, 1, f"temperature {temperature:.3f}, fitted on val"
        ),
        "resnet18-mc-dropout": Candidate(
            passes, dropped.seconds / 60, resnet.N_PASSES, f"{dropped.n_steps} steps, dropout {resnet.DROPOUT}"
        ),
        "resnet18-ensemble-3": Candidate(
            ensemble, shared, resnet.N_MEMBERS, f"steps: {', '.join(str(each.n_steps) for each in members)}"
        ),
    }


def _tiny() -> ImageDataset:
    """Return few phantoms of 8 pixels, for quick runs."""
    arrays: dict[str, Any] = make_phantoms(0, {"train": 60, "val": 20, "test": 30})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.npz"
        small = {name: v[:, 3:26:3, 3:26:3] if name.endswith("images") else v for name, v in arrays.items()}
        np.savez(path, **{name: values.numpy() for name, values in small.items()})
        return load_dataset(path)
