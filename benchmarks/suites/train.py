"""One optimiser step: path, forward, backward, clipping, AdamW, weight average.

The loop's step begins with pictures and runs in the precision that `msf train` chooses; the others begin with given
tensors, in bf16 arithmetic as published.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks import workloads
from benchmarks.agreement import same_numbers
from benchmarks.context import Context
from benchmarks.peers import unet
from benchmarks.registry import Build, Comparison, Job, Subject
from benchmarks.rows import OURS
from benchmarks.suites.network import workload
from benchmarks.timing import Plan
from msf.config import RECIPES
from msf.data import ImageDataset, Split
from msf.files.cache import CACHE_ENV
from msf.network.unet import UNet
from msf.training.ema import weight_average
from msf.training.losses import symmetric_loss
from msf.training.processes import Processes, accelerator_on
from msf.training.train import TrainingRun
from msf_kernels import symmetric_path

SUITE = "train"
BATCH = {"pixel": 16, "latent": 4}
IMAGE_WEIGHT, SIGMA_MIN, LEARNING_RATE, AVERAGE_DECAY = 0.7, 1e-4, 4e-4, 0.7


def jobs() -> Iterator[Job]:
    yield _step("pixel")
    yield _step("latent")
    yield _cached_step()
    yield _loop_step()


def _step(name: str) -> Job:
    batch = BATCH[name]

    def inputs(context: Context) -> tuple[Tensor, Tensor, Tensor]:
        flow, generator = workload(name, context).flow, torch.Generator().manual_seed(0)
        image = torch.randn(batch, *flow.image_shape, generator=generator)
        semantic = flow.semantic_maps(torch.arange(batch) % 8)
        t = torch.rand(batch, generator=generator)
        return image.to(context.device), semantic.to(context.device), t.to(context.device)

    def ours(context: Context) -> Subject:
        image, semantic, t = inputs(context)
        index = torch.arange(batch, device=context.device)
        network = copy.deepcopy(workload(name, context).network).to(context.device)
        return Subject(
            _training(
                network,
                lambda: symmetric_path(image, semantic, t, sample_index=index, seed=0, sigma_min=SIGMA_MIN),
                lambda z: network(z, t),
                image.shape[1],
            )
        )

    def authors(context: Context) -> Subject:
        image, semantic, t = inputs(context)
        network = _published_training(workload(name, context).network, context.device)
        return Subject(
            _training(network, lambda: _published_path(image, semantic, t), lambda z: network(t, z), image.shape[1])
        )

    return Comparison(
        suite=SUITE,
        name=f"{name}-train-step-b{batch}",
        note=f"published network, batch {batch} (published: 64), bf16 autocast, latents given",
        tests=("tests/msf/training/test_losses.py", "tests/msf/flow/test_path.py", "tests/msf/training/test_ema.py"),
        variants={OURS: ours, "authors": authors},
        unit="ms",
        plan=Plan(n_rounds=11, warm_up_seconds=1.0, sample_seconds=0.0),
        n_items=batch,
        items="pictures",
        trains=True,
    )


@cache
def _latent_steps(quick: bool, device: torch.device) -> Mapping[str, Callable[[], Tensor]]:
    """Calls that take a step on the same batch: from cached latents, and encoding the pictures every time."""
    processes = Processes(accelerator_on(device))
    flow, batch = workloads.latent(quick).flow, BATCH["latent"]
    settings = dataclasses.replace(flow.config, train=dataclasses.replace(flow.config.train, batch_size=batch))
    data = _random_pictures(batch, flow.config.data.image_size, flips=False)
    folder = Path(workloads.temporary_folder().name)
    calls: dict[str, Callable[[], Tensor]] = {}
    for name in (OURS, "on-the-fly"):
        run = TrainingRun(settings, data, folder / name, processes, resume=False)
        with mock.patch.dict(os.environ, {CACHE_ENV: str(folder / "cache")}):
            run.encode_images(use_cache=name == OURS, progress=None)
        calls[name] = lambda run=run: run.step(torch.arange(batch))  # type: ignore[misc]
    return calls


def _random_pictures(n: int, size: int, *, flips: bool) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, 3), generator=generator, dtype=torch.uint8)
    n_classes = min(n, workloads.N_CLASSES)  # each has a picture
    split = Split(images, torch.arange(n) % n_classes)
    return ImageDataset(
        name="random", train=split, val=split, test=split, flips=flips, is_ordinal=False, licence="", citation="",
        class_names=tuple(str(label) for label in range(n_classes)), fingerprint="random",
    )  # fmt: skip


class _PerItem(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pictures and colour masks one by one, as the authors' loader makes them: Pillow, then tensors."""

    def __init__(self, data: ImageDataset, palette: list[list[float]], size: int, beta: float) -> None:
        self._pictures = [Image.fromarray(picture.numpy()) for picture in data.train.images]
        self._labels = data.train.labels.tolist()
        self._palette = palette
        self._size = size
        self._beta = beta

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = self._pictures[index].resize((self._size, self._size), Image.Resampling.BILINEAR)
        for way in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
            if torch.rand(()) < 0.5:
                picture = picture.transpose(way)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        mask = torch.tensor(self._palette[self._labels[index]])[:, None, None].expand(-1, self._size, self._size)
        return image, mask + self._beta * (torch.rand_like(image) - 0.5) / 127.5


def _loop_step() -> Job:
    """A step as the loops take it, from stored pictures to averaged weights."""
    batch = BATCH["pixel"]

    def data(context: Context) -> ImageDataset:
        return _random_pictures(4 * batch, 28, flips=True)

    def ours(context: Context) -> Subject:
        network = workload("pixel", context).network
        recipe = RECIPES["published-28"]
        train = dataclasses.replace(recipe.train, batch_size=batch, precision="auto")
        experiment = dataclasses.replace(recipe, network=network.config, train=train)
        folder = Path(workloads.temporary_folder().name) / "loop"
        run = TrainingRun(experiment, data(context), folder, Processes(accelerator_on(context.device)), resume=False)
        run.encode_images(use_cache=False, progress=None)
        run.flow.network.load_state_dict(network.state_dict())
        run.network.train()
        return Subject(lambda: run.step(torch.arange(batch)))

    def authors(context: Context) -> Subject:
        work = workload("pixel", context)
        network = _published_training(work.network, context.device)
        pictures = _PerItem(data(context), work.palette, work.picture_size, RECIPES["published-28"].code.beta)
        loader = torch.utils.data.DataLoader(pictures, batch_size=batch, shuffle=True)
        batches = iter(loader)
        t = torch.empty(batch)

        def path() -> tuple[Tensor, Tensor]:
            nonlocal batches
            found = next(batches, None)
            if found is None:
                batches = iter(loader)
                found = next(batches)
            image, semantic = (part.to(context.device) for part in found)
            t.uniform_()
            return _published_path(image, semantic, t.to(context.device))

        return Subject(_training(network, path, lambda z: network(t.to(z.device), z), 3, uses_bf16=False, clip=0.0))

    return Comparison(
        suite=SUITE,
        name=f"pixel-train-loop-b{batch}",
        note=f"published network, batch {batch} (published: 64), stored 28 x 28 pictures to averaged weights; ours in "
        "the precision of --precision auto here, the authors' loop in fp32 with one picture after the other",
        tests=("tests/msf/training/test_train.py", "tests/msf/training/test_losses.py"),
        variants={OURS: ours, "authors": authors},
        unit="ms",
        plan=Plan(n_rounds=11, warm_up_seconds=1.0, sample_seconds=0.0),
        n_items=batch,
        items="pictures",
        goals={"authors": 1.5},
        trains=True,
    )


def _published_training(network: UNet, device: torch.device) -> nn.Module:
    """Return torchcfm's U-Net with attention that is computed again in the backward pass, as the authors train it."""
    peer = unet.published_unet(network).to(device)
    for module in peer.modules():
        if getattr(module, "attention", None) is not None:
            # Always on in the published code; the package's own checkpointing forgets autocast.
            module.forward = functools.partial(checkpoint, module._forward, use_reentrant=False)
    return peer


def _published_path(image: Tensor, semantic: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return states and targets, operation by operation; t is [N]."""
    scale = t[:, None, None, None]
    noise_image, noise_semantic = torch.randn_like(image), torch.randn_like(semantic)
    image_t = (1 - (1 - SIGMA_MIN) * scale) * noise_image + scale * image
    semantic_t = (1 - (1 - SIGMA_MIN) * scale) * semantic + scale * noise_semantic
    d_image = image - (1 - SIGMA_MIN) * noise_image
    d_semantic = noise_semantic - (1 - SIGMA_MIN) * semantic
    return torch.cat([image_t, semantic_t], dim=1), torch.cat([d_image, d_semantic], dim=1)


def _cached_step() -> Job:
    def variant(name: str) -> Build:
        return lambda context: _latent_steps(context.quick, context.device)[name]

    return Comparison(
        suite=SUITE,
        name="train-step-latent-256-batch-4",
        note="4 pictures of 256 pixels, published network in bf16, full-size encoder in fp32; losses must be equal",
        tests=("tests/msf/autoencoder/test_latent_cache.py", "tests/msf/training/test_train_latents.py"),
        variants={name: variant(name) for name in (OURS, "on-the-fly")},
        unit="s",
        plan=Plan(n_rounds=3, warm_up_seconds=0.0, sample_seconds=0.0),
        agree=same_numbers(0.0),
        goals={"on-the-fly": 5.0},
        trains=True,
    )


def _training(
    network: nn.Module,
    path: Callable[[], tuple[Tensor, Tensor]],
    velocity: Callable[[Tensor], Tensor],
    image_channels: int,
    *,
    uses_bf16: bool = True,
    clip: float = 1.0,
) -> Callable[[], object]:
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    average = weight_average(network, AVERAGE_DECAY)

    def step() -> Tensor:
        z_t, dz_t = path()
        with torch.autocast(z_t.device.type, torch.bfloat16, enabled=uses_bf16):
            v = velocity(z_t)
        loss = symmetric_loss(v, dz_t, image_channels, IMAGE_WEIGHT).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        average.update_parameters(network)
        return loss.detach()

    return step
