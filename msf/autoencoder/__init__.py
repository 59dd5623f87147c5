"""Autoencoders: where the flow's image channels live, pixels or latents."""

from msf.autoencoder.identity import PixelIdentity
from msf.autoencoder.kl import KLAutoencoder
from msf.autoencoder.load import load_autoencoder
from msf.autoencoder.protocol import Autoencoder, LatentPosterior

__all__ = ["Autoencoder", "KLAutoencoder", "LatentPosterior", "PixelIdentity", "load_autoencoder"]
