"""Learn decisions from labelled pictures, and keep them beside the checkpoint that they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msf.config import ClassifySettings, settings_for
from msf.data import CALIBRATION, ImageDataset, picture_groups
from msf.files.atomic import write_atomically
from msf.files.json_text import parse_json
from msf.judge.decisions import Calibration, Wishes, fit_calibration
from msf.medsymmflow import MedSymmFlow
from msf.provenance import provenance

CALIBRATION_FILE = "calibration.json"
FORMAT = "msf-calibration/1"
# Of what a result carries, what calibration does not depend on: other noise is another draw of the same, and bits that
# differ between machines do not change a distribution.
_NOT_DECISIVE = ("seed", "micro_batch", "device", "versions")


def calibrate(
    model: MedSymmFlow,
    dataset: ImageDataset,
    split: str = CALIBRATION,
    wishes: Wishes | None = None,
    settings: ClassifySettings | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **fields: Any,
) -> Calibration:
    """Classify labelled pictures, and learn from them how probabilities, sets and referral are to be.

    Args:
        model: The trained flow.
        dataset: Pictures with labels; see `msf.data.hold_out_calibration` for those that a training kept.
        split: Which of them; at least two. Those that chose the kept epoch, `val`, make guarantees optimistic, which
            the result notes.
        wishes: What to learn; None: everything as it is by default.
        settings: How pictures are classified; None: as the checkpoint says. Decisions hold for these only.
        seed: Seed of the noise.
        progress: Called as `progress(n_done, n_total)`, in samples.
        **fields: Single fields of `msf.config.ClassifySettings` in place of those of `settings`.

    Returns:
        What was learnt.

    Raises:
        TypeError: A setting that does not exist.
        ValueError: The data have other classes than the model, or classes of pixels; fewer than two pictures; an
            argument out of range.
    """
    if dataset.n_classes != model.task.n_classes:
        raise ValueError(
            f"dataset must have the model's {model.task.n_classes} classes; {dataset.name!r} has {dataset.n_classes}"
        )
    if model.task.is_per_pixel or dataset.is_per_pixel:
        raise ValueError("calibration needs a class per picture; the model or the data have one per pixel")
    part = dataset.split(split)
    if len(part) < 2:
        raise ValueError(f"split {split!r} of {dataset.name!r} must hold at least two pictures; it has {len(part)}")
    chosen = settings_for("calibrate", model.config.inference.classify, settings, fields)
    prediction = model.classify(part.images, chosen, seed=seed, progress=progress)
    groups = picture_groups(dataset, split)
    notes = []
    if split == "val":
        notes.append(
            "the val split chose the kept epoch, so guarantees are optimistic: train with --calibration-share, or "
            "calibrate on pictures of another set"
        )
    if split == "train":
        notes.append("the network was trained on these pictures: nothing that is learnt from them holds for others")
    return fit_calibration(
        prediction,
        part.labels,
        wishes or Wishes(seed=seed),
        made_with=made_with(model, chosen),
        computed_on={
            "dataset": dataset.name,
            "dataset_sha256": dataset.fingerprint,
            "split": split,
            "n_images": len(part),
            "n_groups": None if groups is None else len(set(groups.tolist())),
            "seed": seed,
        },
        groups=groups,
        notes=notes,
    )


def made_with(model: MedSymmFlow, settings: ClassifySettings) -> dict[str, Any]:
    """Return what decides the distribution of a prediction's numbers: network, label code, settings, version."""
    whole = provenance(model, settings, seed=0, micro_batch=None)
    return {
        **{name: value for name, value in whole.items() if name not in _NOT_DECISIVE},
        "code": model.config.code.to_dict(),
        "image_size": model.config.data.image_size,
        "msf": whole["versions"]["msf"],
    }


def save_calibration(calibration: Calibration, folder: str | os.PathLike[str]) -> Path:
    """Write `calibration.json` into the folder of the checkpoint, in place of one of before; return its path.

    Raises:
        OSError: It cannot be written; the old one stays.
    """
    path = Path(folder) / CALIBRATION_FILE
    text = json.dumps({"format": FORMAT, **calibration.to_dict()}, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"))
    return path


def load_calibration(folder: str | os.PathLike[str]) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is something else, or was changed.
    """
    path = Path(folder) / CALIBRATION_FILE
    where = repr(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no {where}: run 'msf calibrate {os.fspath(folder)}' first")
    content = parse_json(path.read_bytes(), where, "what 'msf calibrate' writes")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where} must be of the format {FORMAT}")
    try:
        return Calibration.from_dict(content)
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {error}") from error
