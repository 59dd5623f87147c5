"""Whether data and configuration go together: what cannot be trained is refused, what is unwise is said."""

from __future__ import annotations

import logging

from msf.codes.label_codes import LabelCode
from msf.config import TrainConfig
from msf.data import ImageDataset
from msf.plain_values import shown_names

_N_LISTED = 4

_log = logging.getLogger(__name__)


def require_suitable(dataset: ImageDataset, settings: TrainConfig) -> None:
    """Check that a training on these data can begin and can choose its epoch.

    Raises:
        ValueError: An empty split, a class without training pictures, a figure to select by that the validation split
            does not have, or classes of pixels that shall be shown equally often.
    """
    for name in ("train", "val"):
        if not len(dataset.split(name)):
            raise ValueError(f"data set {dataset.name!r} must have pictures in its split {name}; it has none")
    counts = dataset.train.labels.flatten().bincount(minlength=dataset.n_classes)
    absent = [f"{label} ({dataset.class_names[label]})" for label in (counts == 0).nonzero()[:, 0].tolist()]
    if absent:
        raise ValueError(
            f"every class of {dataset.name!r} must have a training picture; there is none of "
            f"{shown_names(absent, _N_LISTED)}: name the classes that there are, or add pictures"
        )
    has_one_class = bool((dataset.val.labels == dataset.val.labels.flatten()[0]).all())
    if settings.selection == "auc_macro_ovr" and has_one_class:
        raise ValueError(
            "selection must be accuracy, balanced_accuracy, nll or brier where the val split holds a single class; "
            "got 'auc_macro_ovr'"
        )
    if settings.class_balanced and dataset.is_per_pixel:
        raise ValueError("class_balanced must be false where pixels have classes, of which a picture holds several")
    if settings.batch_size > len(dataset.train):
        _log.warning(
            "batch_size is %d, but there are %d pictures to train on: every step sees them all",
            settings.batch_size,
            len(dataset.train),
        )


def warn_of_dependent_code(code: LabelCode) -> None:
    """Say so where a mean of codes does not determine the classes' probabilities."""
    if not code.is_affinely_independent:
        _log.warning(
            "code %r puts %d classes on points that span %d dimensions, and %d are needed for probabilities to be read "
            "from a mean of codes: they will be votes that are 0 or 1, and a mean of two classes can look like a "
            "third. It is there to compare with the published method; --code auto has no such trouble",
            code.name,
            code.n_classes,
            code.affine_rank,
            code.n_classes - 1,
        )
