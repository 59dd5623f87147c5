"""The table of known data sets. Adding one is adding a row."""

from __future__ import annotations

from dataclasses import dataclass

MEDMNIST_SIZES = (28, 64, 128, 224)
_MEDMNIST = "Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023)"


@dataclass(frozen=True)
class DatasetInfo:
    """What a name stands for.

    Args:
        class_names: One per class.
        channels: 1 (grey) or 3 (RGB).
        flips: Whether training mirrors pictures at random, horizontally and vertically. As published for Blood, Derma,
            Retina and Pneumonia; for the others, where an upside-down picture is as plausible as the picture.
        is_ordinal: Whether the classes are grades in ascending order.
        licence: Licence of the pictures.
        citation: Where they come from.
    """

    class_names: tuple[str, ...]
    channels: int
    flips: bool = False
    is_ordinal: bool = False
    licence: str = "CC BY 4.0"
    citation: str = _MEDMNIST


_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip

MEDMNIST: dict[str, DatasetInfo] = {
    "bloodmnist": DatasetInfo(
        (
            "basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil",
            "platelet",
        ),
        channels=3, flips=True, citation=f"{_MEDMNIST}; Acevedo et al., Data in Brief 30 (2020)",
    ),
    "breastmnist": DatasetInfo(("malignant", "normal or benign"), channels=1),
    "dermamnist": DatasetInfo(
        (
            "actinic keratosis or intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesion",
            "dermatofibroma", "melanoma", "melanocytic nevus", "vascular lesion",
        ),
        channels=3, flips=True, licence="CC BY-NC 4.0",
        citation=f"{_MEDMNIST}; Tschandl et al., Scientific Data 5 (2018)",
    ),
    "octmnist": DatasetInfo(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"), channels=1,
    ),
    "organamnist": DatasetInfo(_ORGANS, channels=1),
    "organcmnist": DatasetInfo(_ORGANS, channels=1),
    "organsmnist": DatasetInfo(_ORGANS, channels=1),
    "pathmnist": DatasetInfo(
        (
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
            "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
        ),
        channels=3, flips=True,
    ),
    "pneumoniamnist": DatasetInfo(
        ("normal", "pneumonia"), channels=1, citation=f"{_MEDMNIST}; Kermany et al., Cell 172 (2018)",
    ),
    "retinamnist": DatasetInfo(
        ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"), channels=3, flips=True, is_ordinal=True,
        citation=f"{_MEDMNIST}; DeepDRiD, Liu et al., Patterns 3 (2022)",
    ),
    "tissuemnist": DatasetInfo(
        (
            "collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cells",
            "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments",
            "thick ascending limb",
        ),
        channels=1, flips=True,
    ),
}  # fmt: skip

_SEVERAL_LABELS = (
    "its pictures have several labels each, and one class per picture is wanted: keep pictures of one label, number "
    "the classes from 0 and name the path of that .npz"
)
_VOLUMES = "it holds volumes, and pictures are wanted: cut slices from them and name the path of that .npz"
NOT_TAKEN: dict[str, str] = {"chestmnist": _SEVERAL_LABELS} | {
    f"{name}mnist3d": _VOLUMES for name in ("adrenal", "fracture", "nodule", "organ", "synapse", "vessel")
}
"""MedMNIST's data sets that are none for this method, with the reason."""


def split_size(name: str) -> tuple[str, int]:
    """Return the table's name and the size that a file name such as `bloodmnist_224` stands for (28 without one)."""
    base, _, suffix = name.rpartition("_")
    if base and suffix.isdecimal():
        return base, int(suffix)
    return name, MEDMNIST_SIZES[0]
