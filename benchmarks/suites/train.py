"""One optimiser step: path, forward, backward, clipping, AdamW, weight average; bf16 arithmetic as published."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks import latent_training
from benchmarks.peers import unet
from benchmarks.registry import Comparison, Context, External, Job, Subject
from benchmarks.rows import OURS
from benchmarks.suites.network import workload
from benchmarks.timing import Plan
from msf.ema import weight_average
from msf.losses import symmetric_loss
from msf_kernels import symmetric_path

SUITE = "train"
BATCH = {"pixel": 16, "latent": 4}
IMAGE_WEIGHT, SIGMA_MIN, LEARNING_RATE, AVERAGE_DECAY = 0.7, 1e-4, 4e-4, 0.7


def jobs() -> Iterator[Job]:
    yield _step("pixel")
    yield _step("latent")
    yield External(
        suite=SUITE,
        name="train-step-latent-256-batch-4",
        note="latents from the cache against encoding the pictures at every step",
        tests=("tests/msf/data/test_latent_cache.py",),
        take=lambda context: latent_training.measure(
            context.writer,
            context.device,
            batch_size=4,
            plan=context.plan(Plan(n_rounds=3, warm_up_seconds=0.0, sample_seconds=0.0)),
        ),
    )


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
        tests=("tests/msf/test_losses.py", "tests/msf/test_path.py", "tests/msf/test_ema.py"),
        variants={OURS: ours, "authors": authors},
        unit="ms",
        plan=Plan(n_rounds=11, warm_up_seconds=1.0, sample_seconds=0.0),
        n_items=batch,
        items="pictures",
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
