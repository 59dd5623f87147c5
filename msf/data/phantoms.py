"""Procedural cell-like phantoms: a small data set in MedMNIST layout that needs no network and no licence.

Every picture shows one cell. All that depends on the class is one number, the morph parameter: at 0 a pale disc, at 1 a
round nucleus, at 2 a kidney-shaped one, at 3 two lobes, at 4 three lobes, with every form in between. The parameter's
distributions per class overlap, so that no classifier reaches 100 %, and the posterior given the parameter, an upper
bound for what can be read from the picture, is known exactly. Place, size, direction, tint and noise are drawn
independently of the class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msf.data.batches import seeded_generator

PHANTOM_CLASSES = ("pale disc", "round nucleus", "kidney nucleus", "two lobes", "three lobes")
PHANTOM_TISSUES = ("background", "cytoplasm", "nucleus")
PHANTOM_SIZE = 28
PHANTOM_SPLITS = {"train": 3000, "val": 400, "test": 400}

# The morph parameter of class k: mostly close to k, sometimes anywhere up to its neighbours.
_MORPH_MIXTURE = ((0.7, 0.10), (0.3, 0.55))  # (weight, standard deviation)

# Appearance at morph 0, 1, 2, 3, 4; linear in between. Lengths are shares of the cell's radius.
_APPEARANCE = {
    "cell_radius": (9.0, 8.8, 11.2, 10.6, 10.4),  # pixels
    "cytoplasm_red": (222.0, 150.0, 168.0, 240.0, 226.0),
    "cytoplasm_green": (120.0, 178.0, 170.0, 150.0, 196.0),
    "cytoplasm_blue": (118.0, 224.0, 196.0, 96.0, 218.0),
    "pallor": (0.75, 0.0, 0.0, 0.0, 0.0),  # of the middle of the cell
    "nucleus_opacity": (0.0, 1.0, 1.0, 1.0, 1.0),
    "lobe_distance": (0.0, 0.0, 0.42, 0.46, 0.48),  # from the centre
    "lobe_angle": (80.0, 80.0, 88.0, 90.0, 120.0),  # of the side lobes, degrees
    "side_radius": (0.40, 0.72, 0.29, 0.36, 0.28),
    "middle_radius": (0.40, 0.72, 0.27, -0.20, 0.28),
    "joint": (0.05, 0.05, 0.45, 0.05, 0.05),  # width over which lobes melt together
}
_NUCLEUS = (84.0, 44.0, 128.0)
_BACKGROUND = (244.0, 226.0, 222.0)


def make_phantoms(seed: int = 0, splits: dict[str, int] | None = None) -> dict[str, Tensor]:
    """Return phantoms in MedMNIST layout.

    Args:
        seed: Seed of everything, >= 0.
        splits: Pictures per split; 3000 train, 400 val and 400 test unless given.

    Returns:
        `<split>_images` uint8 [n, 28, 28, 3] and `<split>_labels` uint8 [n, 1] for every split; class shares
        are equal up to one picture, the order is random.
    """
    arrays = {}
    for number, (split, n) in enumerate((splits or PHANTOM_SPLITS).items()):
        generator = seeded_generator(seed, number)
        labels = torch.arange(n)[torch.randperm(n, generator=generator)] % len(PHANTOM_CLASSES)
        arrays[f"{split}_images"] = draw_phantoms(sample_morph(labels, generator), generator)
        arrays[f"{split}_labels"] = labels.to(torch.uint8)[:, None]
    return arrays


def make_phantom_masks(seed: int = 0, splits: dict[str, int] | None = None) -> dict[str, Tensor]:
    """Return the pictures of `make_phantoms` with what their pixels show, which is known.

    Args:
        seed: As for `make_phantoms`.
        splits: Likewise.

    Returns:
        `<split>_images` uint8 [n, 28, 28, 3] and `<split>_labels` uint8 [n, 28, 28]: the number in `PHANTOM_TISSUES` of
        what covers most of the pixel; a nucleus less than half opaque counts as the cytoplasm that shows through.
    """
    arrays = {}
    for number, (split, n) in enumerate((splits or PHANTOM_SPLITS).items()):
        generator = seeded_generator(seed, number)
        labels = torch.arange(n)[torch.randperm(n, generator=generator)] % len(PHANTOM_CLASSES)
        pictures, cell, nucleus = _draw(sample_morph(labels, generator), generator)
        arrays[f"{split}_images"] = pictures
        arrays[f"{split}_labels"] = torch.where(nucleus > 0.5, 2, (cell > 0.5).long()).to(torch.uint8)
    return arrays


def sample_morph(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the morph parameter of each label: float32 [N] from int64 [N]."""
    weights, widths = torch.tensor(_MORPH_MIXTURE).T
    part = torch.multinomial(weights, len(labels), replacement=True, generator=generator) if len(labels) else labels
    morph: Tensor = labels + widths[part] * torch.randn(len(labels), generator=generator)
    return morph


def morph_posterior(morph: Tensor) -> Tensor:
    """Return p(class | morph parameter) for equally frequent classes: float64 [N, n_classes] from float [N]."""
    likelihood = _morph_density(morph)
    return likelihood / likelihood.sum(dim=1, keepdim=True)


def phantom_bayes_accuracy() -> float:
    """Return the accuracy of the best classifier that sees the morph parameter itself.

    `(1 / n_classes) integral max_k p(m | k) dm`, by the trapezoidal rule on a fine grid. A classifier that sees only
    the picture, with its noise, can at most reach this.
    """
    grid = torch.linspace(-4, len(PHANTOM_CLASSES) + 3, 100_001, dtype=torch.float64)
    return float(torch.trapezoid(_morph_density(grid).amax(dim=1), grid)) / len(PHANTOM_CLASSES)


def _morph_density(morph: Tensor) -> Tensor:
    """Return p(morph | class): float64 [N, n_classes]."""
    offset = morph.double()[:, None] - torch.arange(len(PHANTOM_CLASSES))
    parts = [w * torch.exp(-0.5 * (offset / s) ** 2) / (s * math.sqrt(2 * math.pi)) for w, s in _MORPH_MIXTURE]
    return torch.stack(parts).sum(dim=0)


def draw_phantoms(morph: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one picture per morph parameter.

    Args:
        morph: float [N]; values outside [0, 4] look like the nearest end.
        generator: Source of place, size, direction, tint and noise.

    Returns:
        uint8 [N, 28, 28, 3].
    """
    return _draw(morph, generator)[0]


def _draw(morph: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, and the share of each pixel that cell and nucleus cover; see `draw_phantoms`."""
    n = len(morph)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator)

    look = {name: _interpolate(morph, values) for name, values in _APPEARANCE.items()}
    radius = look["cell_radius"] * (1 + 0.06 * normal().clamp(-2, 2))
    direction = 2 * math.pi * torch.rand(n, generator=generator)
    axis = torch.arange(PHANTOM_SIZE) - (PHANTOM_SIZE - 1) / 2
    centre = 0.9 * normal(2).clamp(-2, 2)
    x = axis[None, None, :] - centre[:, 0, None, None]  # [N, 1, W]
    y = axis[None, :, None] - centre[:, 1, None, None]  # [N, H, 1]
    scale = radius[:, None, None]
    stretch = 1 + 0.05 * normal()[:, None, None].clamp(-2, 2)
    r = torch.sqrt((x * stretch) ** 2 + (y / stretch) ** 2)  # [N, H, W]
    cell = _coverage(r - scale)

    lobes = []
    for side, name in ((-1, "side_radius"), (0, "middle_radius"), (1, "side_radius")):
        angle = direction + side * torch.deg2rad(look["lobe_angle"]) + 0.12 * normal()
        distance = look["lobe_distance"] * radius
        dx = x - (distance * angle.cos())[:, None, None]
        dy = y - (distance * angle.sin())[:, None, None]
        lobe_radius = (look[name] * (1 + 0.06 * normal().clamp(-2, 2)) * radius)[:, None, None]
        lobes.append(torch.sqrt(dx**2 + dy**2) - lobe_radius)
    joint = (look["joint"] * radius)[:, None, None]
    nucleus = _coverage(_smooth_min(_smooth_min(lobes[0], lobes[1], joint), lobes[2], joint))
    nucleus = nucleus * cell * look["nucleus_opacity"][:, None, None]

    tint = 5 * normal(3)
    background = torch.tensor(_BACKGROUND) + tint
    cytoplasm = torch.stack([look[f"cytoplasm_{name}"] for name in ("red", "green", "blue")], dim=1)
    cytoplasm = cytoplasm + tint + 6 * normal(3)
    pallor = look["pallor"][:, None, None] * torch.exp(-((r / (0.55 * scale)) ** 2))
    picture = _paint(background[:, :, None, None], cytoplasm, cell * (1 - pallor))
    picture = _paint(picture, torch.tensor(_NUCLEUS) + tint + 7 * normal(3), nucleus)
    picture = picture + 3 * normal(3, PHANTOM_SIZE, PHANTOM_SIZE)
    return picture.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), cell, nucleus


def _interpolate(morph: Tensor, values: tuple[float, ...]) -> Tensor:
    table = torch.tensor(values)
    morph = morph.float().clamp(0, len(values) - 1)
    low = morph.long().clamp(max=len(values) - 2)
    return torch.lerp(table[low], table[low + 1], morph - low)


def _coverage(signed_distance: Tensor) -> Tensor:
    """Return the share of each pixel inside a shape, from the distance to its edge in pixels."""
    return (0.5 - signed_distance).clamp(0, 1)


def _smooth_min(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """Return the smaller of two distances, melted together where they differ by less than `width`."""
    blend = (width - (a - b).abs()).clamp(min=0) / width
    return torch.minimum(a, b) - blend**2 * width / 4


def _paint(picture: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    """Lay a colour [N, 3] over pictures [N, 3, H, W] where [N, H, W] says so."""
    return picture + coverage[:, None] * (colour[:, :, None, None] - picture)
