"""Label codes: how a class becomes a semantic map, and how a recovered map becomes class scores.

A code is a table of points, one per class; the semantic map of a label is its point, constant over the picture, and
that of a label map has the point of each pixel's class. Codes differ in what a *mean* of points still tells: where the
points are affinely independent, the expected code under a distribution over classes determines that distribution
(`LabelCode.probability`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msf.config import CodeConfig
from msf.data.images import HALF_RANGE
from msf.data.label_maps import resize_label_maps
from msf_kernels import class_distance
from msf_kernels.shapes import ClassDistances, Codes, Labels, SemanticBatch

PALETTE_LEVELS = (0, 75, 150, 225)
_FAR = 2.0**10
_SAME_POINT = 1e-3  # of the largest distance between a class and the mean of all


@dataclass(frozen=True, eq=False)
class LabelCode:
    """A code table with its encoding, distances and decoding rules.

    Args:
        name: Name of the code, as in `CodeConfig`.
        codes: float32 [n_classes, K]; row i is the point of class i.
        dequantisation_width: Width of the uniform noise that `encode` adds when it is given a generator; in units of
            the code.
        is_picture: Whether its maps are made at the size of pictures, and encoded like them where the flow runs on
            latents; else they are made at the network's resolution.
    """

    name: str
    codes: Codes
    dequantisation_width: float = 0.0
    is_picture: bool = False
    _moved: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.codes.shape[0]

    @property
    def n_channels(self) -> int:
        """Number of semantic channels K."""
        return self.codes.shape[1]

    @functools.cached_property
    def affine_rank(self) -> int:
        """Dimensions that the points span: n_classes - 1 where they are affinely independent."""
        return int(torch.linalg.matrix_rank((self.codes[1:] - self.codes[0]).double()))

    @property
    def is_affinely_independent(self) -> bool:
        """Whether a mean of codes determines the weights of the classes in it."""
        return self.affine_rank == self.n_classes - 1

    def encode(
        self, labels: Labels, height: int, width: int, *, generator: torch.Generator | None = None
    ) -> SemanticBatch:
        """Return the semantic maps of labels.

        `codes[label]` at every pixel, plus `dequantisation_width * (u - 0.5)` with u uniform per pixel and channel
        when a generator is given.

        Args:
            labels: int64 [N], in [0, n_classes), a class per picture; or [N, h, w], one per pixel, which are resized
                as `resize_label_maps` does. On the device of `generator` if that is given.
            height: Pixels, > 0.
            width: Pixels, > 0.
            generator: Source of the dequantisation noise; None gives clean maps.

        Returns:
            float32 [N, K, height, width] on the device of `labels`.

        Raises:
            TypeError: Labels that are not int64.
            ValueError: Labels of another rank; labels outside the classes.

        Numerics:
            Reads the range of the labels, for which the host waits if they are on a GPU.
        """
        self._check_labels(labels)
        labels = resize_label_maps(labels, height, width) if labels.ndim == 3 else labels[:, None, None]
        points = self._on("codes", labels.device)[labels]  # [N, H, W, K] or [N, 1, 1, K]
        maps = points.permute(0, 3, 1, 2).expand(-1, -1, height, width)
        if generator is None or self.dequantisation_width == 0:
            return maps.contiguous()
        noise = torch.rand(maps.shape, generator=generator, device=labels.device)
        return maps + self.dequantisation_width * (noise - 0.5)

    def null_map(self, height: int, width: int) -> Tensor:
        """Return the semantic map that stands for no label: the mean of the classes' maps.

        It is what the code's expectation is while nothing is known, and for `simplex` the origin.

        Args:
            height: Pixels, > 0.
            width: Pixels, > 0.

        Returns:
            float32 [K, height, width], on the CPU.

        Raises:
            ValueError: The mean is the point of a class, as with an odd number of grey levels.
        """
        maps = self.encode(torch.arange(self.n_classes), height, width)
        null = maps.mean(dim=0)
        distance = (maps - null).square().mean(dim=(1, 2, 3)).sqrt()
        if distance.min() < _SAME_POINT * distance.max():
            raise ValueError(
                f"label_drop needs a code whose classes differ from their mean, which stands for no label; with code "
                f"{self.name!r} the mean of {self.n_classes} classes is class {int(distance.argmin())}: use simplex"
            )
        return null

    def distance(self, semantic: SemanticBatch) -> tuple[ClassDistances, ClassDistances]:
        """Return the distance of each map to each class, and each class's share of the pixels.

        Distance: mean over pixels of the L2 distance to the class's point. Votes: share of the pixels whose nearest
        point is the class's (ties go to the lowest class).

        Args:
            semantic: float [N, K, H, W].

        Returns:
            Distance and votes, both float [N, n_classes].

        Raises:
            TypeError: Not a floating-point tensor.
            ValueError: Another rank, or another number of channels than the code has.
        """
        self._check_semantic(semantic)
        distance, votes = class_distance(semantic, self._on("codes", semantic.device))
        return distance, votes

    def decode_mean(self, semantic: SemanticBatch) -> Labels:
        """Return the class at the smallest `distance`: int64 [N]; ties go to the lowest class."""
        return self.distance(semantic)[0].argmin(dim=1)

    def decode_mode(self, semantic: SemanticBatch) -> Labels:
        """Return the class that is nearest at most pixels: int64 [N]; ties go to the lowest class."""
        return self.distance(semantic)[1].argmax(dim=1)

    def weights(self, semantic: SemanticBatch) -> ClassDistances:
        """Return the weights of the classes in the mean of each map.

        The pixel mean m of a map is written as `sum_i w_i codes[i]` with `sum_i w_i = 1` (least squares when K is
        larger than n_classes - 1). For a map that estimates E[code | image], w estimates p(label | image). It is a
        linear function of the map: weights of several maps can be averaged, and nothing is lost by it.

        Args:
            semantic: float [N, K, H, W].

        Returns:
            float32 [N, n_classes] (float64 for float64 input); rows sum to 1, and may hold negative numbers.

        Raises:
            TypeError: Not a floating-point tensor.
            ValueError: Wrong shape; or the codes are not affinely independent, so that a mean does not determine the
                weights.
        """
        self._check_semantic(semantic)
        if not self.is_affinely_independent:
            raise ValueError(
                f"code {self.name!r} with {self.n_classes} classes and {self.n_channels} channel(s) cannot give "
                "probabilities from a mean: its points are not affinely independent; use simplex, one_hot or "
                "thermometer"
            )
        mean = semantic.mean(dim=(2, 3), dtype=_accumulation_dtype(semantic))  # [N, K]
        matrix = self._on("barycentric", semantic.device, _barycentric_matrix).to(mean.dtype)
        return mean @ matrix[:-1] + matrix[-1]

    def probability(self, semantic: SemanticBatch) -> ClassDistances:
        """Return class probabilities read from the mean of each map: its `weights`, projected on the simplex.

        The projection moves what lies outside only, so it belongs behind the average over several maps, not before: a
        certain class whose weight varies around 1 would be told as less than certain.

        Args:
            semantic: float [N, K, H, W].

        Returns:
            float32 [N, n_classes] (float64 for float64 input); rows are >= 0 and sum to 1.

        Raises:
            TypeError: See `weights`.
            ValueError: Likewise.
        """
        return project_on_simplex(self.weights(semantic))

    def _on(self, name: str, device: torch.device, make: Callable[[Tensor], Tensor] = lambda codes: codes) -> Tensor:
        # Kept per device, so that a call copies nothing from the host (and can be captured in a CUDA graph).
        key = (name, device)
        if key not in self._moved:
            self._moved[key] = make(self.codes).to(device)
        return self._moved[key]

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64; got {labels.dtype}")
        if labels.ndim not in (1, 3):
            raise ValueError(f"labels must be [N], or [N, H, W] for pixels; got shape {list(labels.shape)}")
        if not labels.numel():
            return
        low, high = torch.stack(labels.aminmax()).tolist()
        if low < 0 or high >= self.n_classes:
            raise ValueError(f"labels must be in [0, {self.n_classes}); got values from {low} to {high}")

    def _check_semantic(self, semantic: Tensor) -> None:
        if not semantic.is_floating_point():
            raise TypeError(f"semantic must be a floating-point tensor; got {semantic.dtype}")
        if semantic.ndim != 4 or semantic.shape[1] != self.n_channels:
            raise ValueError(
                f"semantic must be [N, {self.n_channels}, H, W] for code {self.name!r}; got {list(semantic.shape)}"
            )


class GreyCode(LabelCode):
    """The published one-channel code, whose distances are measured in labels on the mean of the map.

    `label value = (semantic / scale + 1) (n_classes - 1) / 2` with scale = beta / 2, the largest code. Distance to
    class k: |mean over pixels of the label value - k|. Votes: share of the pixels whose rounded and clamped label value
    is k.
    """

    def distance(self, semantic: SemanticBatch) -> tuple[ClassDistances, ClassDistances]:
        """Return |mean label value - k| and the share of pixels per class; see the class."""
        self._check_semantic(semantic)
        values = semantic[:, 0].flatten(1).to(_accumulation_dtype(semantic))
        values = (values / self.codes[-1].item() + 1) * ((self.n_classes - 1) / 2)  # [N, P]
        classes = torch.arange(self.n_classes, device=semantic.device)
        distance = (values.mean(dim=1, keepdim=True) - classes).abs()
        nearest = values.round().clamp(0, self.n_classes - 1)
        votes = (nearest[:, :, None] == classes).to(values.dtype).mean(dim=1)
        return distance, votes


def make_code(config: CodeConfig, n_classes: int) -> LabelCode:
    """Build the label code of a configuration.

    Args:
        config: Name and beta. `rgb` (published): colours of a 64-colour palette, dequantised by
            beta (u - 0.5) / 127.5. `grey` (published): one channel, evenly spaced in [-beta/2, beta/2], dequantised by
            (beta/2) (u - 0.5) / (n_classes - 1). The other codes take no beta and add no noise: they stand for no
            colour levels whose gaps would have to be filled. `one_hot`: n_classes channels, +1 for the class and -1
            elsewhere. `simplex`: n_classes - 1 channels, the vertices of a regular simplex, scaled so that every
            channel has mean 0 and variance 1 over the classes. `thermometer`: n_classes - 1 channels in {-1, 1},
            channel j is +1 for classes above j.
        n_classes: 2 to 64.

    Returns:
        The code.

    Raises:
        ValueError: Unknown name (the text lists the known ones), n_classes out of range, or beta = 0 for `grey`.
    """
    if config.name not in _MAKERS:
        raise ValueError(f"code must be one of {', '.join(_MAKERS)}; got {config.name!r}")
    largest = len(PALETTE_LEVELS) ** 3
    if not 2 <= n_classes <= largest:
        raise ValueError(f"n_classes must be in [2, {largest}]; got {n_classes}")
    return _MAKERS[config.name](config, n_classes)


def palette(n_classes: int) -> Tensor:
    """Return the published colours of the classes: int64 [n_classes, 3] in [0, 255]."""
    colours = torch.tensor(list(itertools.product(PALETTE_LEVELS, repeat=3)))
    return colours[torch.linspace(0, len(colours) - 1, n_classes).long()]


def simplex_vertices(n_classes: int) -> Tensor:
    """Return the vertices of a regular simplex with unit covariance: float64 [n_classes, n_classes - 1].

    Channels have mean 0 and are uncorrelated with variance 1 over equally likely classes, so that the code has the
    first two moments of the noise at the other end of its path, and weighs in the loss like a normalised image.
    The rows are the Helmert basis: every vertex has norm sqrt(n_classes - 1), every two are sqrt(2 n_classes) apart.
    """
    vertices = torch.zeros(n_classes, n_classes - 1, dtype=torch.float64)
    for j in range(n_classes - 1):
        size = (n_classes / ((j + 1) * (j + 2))) ** 0.5
        vertices[: j + 1, j] = -size
        vertices[j + 1, j] = (j + 1) * size
    return vertices


def project_on_simplex(weights: Tensor) -> Tensor:
    """Return the Euclidean projection of each row on the probability simplex.

    `max(w - tau, 0)` with tau such that the row sums to 1.

    Args:
        weights: float [N, n_classes] or [N, n_classes, ...], finite.

    Returns:
        Same shape and dtype; rows are >= 0 and sum to 1. A row that is a distribution already stays what it is.

    Numerics:
        Sorting, O(n_classes log n_classes) per row; rows are independent of each other. Rows far from the simplex are
        shifted first, which changes no projection: their sums could not hold the 1 that is taken off.

    Source:
        Held, Wolfe and Crowder (1974); Duchi et al. (ICML 2008), figure 1.
    """
    largest = weights.amax(dim=1, keepdim=True)
    weights = weights - torch.where(largest.abs() > _FAR, largest, 0)
    descending = weights.sort(dim=1, descending=True).values
    excess = descending.cumsum(dim=1) - 1
    rank = torch.arange(1, weights.shape[1] + 1, device=weights.device, dtype=weights.dtype)
    rank = rank.reshape(-1, *[1] * (weights.ndim - 2))
    n_positive = (descending * rank > excess).sum(dim=1, keepdim=True).clamp(min=1)
    tau = excess.gather(1, n_positive - 1) / n_positive
    return (weights - tau).clamp(min=0)


def _barycentric_matrix(codes: Tensor) -> Tensor:
    """Return float64 [K + 1, n_classes]: weights = mean @ matrix[:-1] + matrix[-1]."""
    codes = codes.double()
    inverse = torch.linalg.pinv(codes[1:] - codes[0])  # [K, n_classes - 1]
    matrix = torch.cat([-inverse.sum(dim=1, keepdim=True), inverse], dim=1)
    offset = -codes[0] @ matrix
    offset[0] += 1
    return torch.cat([matrix, offset[None]])


def _accumulation_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _make_rgb(config: CodeConfig, n_classes: int) -> LabelCode:
    codes = palette(n_classes).float() / HALF_RANGE - 1
    return LabelCode("rgb", codes, dequantisation_width=config.beta / HALF_RANGE, is_picture=True)


def _make_grey(config: CodeConfig, n_classes: int) -> LabelCode:
    if config.beta == 0:
        raise ValueError("beta must be positive for code 'grey', where it scales the labels; got 0")
    scale = config.beta / 2
    labels = torch.arange(n_classes, dtype=torch.float32)
    codes = scale * (2 * labels / (n_classes - 1) - 1)
    return GreyCode("grey", codes[:, None], dequantisation_width=scale / (n_classes - 1), is_picture=True)


def _make_one_hot(_config: CodeConfig, n_classes: int) -> LabelCode:
    return LabelCode("one_hot", 2 * torch.eye(n_classes) - 1)


def _make_simplex(_config: CodeConfig, n_classes: int) -> LabelCode:
    return LabelCode("simplex", simplex_vertices(n_classes).float())


def _make_thermometer(_config: CodeConfig, n_classes: int) -> LabelCode:
    steps = torch.arange(n_classes)[:, None] > torch.arange(n_classes - 1)
    return LabelCode("thermometer", 2 * steps.float() - 1)


_MAKERS: dict[str, Callable[[CodeConfig, int], LabelCode]] = {
    "rgb": _make_rgb,
    "grey": _make_grey,
    "one_hot": _make_one_hot,
    "simplex": _make_simplex,
    "thermometer": _make_thermometer,
}
