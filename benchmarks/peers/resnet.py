"""What a user would take instead: a ResNet-18 of torchvision, with the usual ways to get an uncertainty from it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import Unavailable, require
from msf.data import ImageDataset, Split, apply_flips, draw_flips, prepare_images, seeded_generator
from msf.judge.uncertainty import Draws, Prediction, entropy, make_prediction

N_PASSES = 16  # of MC dropout, as many as our draws
N_MEMBERS = 3
DROPOUT = 0.2
_BATCH = 64
_RATE, _DECAY, _WARMUP = 1e-3, 1e-2, 0.1
_N_VALIDATIONS = 10
_PART = 256
_SMALL = 64  # pictures below this size keep their resolution through the stem, as in the networks for CIFAR
_LIBRARIES: list[Any] = []


@dataclass(frozen=True)
class Trained:
    """A network with what its training took.

    Args:
        network: Its best state by the likelihood of the val split.
        seconds: Processor time.
        n_steps: Optimiser steps.
    """

    network: nn.Module
    seconds: float
    n_steps: int


def resnet18(n_classes: int, channels: int, size: int, *, dropout: float = 0.0) -> nn.Module:
    """Return torchvision's ResNet-18 with fresh weights.

    Args:
        n_classes: Classes.
        channels: Of the pictures.
        size: Their height and width; below 64 the first convolution is 3 x 3 without stride, and nothing is pooled.
        dropout: Behind each stage and before the last layer.

    Raises:
        Unavailable: torchvision is not installed.
    """
    network: Any = _models().resnet18(weights=None, num_classes=n_classes)
    if size < _SMALL:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if dropout:
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(network, name, nn.Sequential(getattr(network, name), nn.Dropout(dropout)))
    found: nn.Module = network
    return found


def train(dataset: ImageDataset, seconds: float, *, seed: int, dropout: float = 0.0) -> Trained:
    """Train for so many seconds of processor time: AdamW, one cosine cycle, flips as ours has them; best val epoch.

    Args:
        dataset: Trains on `train`, chooses on `val`.
        seconds: Of all threads together, validation included.
        seed: Of weights, order and flips.
        dropout: As for `resnet18`.

    Raises:
        Unavailable: torchvision is not installed.
    """
    torch.manual_seed(seed)
    network = resnet18(dataset.n_classes, dataset.n_channels, dataset.image_size, dropout=dropout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    started, n_steps, n_validated = time.process_time(), 0, 0
    best, kept = math.inf, network.state_dict()
    share = 0.0
    while share < 1 or n_validated == 0:
        generator = seeded_generator(seed, 1, n_steps)
        rows = torch.randint(len(dataset.train), (min(_BATCH, len(dataset.train)),), generator=generator)
        pictures = _prepared(dataset.train.images[rows], dataset)
        if dataset.flips:
            pictures = apply_flips(pictures, draw_flips(len(rows), generator))
        for group in optimizer.param_groups:
            group["lr"] = _RATE * _cycle(min(share, 1.0))
        network.train()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(network(pictures), dataset.train.labels[rows]))
        optimizer.step()
        n_steps += 1
        share = (time.process_time() - started) / seconds
        if share * _N_VALIDATIONS >= n_validated + 1 or share >= 1:
            n_validated += 1
            loss = float(functional.cross_entropy(logits(network, dataset.val, dataset), dataset.val.labels))
            if loss < best:
                best, kept = loss, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)
    return Trained(network.eval(), time.process_time() - started, n_steps)


@torch.no_grad()
def logits(network: nn.Module, split: Split, dataset: ImageDataset, *, is_random: bool = False) -> Tensor:
    """Return logits of a split's pictures [N, n_classes]; with `is_random` dropout stays on."""
    network.eval()
    if is_random:
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.train()
    return torch.cat([network(_prepared(part, dataset)) for part in torch.split(split.images, _PART)])


def temperature_of(network: nn.Module, dataset: ImageDataset) -> float:
    """Return the temperature that makes the val split most likely.

    Source:
        Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    values, labels = logits(network, dataset.val, dataset).double(), dataset.val.labels
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(values / log_temperature.exp(), labels)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp())


def as_prediction(members: Sequence[Tensor]) -> Prediction:
    """Return what one or several networks, or passes of one, predict: the mean of their probabilities.

    Args:
        members: Probabilities of each, [N, n_classes].
    """
    each = torch.stack([member.double() for member in members])  # [S, N, n_classes]
    probability = each.mean(0)
    votes = functional.one_hot(each.argmax(2), each.shape[2]).double().mean(0)
    draws = Draws(
        class_distance=1 - probability,
        distance_std=torch.zeros_like(probability),
        votes=votes,
        pixel_votes=votes,
        code_probability=probability / probability.sum(1, keepdim=True),
        code_entropy=entropy(each).mean(0),
    )
    return make_prediction(draws, n_samples=len(members), nfe=1, micro_batch=1)


def _prepared(images: Tensor, dataset: ImageDataset) -> Tensor:
    return prepare_images(images, dataset.image_size, dataset.n_channels)


def _cycle(share: float) -> float:
    if share < _WARMUP:
        return 0.05 + 0.95 * share / _WARMUP
    return 0.5 * (1 + math.cos(math.pi * (share - _WARMUP) / (1 - _WARMUP)))


def _models() -> Any:
    """Import torchvision's networks, also where its operators were built for another PyTorch, as PyPI's are for CUDA.

    Its package registers fakes for two operators without looking whether they are there; declared, it imports, and the
    networks need none of them.
    """
    try:
        return require("torchvision.models")
    except Unavailable as error:
        if "torchvision::" not in str(error) or _LIBRARIES:
            raise
    make: Any = torch.library.Library
    library = make("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return require("torchvision.models")
