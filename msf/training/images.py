"""The image part of training and validation: pixels, cached latents, or latents encoded on the fly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msf.autoencoder.batches import encode_in_parts
from msf.autoencoder.latent_cache import open_latent_cache
from msf.data import ImageDataset, Split, apply_flips, draw_flips, prepare_images
from msf.data.label_maps import flip_label_maps
from msf.flow.joint_space import JointSpace

Progress = Callable[[int, int], None]

_PART = 64  # pictures prepared at once where a whole split is encoded


class TrainingImages:
    """Image parts of the training split. What is drawn at random does not depend on where they come from.

    Args:
        dataset: Pictures.
        space: Says what the image part is.
        flips: Mirror pictures at random.
        use_cache: Encode the whole split now, unless its latents are on the disk; otherwise each batch is encoded when
            it is asked for.
        device: Where the autoencoder is.
        progress: Told of the encoding now, as `progress(n_done, n_total)`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        space: JointSpace,
        *,
        flips: bool,
        use_cache: bool,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        """Open or fill the cache, if there is to be one."""
        self._split = dataset.train
        self._space = space
        self._flips = flips
        self._device = device
        self._cache = None
        if space.is_latent and use_cache:
            self._cache = open_latent_cache(
                dataset,
                "train",
                space.autoencoder,
                space.image_size,
                flips=flips,
                posterior="sample" if space.has_noise else "mode",
                device=device,
                progress=progress,
            )

    def batch(self, rows: Tensor, generator: torch.Generator, mine: slice) -> tuple[Tensor, Tensor]:
        """Return the image parts that one process works on, and the labels of the whole batch.

        Args:
            rows: Pictures of the whole batch; int64 [B].
            generator: Source of flips and posterior noise, drawn for the whole batch.
            mine: Which of the rows this process works on.

        Returns:
            [rows of this process, C, h, w], float32; on the CPU, or on `device` where they are encoded now. And int64
            [B], or label maps [B, H, W], mirrored as their pictures are.
        """
        drawn, labels = draw_flips(len(rows), generator) if self._flips else None, self._split.labels[rows].long()
        if drawn is not None and labels.ndim == 3:
            labels = flip_label_maps(labels, drawn)
        return self._images(rows, None if drawn is None else drawn[mine], generator, mine), labels

    def _images(self, rows: Tensor, flips: Tensor | None, generator: torch.Generator, mine: slice) -> Tensor:
        noise = None
        if self._space.has_noise:
            noise = torch.randn(len(rows), *self._space.image_shape, generator=generator)[mine]
        if self._cache is not None:
            return self._cache.batch(rows[mine], flips, noise=noise)
        pictures = _prepared(self._split, rows[mine], self._space)
        if flips is not None:
            pictures = apply_flips(pictures, flips)
        if not self._space.is_latent:
            return pictures
        posterior = encode_in_parts(self._space.autoencoder, pictures, self._device)
        return posterior.mode() if noise is None else posterior.sample(noise.to(self._device))


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
