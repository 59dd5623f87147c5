"""The two published models with made-up weights that still mean something, and pictures for them.

Weights are random, equal for all variants; then the last layers are fitted by least squares (no training): the
network's so that one step at t = 1 leads to the code of the picture's class, the autoencoder's so that latents are
about the colours of a small picture. So predictions are right or wrong, and can agree or not; a network as it is
initialised returns zero.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.peers import require
from msf import MedSymmFlow
from msf.autoencoder import KLAutoencoder
from msf.config import RECIPES, AutoencoderConfig, TaskConfig, UNetConfig
from msf.network.unet import UNet

N_CLASSES = 8
SCALING_FACTOR = 0.18215
SD_WIDTHS = (128, 256, 512, 512)
_SMALL = UNetConfig(channel_multipliers=(1, 1), n_res_blocks=1)
_FIT_SIZE = 64
_RIDGE = 1e-3
_ROWS_PER_FIT = 20_000
_DRAWS_PER_FIT = 4


@dataclass(frozen=True)
class Workload:
    """A model with its pictures.

    Args:
        name: `pixel` or `latent`.
        flow: Ours, in fp32.
        folder: Of the autoencoder in diffusers' layout; None for pixels.
    """

    name: str
    flow: MedSymmFlow
    folder: Path | None

    @property
    def network(self) -> UNet:
        """The fp32 network, whose weights all variants share."""
        network = self.flow.network
        if not isinstance(network, UNet):
            raise TypeError(f"the workload's network must be a UNet; got {type(network).__name__}")
        return network

    @property
    def picture_size(self) -> int:
        return self.flow.config.data.image_size

    @cached_property
    def palette(self) -> list[list[float]]:
        return [[float(value) for value in colour] for colour in self.flow.code.codes]

    def images(self, n: int) -> Tensor:
        """Pictures of the classes in turn; [n, 3, H, W] in [-1, 1]."""
        return pictures(torch.tensor(self.palette), torch.arange(n) % N_CLASSES, self.picture_size, seed=1)

    def noise(self, n: int, n_samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randn(n, n_samples, *self.flow.semantic_shape, generator=generator)

    def diffusers_autoencoder(self, device: torch.device) -> Any:
        """A fresh diffusers model with the autoencoder's weights; None for pixels."""
        if self.folder is None:
            return None
        model = require("diffusers").AutoencoderKL.from_pretrained(self.folder)
        return model.eval().requires_grad_(False).to(device)


def pictures(palette: Tensor, labels: Tensor, size: int, seed: int) -> Tensor:
    """Return smooth noise tinted by the colour of a class; [N, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(len(labels), 3, 8, 8, generator=generator)
    texture = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (0.6 * palette[labels][:, :, None, None] + 0.25 * texture).clamp(-1, 1)


@cache
@torch.inference_mode(False)
def pixel(quick: bool = False) -> Workload:
    """The published 28 x 28 model (run at 32 x 32); `quick`: a small one."""
    experiment = RECIPES["published-28"]
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, image_size=32))
    if quick:
        experiment = dataclasses.replace(experiment, network=_SMALL)
    torch.manual_seed(0)
    flow = MedSymmFlow(TaskConfig(n_classes=N_CLASSES, image_channels=3), experiment)
    _finish(flow)
    return Workload("pixel", flow, None)


@cache
@torch.inference_mode(False)
def latent(quick: bool = False) -> Workload:
    """The published 224 x 224 model (256 x 256 pictures, 32 x 32 latents); `quick`: a small one on 64 x 64 pictures."""
    torch.manual_seed(0)
    widths = (64,) * 4 if quick else SD_WIDTHS
    folder = Path(temporary_folder().name) / ("quick" if quick else "full")
    _autoencoder(widths).save_pretrained(folder)
    recipe = RECIPES["published-224"]
    experiment = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, image_size=64 if quick else 256),
        network=_SMALL if quick else recipe.network,
        autoencoder=AutoencoderConfig(name="kl", source=str(folder)),
    )
    flow = MedSymmFlow(TaskConfig(n_classes=N_CLASSES, image_channels=3), experiment)
    _finish(flow)
    return Workload("latent", flow, folder)


@cache
def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="msf-benchmark-")


def _autoencoder(widths: tuple[int, ...]) -> KLAutoencoder:
    """Random weights in sd-vae-ft-mse's architecture, and fitted last layers."""
    n = len(widths)
    model = require("diffusers").AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=widths,
        layers_per_block=2 if widths == SD_WIDTHS else 1,
        latent_channels=4,
        norm_num_groups=32,
        scaling_factor=SCALING_FACTOR,
    )
    model.eval().requires_grad_(False)
    model.quant_conv.weight.zero_()
    model.quant_conv.weight[range(4), range(4), 0, 0] = 1.0
    model.quant_conv.bias.zero_()
    model.quant_conv.bias[4:] = -10.0  # a narrow posterior

    labels = torch.arange(2 * N_CLASSES) % N_CLASSES
    flat = _colours()[:, :, None, None].expand(-1, -1, _FIT_SIZE, _FIT_SIZE)
    seen = torch.cat([flat, pictures(_colours(), labels, _FIT_SIZE, seed=0)])
    small = nn.functional.avg_pool2d(seen, 2 ** (n - 1))
    wanted = torch.cat([small, small[:, :1] - small[:, 1:2]], dim=1) / SCALING_FACTOR
    _fit_last(model.encoder.conv_out, lambda: model.encode(seen), torch.cat([wanted, torch.zeros_like(wanted)], dim=1))
    latents = model.encode(seen).latent_dist.mode()
    disturbed = latents + 0.4 * torch.randn_like(latents) / SCALING_FACTOR
    _fit_last(model.decoder.conv_out, lambda: model.decode(disturbed), seen)
    return KLAutoencoder(model)


def _colours() -> Tensor:
    from msf.codes.label_codes import make_code
    from msf.config import CodeConfig

    return make_code(CodeConfig(name="rgb"), N_CLASSES).codes.float()


def _finish(flow: MedSymmFlow) -> None:
    """Give every zero-initialised layer weights, and fit the last one."""
    network = cast(UNet, flow.network)
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
    labels = torch.arange(N_CLASSES)
    images = pictures(_colours(), labels, flow.config.data.image_size, seed=0)
    with torch.inference_mode():
        image = flow.autoencoder.encode(images).mean.repeat(_DRAWS_PER_FIT, 1, 1, 1)
        semantic = flow.semantic_maps(labels).repeat(_DRAWS_PER_FIT, 1, 1, 1)
        noise = torch.randn_like(semantic)
        z = torch.cat([image, noise], dim=1)
        _fit_last(network.out.conv, lambda: network(z, 1.0), torch.cat([image, noise - semantic], dim=1))


def _fit_last(conv: nn.Conv2d, run: Callable[[], object], target: Tensor) -> None:
    """Fit a 3 x 3 convolution by ridge regression, so that `run`, which calls it once, would give the target."""
    features = []
    hook = conv.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    try:
        run()
    finally:
        hook.remove()
    (feature,) = features
    windows = nn.functional.unfold(feature.float(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    wanted = target.permute(0, 2, 3, 1).flatten(0, 2)
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:_ROWS_PER_FIT]
    x = torch.cat([windows[chosen], torch.ones(len(chosen), 1)], dim=1).double()
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, x.T @ wanted[chosen].double()).float()
    with torch.no_grad():
        conv.weight.copy_(solution[:-1].T.reshape(conv.weight.shape))
        if conv.bias is not None:
            conv.bias.copy_(solution[-1])
