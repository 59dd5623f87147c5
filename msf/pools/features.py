"""Networks whose features pools are compared in; none is downloaded."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf.data import prepare_images
from msf.files.damage import DAMAGE, first_line
from msf.medsymmflow import MedSymmFlow

CLASSIFIER, ENCODER = "classifier", "encoder"
_PART = 128
_POOLED = 4  # latents are averaged over a grid of so many places each way
_INCEPTION_FEATURES = 2048
_INCEPTION_KEYS = {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch1x1.conv.weight", "fc.weight"}


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
            latents of the flow's autoencoder, averaged to 4 x 4 places. Else a file: the weights of Inception that FID
            is usually computed with (needs torch-fidelity), or a TorchScript network, which gets uint8 [N, 3, H, W] and
            returns [N, F]. TorchScript is a program: load only what you trust.
        flow: Has the autoencoder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: `encoder` of a flow on pixels, a file that is no such network, or no torch-fidelity.
    """
    if wanted == CLASSIFIER:
        return None
    if wanted == ENCODER:
        if not flow.space.is_latent:
            raise ValueError("features 'encoder' are those of an autoencoder, which this flow on pixels has not")
        return FeatureNetwork(
            "encoder of the flow's autoencoder, averaged to 4 x 4", lambda images: _latents(flow, images)
        )
    return _from_file(Path(wanted))


def _latents(flow: MedSymmFlow, images: Tensor) -> Tensor:
    parts = []
    with torch.no_grad():
        for part in torch.split(images, _PART):
            prepared = prepare_images(part, flow.space.image_size, flow.space.image_channels)
            latents = flow.space.encode(prepared, flow.device).float()
            parts.append(torch.nn.functional.adaptive_avg_pool2d(latents, _POOLED).flatten(1).cpu())
    return torch.cat(parts)


def _from_file(path: Path) -> FeatureNetwork:
    if not path.is_file():
        raise FileNotFoundError(
            f"features must be '{CLASSIFIER}', '{ENCODER}' or the file of a network; there is none at {str(path)!r}"
        )
    if _is_torchscript(path):
        name, network = f"TorchScript network {path.name}", _scripted(path)
    else:
        name, network = f"Inception, {_INCEPTION_FEATURES} features, weights of {path.name}", _inception(path)

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

    return FeatureNetwork(name, features)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except DAMAGE:
        return False


def _scripted(path: Path) -> Callable[[Tensor], Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format, which these networks come in
            network = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            arguments = {argument.name for argument in network.forward.schema.arguments}
    except DAMAGE as error:
        raise ValueError(f"{str(path)!r} is no TorchScript network: {first_line(error)}") from error
    # Inception as StyleGAN's authors publish it returns probabilities of classes unless told so.
    return partial(network, return_features=True) if "return_features" in arguments else network


def _inception(path: Path) -> Callable[[Tensor], Any]:
    where = repr(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the old format, in which these weights come
            # torch-fidelity would run whatever a pickle says; what this reads can hold nothing that runs.
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise ValueError(f"{where} is neither a TorchScript network nor a state dict: {first_line(error)}") from error
    if not isinstance(weights, dict) or not weights.keys() >= _INCEPTION_KEYS:
        raise ValueError(
            f"{where} must hold a TorchScript network, or the weights of Inception for FID "
            "(pt_inception-2015-12-05-6726825d.pth); it holds something else"
        )
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3("inception-v3-compat", [str(_INCEPTION_FEATURES)], str(path))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where} holds weights of Inception, whose network comes with torch-fidelity: pip install torch-fidelity "
            f"({first_line(error)})"
        ) from error
    except RuntimeError as error:  # other shapes; or torchvision, which torch-fidelity needs, is for another torch
        raise ValueError(f"{where} cannot be made the network of Inception for FID: {first_line(error)}") from error
