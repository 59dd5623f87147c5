"""The image part of training and validation: pixels, cached latents, or latents encoded on the fly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msf.autoencoder.batches import encode_in_parts
from msf.autoencoder.latent_cache import open_latent_cache
from msf.config import DataConfig
from msf.data import ImageDataset, Split, apply_flips, draw_flips, prepare_images
from msf.data.augment import apply_changes, change_label_maps, draw_changes
from msf.data.images import N_FLIPS
from msf.data.label_maps import flip_label_maps
from msf.flow.joint_space import JointSpace

Progress = Callable[[int, int], None]

_PART = 64  # pictures prepared at once where a whole split is encoded


@dataclass(frozen=True, eq=False)
class ImageDraws:
    """What was drawn for the pictures of a batch; None: nothing of that kind.

    Args:
        flips: As `draw_flips` gives them; bool [B, 2].
        changes: As `draw_changes` gives them; float [B, 4].
        noise: Of the posterior of latents; float [B, L, h, w].
    """

    flips: Tensor | None
    changes: Tensor | None
    noise: Tensor | None

    def of(self, items: Tensor) -> ImageDraws:
        """Return what was drawn for some of the pictures; int64 [M]."""
        parts = (None if part is None else part[items] for part in (self.flips, self.changes, self.noise))
        return ImageDraws(*parts)


class TrainingImages:
    """Image parts of the training split. What is drawn at random does not depend on where they come from.

    Args:
        dataset: Pictures.
        space: Says what the image part is.
        settings: Flips, and how pictures are changed otherwise.
        use_cache: Encode the whole split now, unless its latents are on the disk; otherwise each batch is encoded when
            it is asked for.
        device: Where the autoencoder is.
        progress: Told of the encoding now, as `progress(n_done, n_total)`.

    Raises:
        ValueError: Pictures are to be changed in ways that a cache of latents does not hold.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        space: JointSpace,
        settings: DataConfig,
        *,
        use_cache: bool,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        """Open or fill the cache, if there is to be one."""
        self._split = dataset.train
        self._space = space
        self._settings = settings
        self._flips = dataset.flips if settings.flips is None else settings.flips
        self._device = device
        self._cache = None
        if not space.is_latent or not use_cache:
            return
        if settings.shift or settings.rotation or settings.brightness:
            raise ValueError(
                "shift, rotation and brightness must be 0 with a latent cache, which holds pictures as they are and "
                "mirrored: encode every batch with --no-latent-cache (latent_cache=False)"
            )
        self._cache = open_latent_cache(
            dataset,
            "train",
            space.autoencoder,
            space.image_size,
            flips=self._flips,
            posterior="sample" if space.has_noise else "mode",
            device=device,
            progress=progress,
        )

    @property
    def n_variants(self) -> int:
        """Mirrored forms of each picture, itself included."""
        return N_FLIPS if self._flips else 1

    def draw(self, n: int, generator: torch.Generator) -> ImageDraws:
        """Draw what is random about the n pictures of a whole batch."""
        flips = draw_flips(n, generator) if self._flips else None
        changes = draw_changes(n, self._settings, generator)
        has_noise = self._space.has_noise
        return ImageDraws(
            flips, changes, torch.randn(n, *self._space.image_shape, generator=generator) if has_noise else None
        )

    def labels(self, rows: Tensor, draws: ImageDraws) -> Tensor:
        """Return the labels of some pictures.

        Args:
            rows: Numbers of the pictures; int64 [M].
            draws: What was drawn for them.

        Returns:
            int64 [M], or label maps [M, H, W], mirrored and moved as their pictures are.
        """
        labels = self._split.labels[rows].long()
        if labels.ndim == 3 and draws.flips is not None:
            labels = flip_label_maps(labels, draws.flips)
        if labels.ndim == 3 and draws.changes is not None:
            labels = change_label_maps(labels, draws.changes)
        return labels

    def batch(self, rows: Tensor, draws: ImageDraws) -> Tensor:
        """Return the image parts of some pictures.

        Args:
            rows: Numbers of the pictures; int64 [M].
            draws: What was drawn for them.

        Returns:
            [M, C, h, w], float32; on the CPU, or on `device` where they are encoded now.
        """
        if self._cache is not None:
            return self._cache.batch(rows, draws.flips, noise=draws.noise)
        pictures = _prepared(self._split, rows, self._space)
        if draws.flips is not None:
            pictures = apply_flips(pictures, draws.flips)
        if draws.changes is not None:
            pictures = apply_changes(pictures, draws.changes)
        if not self._space.is_latent:
            return pictures
        posterior = encode_in_parts(self._space.autoencoder, pictures, self._device)
        return posterior.mode() if draws.noise is None else posterior.sample(draws.noise.to(self._device))


def validation_latents(
    dataset: ImageDataset,
    space: JointSpace,
    *,
    use_cache: bool,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor | None:
    """Return the latents of the validation split, encoded once per run, or once for all with a cache.

    Args:
        dataset: Pictures.
        space: Says what the image part is.
        use_cache: Keep them on the disk, and take them from there.
        device: Where the autoencoder is.
        progress: Told of the encoding, as `progress(n_done, n_total)`.

    Returns:
        The mode; [N, L, h, w], float32, on the CPU. None for a flow on pixels.
    """
    if not space.is_latent:
        return None
    rows = torch.arange(len(dataset.val))
    if use_cache:
        cache = open_latent_cache(
            dataset, "val", space.autoencoder, space.image_size, flips=False, device=device, progress=progress
        )
        return cache.batch(rows)
    parts = []
    for part in torch.split(rows, _PART):
        parts.append(space.encode(_prepared(dataset.val, part, space), device).cpu())
        if progress is not None:
            progress(int(part[-1]) + 1, len(rows))
    return torch.cat(parts)


def _prepared(split: Split, rows: Tensor, space: JointSpace) -> Tensor:
    return prepare_images(split.images[rows], space.image_size, space.image_channels)
