"""From a configuration to an autoencoder."""

from __future__ import annotations

from pathlib import Path

from msf.autoencoder.identity import PixelIdentity
from msf.autoencoder.kl import KLAutoencoder
from msf.autoencoder.protocol import Autoencoder
from msf.config import AutoencoderConfig


def load_autoencoder(
    config: AutoencoderConfig,
    image_channels: int,
    *,
    folder: Path | None = None,
) -> Autoencoder:
    """Return the autoencoder that a configuration names, on the CPU.

    Args:
        config: `identity`, or `kl` with the source of its weights.
        image_channels: Channels of the pictures. A `kl` autoencoder has three; it repeats one grey channel itself, and
            its decoded pictures always have three.
        folder: Folder to read the weights from in place of `config.source`, such as a checkpoint's own.

    Raises:
        FileNotFoundError: No weights: no source given, no such folder, not on the hub, or no network.
        ValueError: The package diffusers is missing, or what was found is no intact AutoencoderKL of safetensors.
    """
    if config.name == "identity":
        return PixelIdentity(image_channels)
    source = folder if folder is not None else config.source
    if source is None:
        raise FileNotFoundError(
            "autoencoder 'kl' needs the folder or hub id of its weights (autoencoder source); got none. "
            "msf train-autoencoder makes such a folder from your own pictures"
        )
    return KLAutoencoder.from_pretrained(source)
