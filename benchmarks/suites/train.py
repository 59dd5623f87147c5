"""One optimiser step: path, forward, backward, clipping, AdamW, weight average; bf16 arithmetic as published."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from unittest import mock

import torch
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
from msf.data import ImageDataset, Split
from msf.files.cache import CACHE_ENV
from msf.training.ema import weight_average
from msf.training.losses import symmetric_loss
from msf.training.train import TrainingRun
from msf_kernels import symmetric_path

SUITE = "train"
BATCH = {"pixel": 16, "latent": 4}
IMAGE_WEIGHT, SIGMA_MIN, LEARNING_RATE, AVERAGE_DECAY = 0.7, 1e-4, 4e-4, 0.7


def jobs() -> Iterator[Job]:
    yield _step("pixel")
    yield _step("latent")
    yield _cached_step()


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
        network = unet.published_unet(workload(name, context).network).to(context.device)
        for module in network.modules():
            if getattr(module, "attention", None) is not None:
                # Always on in the published code; the package's own checkpointing forgets autocast.
                module.forward = functools.partial(checkpoint, module._forward, use_reentrant=False)
        scale = t[:, None, None, None]

        def path() -> tuple[Tensor, Tensor]:
            noise_image, noise_semantic = torch.randn_like(image), torch.randn_like(semantic)
            image_t = (1 - (1 - SIGMA_MIN) * scale) * noise_image + scale * image
            semantic_t = (1 - (1 - SIGMA_MIN) * scale) * semantic + scale * noise_semantic
            d_image = image - (1 - SIGMA_MIN) * noise_image
            d_semantic = noise_semantic - (1 - SIGMA_MIN) * semantic
            return torch.cat([image_t, semantic_t], dim=1), torch.cat([d_image, d_semantic], dim=1)

        return Subject(_training(network, path, lambda z: network(t, z), image.shape[1]))

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
    from accelerate import Accelerator

    flow, batch = workloads.latent(quick).flow, BATCH["latent"]
    settings = dataclasses.replace(flow.config, train=dataclasses.replace(flow.config.train, batch_size=batch))
    size, generator = flow.config.data.image_size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(batch))
    names = tuple(str(label) for label in range(batch))
    data = ImageDataset(
        name="random", train=split, val=split, test=split, class_names=names, flips=False, is_ordinal=False,
        licence="", citation="", fingerprint="random",
    )  # fmt: skip
    folder = Path(workloads.temporary_folder().name)
    calls: dict[str, Callable[[], Tensor]] = {}
    for name in (OURS, "on-the-fly"):
        run = TrainingRun(settings, data, folder / name, Accelerator(cpu=device.type == "cpu"), resume=False)
        with mock.patch.dict(os.environ, {CACHE_ENV: str(folder / "cache")}):
            run.encode_images(use_cache=name == OURS, progress=None)
        calls[name] = lambda run=run: run.step(torch.arange(batch))  # type: ignore[misc]
    return calls


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
) -> Callable[[], object]:
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    average = weight_average(network, AVERAGE_DECAY)

    def step() -> Tensor:
        z_t, dz_t = path()
        with torch.autocast(z_t.device.type, torch.bfloat16):
            v = velocity(z_t)
        loss = symmetric_loss(v, dz_t, image_channels, IMAGE_WEIGHT).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(network)
        return loss.detach()

    return step
