"""Codes whose points are latents: the colours of the classes, sent through the autoencoder once per class.

An encoder does not keep a constant picture constant (it sees the borders), so the semantic map of a class is a map of
its own, and distances are taken place by place.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msf.autoencoder import Autoencoder, LatentPosterior
from msf.autoencoder.batches import encode_in_parts
from msf.codes.label_codes import LabelCode
from msf_kernels.shapes import ClassDistances, Labels, SemanticBatch

# An error of the mean latents enters the weights of the classes magnified by the inverse of this at most.
SMALLEST_SPREAD = 0.05


@dataclass(frozen=True, eq=False)
class LatentCode(LabelCode):
    """A code whose semantic maps are latents, one map per class.

    Args:
        name: Name of the code, as in `CodeConfig`.
        codes: float32 [n_classes, L], the mean of each map over its pixels; what `probability` reads.
        maps: float32 [n_classes, L, h, w]: the latents of each class.
        std: float32 [n_classes, L, h, w]: width of the normal noise that `encode` adds when it is given a generator;
            None adds none.
    """

    maps: Tensor = field(kw_only=True)
    std: Tensor | None = field(kw_only=True)

    @functools.cached_property
    def affine_rank(self) -> int:
        """Dimensions that the points span without magnifying errors much.

        Extents of the codes are compared with the largest: exact dependence does not survive an encoder, while points
        that are nearly dependent determine nothing in practice.
        """
        edges = (self.codes[1:] - self.codes[0]).double()
        return int(torch.linalg.matrix_rank(edges, rtol=SMALLEST_SPREAD))

    def encode(
        self, labels: Labels, height: int, width: int, *, generator: torch.Generator | None = None
    ) -> SemanticBatch:
        """Return the latents of the labels' colours.

        `maps[label]`, plus `std[label] * noise` with standard normal noise when a generator is given and the code has
        a width.

        Args:
            labels: int64 [N], in [0, n_classes).
            height: Height of the maps; they are not resized.
            width: Width of the maps.
            generator: Source of the noise; None gives clean maps. May live on another device than the labels.

        Returns:
            float32 [N, L, height, width] on the device of `labels`.

        Raises:
            TypeError: Labels that are not int64.
            ValueError: Labels of another rank or outside the classes; another size than the maps have.
        """
        self._check_labels(labels)
        if (height, width) != tuple(self.maps.shape[2:]):
            raise ValueError(
                f"height and width must be those of the class latents, {list(self.maps.shape[2:])}; "
                f"got {[height, width]}"
            )
        maps = self._on("maps", labels.device, lambda _: self.maps)[labels]
        if generator is None or self.std is None:
            return maps
        std = self.std
        return LatentPosterior(maps, self._on("std", labels.device, lambda _: std)[labels]).sample(generator)

    def distance(self, semantic: SemanticBatch) -> tuple[ClassDistances, ClassDistances]:
        """Return the distance of each map to each class's map, and each class's share of the places.

        Distance: mean over places of the L2 distance (over channels) to the class's latents at that place. Votes: share
        of the places whose nearest class is that class (ties go to the lowest class).

        Args:
            semantic: float [N, L, h, w].

        Returns:
            Distance and votes, both float32 [N, n_classes] (float64 for float64 input).

        Raises:
            TypeError: Not a floating-point tensor.
            ValueError: Another shape than [N, L, h, w].

        Numerics:
            float32 accumulation; memory of one difference per class, not of all at once.
        """
        self._check_semantic(semantic)
        if semantic.shape[2:] != self.maps.shape[2:]:
            raise ValueError(
                f"semantic must be [N, {', '.join(map(str, self.maps.shape[1:]))}], like the class latents; "
                f"got {list(semantic.shape)}"
            )
        maps = self._on("maps", semantic.device, lambda _: self.maps)
        dtype = torch.promote_types(semantic.dtype, torch.float32)
        values = semantic.to(dtype)
        per_place = torch.stack(
            [torch.linalg.vector_norm(values - points, dim=1).flatten(1) for points in maps.to(dtype)], dim=1
        )  # [N, n_classes, h w]
        nearest = per_place.argmin(dim=1)  # the first of equal minima
        class_index = torch.arange(self.n_classes, device=semantic.device)
        votes = (nearest[:, None] == class_index[:, None]).to(dtype)
        return per_place.mean(dim=2), votes.mean(dim=2)


def make_latent_code(
    code: LabelCode, autoencoder: Autoencoder, size: int, *, device: torch.device, has_noise: bool
) -> LatentCode:
    """Encode the clean picture of every class once.

    Args:
        code: Code of three channels: the colours of the classes.
        autoencoder: Where the maps come from.
        size: Height and width of the pictures.
        device: Where the autoencoder is.
        has_noise: Give `encode` the noise of the posterior; without, a class's latents are the posterior's mode.

    Returns:
        The code, on the CPU.

    Raises:
        ValueError: A size that the autoencoder cannot encode.
    """
    pictures = code.encode(torch.arange(code.n_classes), size, size)
    posterior = encode_in_parts(autoencoder, pictures, device)
    maps = posterior.mean.cpu()
    return LatentCode(code.name, maps.mean(dim=(2, 3)), maps=maps, std=posterior.std.cpu() if has_noise else None)
