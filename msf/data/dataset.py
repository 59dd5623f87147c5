"""A data set with its splits, loaded by path or by name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from msf.config import TaskConfig
from msf.data.archive import SPLITS, read_archive
from msf.data.download import download_medmnist
from msf.data.phantoms import PHANTOM_CLASSES, PHANTOM_TISSUES, make_phantom_masks, make_phantoms
from msf.data.table import MEDMNIST, MEDMNIST_SIZES, NOT_TAKEN, DatasetInfo, split_size
from msf.plain_values import shown_names
from msf_kernels.shapes import Labels

DATA_ENV = "MSF_DATA"
PHANTOMS = "phantoms"
CALIBRATION = "calibration"
PHANTOM_MASKS = "phantom-masks"
_N_LISTED = 8
_WHY_BELOW = ", since every class needs a training picture"
_OF_PHANTOMS: dict[str, Any] = {
    "channels": 3, "flips": True, "licence": "Apache-2.0", "citation": "procedural, made by this project"
}  # fmt: skip
_PHANTOM_INFO = {
    PHANTOMS: DatasetInfo(PHANTOM_CLASSES, **_OF_PHANTOMS),
    PHANTOM_MASKS: DatasetInfo(PHANTOM_TISSUES, **_OF_PHANTOMS),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures and their classes, kept as one tensor each.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N], a class per picture; or uint8 [N, H, W], a class per pixel.
    """

    images: Tensor
    labels: Labels

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)


class HeldOut(NamedTuple):
    """What was taken out of the training split.

    Args:
        origin: The data set before.
        calibration: Pictures that neither train nor choose.
        rows: Of the training split before, by name of the split that has them now; int64, ascending.
    """

    origin: ImageDataset
    calibration: Split
    rows: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Three splits and what is known of them.

    Args:
        name: Name in the table, or the file's.
        train: To fit on.
        val: To choose on.
        test: To report once.
        class_names: One per class.
        flips: Whether training mirrors pictures at random unless told otherwise.
        is_ordinal: Whether the classes are grades in ascending order.
        licence: Licence of the pictures; empty if unknown.
        citation: Where they come from; empty if unknown.
        fingerprint: SHA-256 in hexadecimal: of the file's bytes, or of all pictures and labels where there is no file.
        path: The file; None where there is none.
        held_out: What was kept from training for calibration, if anything.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    flips: bool
    is_ordinal: bool
    licence: str
    citation: str
    fingerprint: str
    path: Path | None = None
    held_out: HeldOut | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def is_per_pixel(self) -> bool:
        """Whether pixels have classes, and not whole pictures."""
        return self.train.labels.ndim == 3

    @property
    def n_channels(self) -> int:
        """Number of image channels, 1 or 3."""
        return self.train.images.shape[3]

    @property
    def image_size(self) -> int:
        """Height and width of the stored pictures."""
        return self.train.images.shape[1]

    @property
    def task(self) -> TaskConfig:
        """What the data decide of a network that is trained on them."""
        return TaskConfig(
            n_classes=self.n_classes,
            image_channels=self.n_channels,
            class_names=self.class_names,
            is_ordinal=self.is_ordinal,
            original_size=self.image_size,
            is_per_pixel=self.is_per_pixel,
        )

    def require_classes_of_pictures(self) -> None:
        """Refuse data whose pixels have classes.

        Raises:
            ValueError: They have.
        """
        if self.is_per_pixel:
            raise ValueError(f"data set {self.name!r} must have a class per picture; it has one per pixel")

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ValueError: Not one of train, val and test, nor `calibration` where pictures were held out.
        """
        if name == CALIBRATION and self.held_out is not None:
            return self.held_out.calibration
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {name!r}")
        split: Split = getattr(self, name)
        return split


def load_dataset(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    *,
    size: int | None = None,
    required: Sequence[str] = SPLITS,
    class_names: Sequence[str] | None = None,
) -> ImageDataset:
    """Load a data set in MedMNIST layout.

    A path (anything that ends in .npz or holds a separator) is read. `phantoms` and `phantom-masks` (the same cells,
    with a class per pixel) are made on the spot. Another name is looked for as `<name>.npz` in `data_root`, in the
    folder that the environment variable MSF_DATA names, and in ~/.medmnist; a MedMNIST name that is found nowhere is
    downloaded into the first of these that is given, with its md5 checked.

    Args:
        name_or_path: `phantoms`, `phantom-masks`, a name such as `bloodmnist` or `bloodmnist_224`, the name of any
            archive in those folders, or a path.
        data_root: Folder to look in first.
        size: Picture size of a MedMNIST name without suffix: 28, 64, 128 or 224.
        required: Splits that must hold pictures; the others may be absent from an archive, and are then empty.
        class_names: What the classes are called instead, in the order of their numbers.

    Returns:
        The data set. What the table knows of a name (classes, flips, grades, licence) goes with a file of that name;
        any other file has the classes that it names (`class_names`), or as many as its labels say, with numbers for
        names.

    Raises:
        TypeError: Arrays of another type than pictures and labels have.
        ValueError: Unknown name (the text lists the known ones), or one of MedMNIST's with several labels per picture
            or with volumes; an archive that is missing, unreadable or not in that
            layout, labels outside the classes, or a download that failed.
    """
    text = os.fspath(name_or_path)
    is_path = text.lower().endswith(".npz") or os.sep in text
    reason = None if is_path else NOT_TAKEN.get(split_size(text)[0].lower())
    if reason is not None:
        raise ValueError(f"data set {text!r} cannot be taken: {reason}")
    if size is not None:
        if is_path or text in _PHANTOM_INFO or split_size(text)[0] != text:
            raise ValueError(f"size goes with a plain name such as 'bloodmnist'; got size={size} with {text!r}")
        text = text if size == MEDMNIST_SIZES[0] else f"{text}_{size}"
    if text in _PHANTOM_INFO:
        return _renamed(_make_phantom_dataset(text), class_names)
    path = Path(text).expanduser() if is_path else _find(text, data_root)
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: 'msf pack' makes a data set of its pictures")
    tensors, own_names = read_archive(path, required)
    info = None if own_names else MEDMNIST.get(split_size(path.stem)[0])
    known = own_names or (None if info is None else info.class_names)
    n_classes = _check_labels(tensors, path, known, required)
    if info is None:
        names = own_names or tuple(str(k) for k in range(n_classes))
        info = DatasetInfo(names, tensors["train_images"].shape[3], licence="", citation="")
    elif tensors["train_images"].shape[3] != info.channels:
        raise ValueError(
            f"{str(path)!r} must have {info.channels} image channel(s) as {split_size(path.stem)[0]} has; "
            f"got {tensors['train_images'].shape[3]}"
        )
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return _renamed(_assemble(path.stem, tensors, info, fingerprint, path), class_names)


def known_datasets() -> tuple[str, ...]:
    """Return the names that `load_dataset` takes without a file at hand."""
    return (*_PHANTOM_INFO, *MEDMNIST)


def _make_phantom_dataset(name: str) -> ImageDataset:
    tensors = make_phantoms() if name == PHANTOMS else make_phantom_masks()
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].numpy().tobytes())
    for split in SPLITS if name == PHANTOMS else ():
        tensors[f"{split}_labels"] = tensors[f"{split}_labels"][:, 0].long()
    return _assemble(name, tensors, _PHANTOM_INFO[name], digest.hexdigest())


def _assemble(
    name: str, tensors: dict[str, Tensor], info: DatasetInfo, fingerprint: str, path: Path | None = None
) -> ImageDataset:
    splits = {split: Split(tensors[f"{split}_images"], tensors[f"{split}_labels"]) for split in SPLITS}
    return ImageDataset(
        name=name,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        class_names=info.class_names,
        flips=info.flips,
        is_ordinal=info.is_ordinal,
        licence=info.licence,
        citation=info.citation,
        fingerprint=fingerprint,
        path=path,
    )


def _renamed(dataset: ImageDataset, class_names: Sequence[str] | None) -> ImageDataset:
    if class_names is None:
        return dataset
    names = tuple(class_names)
    if len(names) != dataset.n_classes or len(set(names)) < len(names):
        raise ValueError(
            f"class-names must be {dataset.n_classes} different names, one per class of {dataset.name!r}; got "
            f"{shown_names(names, _N_LISTED)}"
        )
    return dataclasses.replace(dataset, class_names=names)


def _find(name: str, data_root: str | os.PathLike[str] | None) -> Path:
    named = [data_root, os.environ.get(DATA_ENV)]
    folders = [Path(folder).expanduser() for folder in named if folder] + [Path.home() / ".medmnist"]
    for folder in folders:
        path = folder / f"{name}.npz"
        if path.is_file():
            return path
    base, size = split_size(name)
    if base not in MEDMNIST:
        found = sorted({path.stem for folder in folders for path in folder.glob("*.npz")})
        at_hand = f"; archives at hand: {', '.join(found)}" if found else ""
        raise ValueError(
            f"data set must be one of {', '.join(known_datasets())}, or the path of an .npz; got {name!r}{at_hand}"
        )
    if size not in MEDMNIST_SIZES:
        raise ValueError(f"size of {base} must be one of {', '.join(map(str, MEDMNIST_SIZES))}; got {size}")
    return download_medmnist(base, size, folders[0])


def _check_labels(
    tensors: dict[str, Tensor], path: Path, known: tuple[str, ...] | None, required: Sequence[str]
) -> int:
    """Return the number of classes: of those that are known, or what the labels say."""
    labels = {split: values.flatten() for split in SPLITS if len(values := tensors[f"{split}_labels"])}
    # A class needs a training picture, so that more classes than pictures are none: a bound before they are counted.
    found = 1 + max(int(values.max()) for values in labels.values())
    n_classes = min(found, max(map(len, labels.values()))) if known is None else len(known)
    for split, values in labels.items():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= n_classes:
            why = _WHY_BELOW if known is None and high >= n_classes else ""
            raise ValueError(
                f"{split}_labels of {str(path)!r} must be in [0, {n_classes}){why}; got values from {low} to {high}"
            )
    if known is None and "train" in required:
        absent = (labels["train"].bincount(minlength=n_classes) == 0).nonzero().flatten().tolist()
        if absent or n_classes < 2:
            listed = ", ".join(map(str, absent[:_N_LISTED])) + (", ..." if len(absent) > _N_LISTED else "")
            raise ValueError(
                f"train_labels of {str(path)!r} must count two or more classes from 0 without gaps; "
                f"got {n_classes} class(es), without training pictures: {f'[{listed}]' if absent else 'none'}"
            )
    return n_classes
