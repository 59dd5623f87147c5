"""Networks whose features pools are compared in; none is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msf.data import prepare_images
from msf.files.damage import DAMAGE, first_line
from msf.medsymmflow import MedSymmFlow

CLASSIFIER, ENCODER = "classifier", "encoder"
_PART = 128
_POOLED = 4  # latents are averaged over a grid of so many places each way


@dataclass(frozen=True)
class FeatureNetwork:
    """A named map from pictures to features.

    Args:
        name: What it is, for the report.
        of: Features float32 [N, F] of pictures, uint8 [N, H, W, C].
    """

    name: str
    of: Callable[[Tensor], Tensor]


def feature_network(wanted: str, flow: MedSymmFlow) -> FeatureNetwork | None:
    """Return the features that a name asks for, None where they are the reference classifier's.

    Args:
        wanted: `classifier`: the last features of the reference classifier, which is trained later. `encoder`: the
            latents of the flow's autoencoder, averaged to 4 x 4 places. Else a file with a TorchScript network, such as
            Inception's: it gets uint8 [N, 3, H, W] and returns [N, F]. TorchScript is a program: load only what you
            trust.
        flow: Has the autoencoder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: `encoder` of a flow on pixels, or a file that is no such network.
    """
    if wanted == CLASSIFIER:
        return None
    if wanted == ENCODER:
        if not flow.space.is_latent:
            raise ValueError("features 'encoder' are those of an autoencoder, which this flow on pixels has not")
        return FeatureNetwork(
            "encoder of the flow's autoencoder, averaged to 4 x 4", lambda images: _latents(flow, images)
        )
    return _scripted(Path(wanted))


def _latents(flow: MedSymmFlow, images: Tensor) -> Tensor:
    parts = []
    with torch.no_grad():
        for part in torch.split(images, _PART):
            prepared = prepare_images(part, flow.space.image_size, flow.space.image_channels)
            latents = flow.space.encode(prepared, flow.device).float()
            parts.append(torch.nn.functional.adaptive_avg_pool2d(latents, _POOLED).flatten(1).cpu())
    return torch.cat(parts)


def _scripted(path: Path) -> FeatureNetwork:
    if not path.is_file():
        raise FileNotFoundError(
            f"features must be '{CLASSIFIER}', '{ENCODER}' or the file of a TorchScript network; there is none at "
            f"{str(path)!r}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format, which these networks come in
            network = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except DAMAGE as error:
        raise ValueError(f"{str(path)!r} is no TorchScript network: {first_line(error)}") from error

    def features(images: Tensor) -> Tensor:
        parts = []
        with torch.no_grad():
            for part in torch.split(images, _PART):
                colour = part.expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous()
                found = network(colour)
                if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(part):
                    raise ValueError(f"the network in {str(path)!r} must return features [N, F] of uint8 [N, 3, H, W]")
                parts.append(found.float())
        return torch.cat(parts)

    return FeatureNetwork(f"TorchScript network {path.name}", features)
