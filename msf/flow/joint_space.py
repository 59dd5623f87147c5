"""What the parts of a joint state are (pictures or their latents, and semantic maps), and the ways there and back."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from msf.autoencoder import Autoencoder
from msf.autoencoder.batches import decode_in_parts, encode_in_parts
from msf.codes.label_codes import LabelCode
from msf.codes.latent import make_latent_code
from msf.config import ExperimentConfig, ReadoutName, TaskConfig
from msf.flow.readout import Readout, per_pixel
from msf_kernels.shapes import ImageBatch, SemanticBatch


class JointSpace:
    """The space of one flow, and the read-outs that it has.

    Args:
        autoencoder: Between pictures and the image part; moved by its owner.
        code: Label code, in the units of pictures for `rgb`.
        experiment: `data.image_size`, `autoencoder` and `network` matter.
        task: `image_channels` of the pictures, and `is_per_pixel`: whether semantic maps are compared with the classes
            pixel by pixel.

    Attributes:
        is_latent: Whether the image part holds latents instead of pixels.
        has_noise: Whether training samples the posterior of latents instead of taking its mode.
        image_shape: Shape (C, h, w) of the image part.
        semantic_shape: Shape (K, h, w) of the semantic part.

    Raises:
        ValueError: Pictures of this size cannot be encoded, or give latents that the network cannot take; or the
            configured read-out is not to be had with this code; or classes of pixels with an autoencoder.
    """

    def __init__(
        self, autoencoder: Autoencoder, code: LabelCode, experiment: ExperimentConfig, task: TaskConfig
    ) -> None:
        """Work out shapes, and check them against the network."""
        self.autoencoder = autoencoder
        self.code = code
        self.image_channels = task.image_channels
        self.image_size = experiment.data.image_size
        self.is_latent = experiment.autoencoder.name != "identity"
        self.is_per_pixel = task.is_per_pixel
        if self.is_per_pixel and self.is_latent:
            raise ValueError("autoencoder must be 'identity' where pixels have classes: latents have no pixels")
        self.image_shape = autoencoder.latent_shape(self.image_size, self.image_size)
        self.has_noise = self.is_latent and experiment.autoencoder.posterior == "sample"
        self._has_latent_code = self.is_latent and code.is_picture
        self._check_readout(experiment.inference.classify.readout)
        channels, height, width = self.image_shape
        self.semantic_shape = (channels if self._has_latent_code else code.n_channels, height, width)
        multiple = experiment.network.size_multiple
        if height % multiple:
            raise ValueError(
                f"image_size must give latents whose size is a multiple of {multiple}, for "
                f"{len(experiment.network.channel_multipliers)} network levels; got {self.image_size}, "
                f"whose latents are {height} wide"
            )
        self._latent_codes: dict[torch.device, LabelCode] = {}

    def semantic_code(self, device: torch.device) -> LabelCode:
        """Return the code whose maps the network sees: `code`, or the latents of its colours, encoded once."""
        if not self._has_latent_code:
            return self.code
        if device not in self._latent_codes:
            self._latent_codes[device] = make_latent_code(
                self.code, self.autoencoder, self.image_size, device=device, has_noise=self.has_noise
            )
        return self._latent_codes[device]

    def encode(self, pictures: ImageBatch, device: torch.device) -> Tensor:
        """Return the image part of prepared pictures: for latents the mode, on `device`, where the autoencoder is."""
        if not self.is_latent:
            return pictures
        return encode_in_parts(self.autoencoder, pictures, device).mode()

    def decode(self, image: Tensor, device: torch.device, *, memory_bytes: int | None = None) -> ImageBatch:
        """Return pictures from the image part, not clamped, on its device; grey is the mean of three channels.

        Args:
            image: [N, C, h, w], N >= 1.
            device: Where the autoencoder is.
            memory_bytes: As for `Autoencoder.decode`; default: batches of one size, and never tiles.
        """
        if not self.is_latent:
            return image

        def keep(pictures: Tensor) -> Tensor:
            grey_or_colour = pictures.mean(dim=1, keepdim=True) if self.image_channels == 1 else pictures
            return grey_or_colour.to(image.device)

        if memory_bytes is not None:
            return keep(self.autoencoder.decode(image.to(device), memory_bytes=memory_bytes))
        return decode_in_parts(self.autoencoder, image.to(device), self.image_size, keep)

    def readout(self, name: ReadoutName, device: torch.device, *, is_mean: bool) -> Readout:
        """Return a comparison of semantic maps with the classes.

        Args:
            name: `latent` or `decoded`; the same for pixels.
            device: Where the autoencoder is.
            is_mean: The maps will be means over all answers, so that some codes tell probabilities.

        Raises:
            ValueError: An unknown name, or `decoded` for a code that is not made by the autoencoder.
        """
        if name not in get_args(ReadoutName):
            raise ValueError(f"readout must be one of {', '.join(get_args(ReadoutName))}; got {name!r}")
        self._check_readout(name)
        if self.decodes(name):
            return Readout(name, self._decoded_distance, is_decoding=True)
        code = self.semantic_code(device)
        whole = Readout(name, code.distance, code.weights if is_mean and code.is_affinely_independent else None)
        return per_pixel(whole) if self.is_per_pixel else whole

    def decodes(self, name: ReadoutName) -> bool:
        """Return whether a read-out takes maps through the autoencoder."""
        return self.is_latent and name == "decoded"

    def _check_readout(self, name: ReadoutName) -> None:
        if self.decodes(name) and not self._has_latent_code:
            raise ValueError(
                f"readout must be 'latent' for code {self.code.name!r}, which lives at latent resolution and has "
                "nothing to decode; got 'decoded'"
            )

    def _decoded_distance(self, latents: SemanticBatch) -> tuple[Tensor, Tensor]:
        """Return distances of decoded maps to the colours, and votes; few pictures exist at once."""

        def compare(pictures: Tensor) -> Tensor:
            return torch.stack(self.code.distance(pictures), dim=1)

        distance, votes = decode_in_parts(self.autoencoder, latents, self.image_size, compare).unbind(1)
        return distance, votes
