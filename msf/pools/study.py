"""Whether training with generated pictures is worth it: arms, label budgets, seeds, on disjoint halves."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf.config import ExperimentConfig, GenerateSettings
from msf.data import ImageDataset, Split, load_dataset, seeded_generator
from msf.medsymmflow import MedSymmFlow
from msf.pools.classifier import ClassifierSettings, train_classifier
from msf.pools.ledger import Ledger
from msf.pools.making import make_pool
from msf.pools.plan import plan_pool
from msf.pools.stores import SPLITS, ArchiveStore
from msf.training.train import train

REAL, CLASSICAL, MIXED, SYNTHETIC = "real", "real + classical augmentation", "real + synthetic", "synthetic"
ARMS = (REAL, CLASSICAL, MIXED, SYNTHETIC)
LEDGER = "ledger.jsonl"
_HALVES_STREAM = 3
Progress = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What is varied, and how large everything is.

    Args:
        n_seeds: Repetitions: of the halves, the generator and the classifiers.
        budgets: Real labelled pictures per class that a classifier has; ascending.
        per_class: Generated pictures per class.
        seed: First seed.
        generate: How pictures are made; None: as the trained network says.
        classifier: How the reference classifiers are trained, without augmentation.

    Raises:
        ValueError: A number out of range, or budgets that do not ascend.
    """

    n_seeds: int = 2
    budgets: tuple[int, ...] = (5, 20, 80)
    per_class: int = 200
    seed: int = 0
    generate: GenerateSettings | None = None
    classifier: ClassifierSettings = ClassifierSettings()

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.n_seeds < 1:
            raise ValueError(f"n_seeds must be >= 1; got {self.n_seeds}")
        if self.per_class < len(SPLITS):
            raise ValueError(f"per_class must be >= {len(SPLITS)}; got {self.per_class}")
        if not self.budgets or self.budgets[0] < 1 or sorted(set(self.budgets)) != list(self.budgets):
            raise ValueError(f"budgets must be whole numbers >= 1 in ascending order; got {self.budgets}")

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.n_seeds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = dataclasses.asdict(self)
        values["generate"] = None if self.generate is None else self.generate.to_dict()
        return {**values, "budgets": list(self.budgets)}


def run_study(
    dataset: ImageDataset,
    experiment: ExperimentConfig,
    settings: StudySettings,
    folder: Path,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run what is left of a study.

    For every seed the training split is halved, class by class. A flow is trained on one half and makes a pool; the
    classifiers have `budget` pictures per class of the other half, the pool, or both. They take equally many steps in
    every arm, no step is chosen, and all are asked about the test split. The flow chooses its epoch on `val`.

    Args:
        dataset: Pictures and labels.
        experiment: How the flow is trained.
        settings: What is varied.
        folder: Holds flows, pools and the ledger; a study that was interrupted goes on there.
        device: Where the flow is trained.
        progress: Called as `progress(n_done, n_total, stage=name)`.

    Returns:
        A row per trained classifier: `seed`, `arm`, `budget` (None for `synthetic`, which has no real pictures),
        `n_real`, `n_synthetic`, `accuracy` and `correct`, a string with 1 for every test picture that is right.

    Raises:
        ValueError: The folder holds another study; or a class has fewer than two training pictures; or pixels have
            the classes.
    """
    dataset.require_classes_of_pictures()
    folder.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda *_, **__: None)
    cells: list[tuple[int | None, str]] = [(None, SYNTHETIC)]
    cells += [(budget, arm) for budget in settings.budgets for arm in ARMS if arm != SYNTHETIC]
    keys = {(seed, cell): f"seed {seed}, {cell[1]}, {cell[0]}" for seed in settings.seeds for cell in cells}
    with closing(Ledger(folder / LEDGER, _made_with(dataset, experiment, settings))) as ledger:

        def show() -> None:
            n_done = sum(key in ledger.pieces for key in keys.values())
            report(n_done, len(keys), stage="training reference classifiers", is_milestone=n_done == len(keys))

        for seed in settings.seeds:
            left = [cell for cell in cells if keys[seed, cell] not in ledger.pieces]
            if left:
                for_flow, for_classifier = halves(dataset.train.labels, seed)
                pool = _pool(dataset, for_flow, experiment, settings, folder / f"seed-{seed}", seed, device, report)
            for budget, arm in left:
                show()
                real = (
                    None if budget is None else part_of(dataset.train, first_of_each(dataset, for_classifier, budget))
                )
                made = pool if arm in (MIXED, SYNTHETIC) else None
                sources = [split for split in (real, made) if split is not None]
                flips = arm == CLASSICAL and dataset.flips
                chosen = dataclasses.replace(settings.classifier, augment=arm == CLASSICAL, flips=flips)
                classifier = train_classifier(
                    sources, dataset.n_classes, chosen, seed=seed, size=dataset.image_size, progress=lambda *_: show()
                )
                correct = classifier.probability(dataset.test.images).argmax(1) == dataset.test.labels
                piece = {
                    "seed": seed,
                    "arm": arm,
                    "budget": budget,
                    "n_real": 0 if real is None else len(real),
                    "n_synthetic": 0 if made is None else len(made),
                    "accuracy": float(correct.double().mean()),
                    "correct": "".join(map(str, correct.int().tolist())),
                }
                ledger.add(keys[seed, (budget, arm)], piece)
        show()
        return [ledger.pieces[key] for key in keys.values()]


def halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return two disjoint halves of the pictures, class by class, in a random order that the seed decides.

    Args:
        labels: int64 [N].
        seed: Of the order.

    Returns:
        Numbers of pictures: int64 [about N / 2] each; of an odd class the first half has one more.

    Raises:
        ValueError: A class with fewer than two pictures.
    """
    order = torch.randperm(len(labels), generator=seeded_generator(seed, _HALVES_STREAM))
    first, second = [], []
    for label in range(int(labels.max()) + 1):
        own = order[labels[order] == label]
        if len(own) < 2:
            raise ValueError(f"every class needs two training pictures or more; class {label} has {len(own)}")
        middle = (len(own) + 1) // 2
        first.append(own[:middle])
        second.append(own[middle:])
    return torch.cat(first), torch.cat(second)


def first_of_each(dataset: ImageDataset, rows: Tensor, n: int) -> Tensor:
    """Return the first n of the given training pictures of every class; all of a class that has fewer."""
    labels = dataset.train.labels[rows]
    return torch.cat([rows[labels == label][:n] for label in range(dataset.n_classes)])


def part_of(split: Split, rows: Tensor) -> Split:
    """Return some pictures of a split."""
    return Split(split.images[rows], split.labels[rows])


def _pool(
    dataset: ImageDataset, rows: Tensor, experiment: ExperimentConfig, settings: StudySettings, folder: Path,
    seed: int, device: str | torch.device | None, report: Progress,
) -> Split:  # fmt: skip
    """Train a flow on some of the training pictures and let it make a pool, as far as that is not done."""
    digest = hashlib.sha256(f"{dataset.fingerprint} {rows.tolist()}".encode()).hexdigest()
    half = dataclasses.replace(dataset, train=part_of(dataset.train, rows), fingerprint=digest, path=None)
    place = folder / "pool.npz"
    if not place.exists():
        mine = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))
        train(
            mine, half, folder / "flow", device=device, resume=True,
            progress=lambda p: report(p.step, p.n_steps, stage=f"training the flow of seed {seed}"),
        )  # fmt: skip
        flow = MedSymmFlow.from_pretrained(folder / "flow").to(device)
        chosen = settings.generate or flow.config.inference.generate
        chosen = dataclasses.replace(chosen, size=dataset.image_size)
        plan = plan_pool(flow, range(dataset.n_classes), settings.per_class, chosen, seed=seed)
        make_pool(
            flow, plan, ArchiveStore(place, plan),
            progress=lambda done, total: report(done, total, stage=f"making the pool of seed {seed}"),
        )  # fmt: skip
    made = load_dataset(place)
    splits = [made.split(name) for name in SPLITS]
    return Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))


def _made_with(dataset: ImageDataset, experiment: ExperimentConfig, settings: StudySettings) -> dict[str, Any]:
    """Return what every piece depends on. Seeds and budgets are not among it: more of them go on with a study."""
    first = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=0))
    sizes = {name: value for name, value in settings.to_dict().items() if name not in ("seed", "n_seeds", "budgets")}
    return {"data": dataset.fingerprint, "experiment": first.to_dict(), **sizes}
