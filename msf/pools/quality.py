"""The report on a pool: fidelity, diversity, memorisation and class agreement, per class and per picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf.data import ImageDataset, Split, prepare_images
from msf.files.tensors import digest_of
from msf.judge.uncertainty import Prediction
from msf.medsymmflow import MedSymmFlow
from msf.pools.classifier import ClassifierSettings, train_classifier
from msf.pools.features import CLASSIFIER, FeatureNetwork, feature_network
from msf.pools.fidelity import frechet_and_kernel, manifold_figures
from msf.pools.nearest import LEVEL, Nearest, Neighbours, as_points, is_memorised, mirrored
from msf.pools.pool import Pool

Progress = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """How a pool is judged.

    Args:
        features: See `feature_network`.
        level: Of the test for memorisation, in (0, 1).
        classifier: How the reference classifier is trained.
        seed: Of the classifier, the flow's noise and the subsets of KID.
        classify: Fields of the flow's classification, as `MedSymmFlow.classify` takes them.
    """

    features: str = CLASSIFIER
    level: float = LEVEL
    classifier: ClassifierSettings = ClassifierSettings(augment=True)
    seed: int = 0
    classify: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the level."""
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1); got {self.level}")


@dataclass(frozen=True, eq=False)
class PoolReport:
    """What was found.

    Args:
        figures: JSON-ready; see the guide.
        rows: One per picture, for a table.
        in_features: Nearest training pictures in features.
        in_pixels: Nearest training pictures in pixels.
        training: Training pictures as compared, uint8 [N, H, W, C].
    """

    figures: dict[str, Any]
    rows: list[dict[str, Any]]
    in_features: Nearest
    in_pixels: Nearest
    training: Tensor


def judge_pool(
    pool: Pool, dataset: ImageDataset, flow: MedSymmFlow, settings: QualitySettings, progress: Progress | None = None
) -> PoolReport:
    """Judge a pool against the training pictures of a data set; the test pictures are judged likewise, for comparison.

    Args:
        pool: The generated pictures.
        dataset: The real ones.
        flow: Classifies them, with uncertainty.
        settings: How.
        progress: Called as `progress(n_done, n_total, stage=name)`.

    Raises:
        ValueError: Other classes or channels than the data set or the flow has, or fewer than two pictures.
    """
    _require_comparable(pool, dataset, flow)
    chosen = feature_network(settings.features, flow)
    report = progress or (lambda *_, **__: None)
    size, channels = pool.images.shape[1], dataset.n_channels
    train, test = (_resized(split, size, channels) for split in (dataset.train, dataset.test))
    flips = dataset.flips
    classifier = train_classifier(
        [train], dataset.n_classes, dataclasses.replace(settings.classifier, flips=flips), seed=settings.seed,
        progress=lambda done, total: report(done, total, stage="training the reference classifier"),
    )  # fmt: skip
    network = chosen or FeatureNetwork(f"reference classifier trained on {dataset.name}, train", classifier.features)
    report(0, 4, stage="comparing with the training pictures")
    orientations = mirrored(train.images, flips)
    features = [network.of(images) for images in orientations]
    generated, held_out = network.of(pool.images), network.of(test.images)
    report(1, 4, stage="comparing with the training pictures")
    near_features = Neighbours(torch.stack(features))
    report(2, 4, stage="comparing with the training pictures")
    near_pixels = Neighbours(torch.stack([as_points(images) for images in orientations]))
    report(3, 4, stage="comparing with the training pictures")
    found = [
        (near_features.of(points), near_pixels.of(as_points(images)))
        for points, images in ((generated, pool.images), (held_out, test.images))
    ]
    (in_features, in_pixels), of_test = found
    is_copy, is_called = is_memorised(in_features, in_pixels, settings.level)
    prediction = flow.classify(
        pool.images, seed=settings.seed, **settings.classify,
        progress=lambda done, total: report(done, total, stage="classifying the pool"),
    )  # fmt: skip
    probability = classifier.probability(pool.images)
    rows = _rows(pool, in_features, in_pixels, {"is_copy": is_copy, "is_memorised": is_called}, prediction, probability)
    real = features[0]
    names = _class_names(pool, flow, dataset)
    per_class = [
        {
            "label": label,
            "label_name": names[label],
            "n": int((pool.labels == label).sum()),
            **_fidelity(real[train.labels == label], generated[pool.labels == label], settings.seed),
            "memorised": _share(is_called[pool.labels == label]),
            **_agreement(prediction, probability, pool.labels, pool.labels == label),
        }
        for label in range(dataset.n_classes)
        if (pool.labels == label).any()
    ]
    figures = {
        "pool": str(pool.place),
        "pool_sha256": pool.digest,
        "checkpoint_sha256": digest_of(flow.network.state_dict()),
        "n": len(pool),
        "real": dataset.name,
        "real_fingerprint": dataset.fingerprint,
        "seed": settings.seed,
        "features": network.name,
        "n_features": real.shape[1],
        "fidelity": _fidelity(real, generated, settings.seed),
        "fidelity_of_test": _fidelity(real, held_out, settings.seed),
        "memorisation": {
            "level": settings.level,
            "smallest_p": 1 / (1 + len(train)),
            "mirrored": flips,
            "copies": int(is_copy.sum()),
            "memorised": int(is_called.sum()),
            "share": _share(is_called),
            "share_of_test": _share(is_memorised(*of_test, settings.level)[1]),
        },
        "agreement": {
            **_agreement(prediction, probability, pool.labels),
            "flow_on_test": _share(flow_labels(flow, test, settings) == test.labels),
            "classifier_on_test": _share(classifier.probability(test.images).argmax(1) == test.labels),
        },
        "per_class": per_class,
        "warnings": _warnings(settings, len(train)),
    }
    return PoolReport(figures, rows, in_features, in_pixels, train.images)


def flow_labels(flow: MedSymmFlow, split: Split, settings: QualitySettings) -> Tensor:
    """Return the classes that the flow gives to the pictures of a split."""
    return flow.classify(split.images, seed=settings.seed, **settings.classify).label


def _fidelity(real: Tensor, generated: Tensor, seed: int) -> dict[str, Any] | dict[str, None]:
    names = (
        "fid",
        "kid",
        "kid_std",
        "kid_subsets",
        "kid_subset_size",
        "precision",
        "recall",
        "density",
        "coverage",
        "k",
    )
    if min(len(real), len(generated)) < 2:
        return dict.fromkeys(names)
    return {**frechet_and_kernel(real, generated, seed=seed), **manifold_figures(real, generated)}


def _agreement(
    prediction: Prediction, probability: Tensor, labels: Tensor, chosen: Tensor | None = None
) -> dict[str, float]:
    rows = torch.ones(len(labels), dtype=torch.bool) if chosen is None else chosen
    by_flow, by_classifier = prediction.label == labels, probability.argmax(1) == labels
    return {
        "flow": _share(by_flow[rows]),
        "classifier": _share(by_classifier[rows]),
        "both": _share((by_flow & by_classifier)[rows]),
    }


def _rows(
    pool: Pool, in_features: Nearest, in_pixels: Nearest, flags: Mapping[str, Tensor], prediction: Prediction,
    probability: Tensor,
) -> list[dict[str, Any]]:  # fmt: skip
    columns: dict[str, Sequence[Any]] = {
        "file": [row["file"] for row in pool.rows],
        "label": pool.labels.tolist(),
        "label_name": [row["label_name"] for row in pool.rows],
    }
    for space, near in (("feature", in_features), ("pixel", in_pixels)):
        columns[f"{space}_nearest"] = near.index.tolist()
        columns[f"{space}_distance"] = near.distance.tolist()
        columns[f"{space}_p"] = near.p.tolist()
    for name, values in flags.items():
        columns[name] = values.tolist()
    columns["flow_label"] = prediction.label.tolist()
    columns["flow_agrees"] = (prediction.label == pool.labels).tolist()
    for name, values in prediction.scores().items():
        columns[f"score_{name}"] = values.tolist()
    columns["classifier_label"] = probability.argmax(1).tolist()
    columns["classifier_agrees"] = (probability.argmax(1) == pool.labels).tolist()
    columns["classifier_probability"] = probability.gather(1, pool.labels[:, None])[:, 0].tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _resized(split: Split, size: int, channels: int) -> Split:
    """Return pictures at another size, as levels."""
    prepared = prepare_images(split.images, size, channels)
    levels = ((prepared / 2 + 0.5) * 255).round().clamp(0, 255).byte()
    return Split(levels.permute(0, 2, 3, 1).contiguous(), split.labels)


def _class_names(pool: Pool, flow: MedSymmFlow, dataset: ImageDataset) -> Sequence[str]:
    own = dict(zip(pool.labels.tolist(), (row["label_name"] for row in pool.rows), strict=True))
    known = flow.task.class_names or dataset.class_names
    return [own.get(label, name) for label, name in enumerate(known)]


def _require_comparable(pool: Pool, dataset: ImageDataset, flow: MedSymmFlow) -> None:
    dataset.require_classes_of_pictures()
    if int(pool.labels.max()) >= dataset.n_classes or flow.task.n_classes != dataset.n_classes:
        raise ValueError(
            f"pool, data and network must have the same classes; {str(pool.place)!r} has labels up to "
            f"{int(pool.labels.max())}, {dataset.name!r} {dataset.n_classes} classes, the network {flow.task.n_classes}"
        )
    if pool.images.shape[3] != dataset.n_channels:
        raise ValueError(
            f"pool and data must both be grey or both in colour; got {pool.images.shape[3]} and {dataset.n_channels} "
            "channels"
        )
    if len(pool) < 2:
        raise ValueError("a pool must hold two pictures or more to be judged; got one")


def _warnings(settings: QualitySettings, n_train: int) -> list[str]:
    smallest = 1 / (1 + n_train)
    if smallest <= settings.level:
        return []
    return [
        f"with {n_train} training pictures no p is below {smallest:.4f}: at level {settings.level} only copies are "
        "called memorised"
    ]


def _share(values: Tensor) -> float:
    return float(values.double().mean())
