"""Pictures to latents in batches of one fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msf_kernels.shapes import ImageBatch

if TYPE_CHECKING:
    from msf.autoencoder import Autoencoder, LatentPosterior

# An encoder keeps a few hundred feature planes of a picture's size at once: about 1.5 GB at these sizes.
_BATCH_PIXELS = 1 << 18
_MAX_BATCH = 32


def encode_batch_size(image_size: int) -> int:
    """Return how many pictures of a size are encoded at once: 4 at 256, at most 32, the same on every machine."""
    return min(_MAX_BATCH, max(1, _BATCH_PIXELS // image_size**2))


def encode_pictures(
    autoencoder: Autoencoder, pictures: ImageBatch, device: torch.device | str = "cpu"
) -> LatentPosterior:
    """Return the posterior of prepared pictures, encoded in batches of `encode_batch_size`.

    The last batch is filled up with black, so that the encoder sees one batch size only: its bits depend on that, and
    a picture's latents then do not depend on how many others are encoded with it.

    Args:
        autoencoder: On `device`.
        pictures: [N, C, H, H] in [-1, 1], N >= 1, on any device.
        device: Where the autoencoder is.

    Returns:
        mean and std, [N, L, h, w], float32, on the CPU.

    Raises:
        ValueError: A size that the autoencoder cannot encode.
        FloatingPointError: Latents that are not finite.
    """
    from msf.autoencoder import LatentPosterior

    size = encode_batch_size(pictures.shape[-1])
    parts: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(pictures), size):
        batch = pictures[first : first + size]
        padded = batch.new_full((size, *batch.shape[1:]), -1.0)
        padded[: len(batch)] = batch
        with torch.inference_mode():
            mean, std = autoencoder.encode(padded.to(device))
        mean, std = mean[: len(batch)].cpu(), std[: len(batch)].cpu()
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise FloatingPointError("the autoencoder gives latents that are not finite; run it in float32")
        parts.append((mean, std))
    means, stds = zip(*parts, strict=True)
    # Copies made outside of inference mode, so that they can take part in a backward pass.
    return LatentPosterior(torch.cat(means), torch.cat(stds))
