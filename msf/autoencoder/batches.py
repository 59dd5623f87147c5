"""Coding many pictures in batches of one size, whatever their number: then no picture's bits depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from msf.autoencoder.protocol import Autoencoder, LatentPosterior

# Pictures that an autoencoder codes at once. Its bits depend on the size of a batch, so a size is kept to. A CPU is
# busy with a single picture.
_CPU_BATCH = 1
_DEVICE_BATCH_PIXELS = 8 * 256 * 256


def encode_in_parts(autoencoder: Autoencoder, pictures: Tensor, device: torch.device | None = None) -> LatentPosterior:
    """Encode pictures in batches of one size, so that a picture's bits do not depend on what else is encoded.

    Args:
        autoencoder: Encodes on `device`.
        pictures: [N, C, H, W] in [-1, 1], N >= 1.
        device: Where the autoencoder is; default: where the pictures are.

    Returns:
        The posterior, on `device`.
    """
    means, stds = [], []
    for part, n_rows in fixed_batches(pictures, _batch_size(pictures.shape, device or pictures.device)):
        posterior = autoencoder.encode(part.to(device))
        means.append(posterior.mean[:n_rows])
        stds.append(posterior.std[:n_rows])
    return LatentPosterior(torch.cat(means), torch.cat(stds))


def decode_in_parts(autoencoder: Autoencoder, latents: Tensor, size: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Decode latents in batches of one size and keep what `read` makes of the pictures.

    Args:
        autoencoder: Decodes on the device of `latents`.
        latents: [N, L, h, w], N >= 1.
        size: Height and width of the decoded pictures.
        read: Turns decoded pictures [B, 3, size, size] into what is kept, [B, ...]; only one batch of pictures exists
            at a time.

    Returns:
        [N, ...].
    """
    kept = []
    for part, n_rows in fixed_batches(latents, _batch_size((1, 1, size, size), latents.device)):
        kept.append(read(autoencoder.decode(part))[:n_rows])
    return torch.cat(kept)


def fixed_batches(rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Cut rows into batches of one size; the last is filled up with repetitions of its last row.

    Args:
        rows: [N, ...].
        batch_size: Rows per batch, >= 1.

    Yields:
        A batch and how many of its rows count.
    """
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        n_rows = len(part)
        if n_rows < batch_size:
            part = torch.cat([part, part[-1:].expand(batch_size - n_rows, *part.shape[1:])])
        yield part, n_rows


def _batch_size(shape: tuple[int, ...] | torch.Size, device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_BATCH
    return max(1, _DEVICE_BATCH_PIXELS // (shape[-2] * shape[-1]))
