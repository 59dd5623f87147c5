"""One evaluation of the velocity network at the published sizes: ours, as published, tuned, and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.agreement import close_in_rms, same_numbers
from benchmarks.context import Context
from benchmarks.peers import unet
from benchmarks.peers.unet import PeerVelocity
from benchmarks.published import GFLOP, PARAMETERS
from benchmarks.registry import Build, Comparison, Job, Subject, Work
from benchmarks.rows import OURS
from benchmarks.timing import Plan
from benchmarks.workloads import Workload
from msf.autoencoder import KLAutoencoder
from msf.config import RECIPES, PrecisionName
from msf.network.inference import ALL_REWRITES, InferenceForm, Rewrite, inference_form, precision_of
from msf.network.inference.precision import dtype_for
from msf.network.unet import UNet

SUITE = "network"
MICRO_BATCH = 16
MODEL = {"pixel": "28 x 28", "latent": "224 x 224 latent"}
CONFIGS = {"pixel": RECIPES["published-28"].network, "latent": RECIPES["published-224"].network}
CHANNELS = {"pixel": 6, "latent": 8}
# How each peer's network is made from ours; `compile` and `compile-freezing` in both precisions, since which one wins
# depends on the processor.
PEERS: dict[str, Callable[[UNet, torch.device], PeerVelocity]] = {
    "authors": unet.published,
    "eager-bf16": partial(unet.eager, dtype=torch.bfloat16),
    "eager-fp32": partial(unet.eager, dtype=torch.float32),
    "compile": partial(unet.compiled, dtype=torch.bfloat16),
    "compile-fp32": partial(unet.compiled, dtype=torch.float32),
    "compile-freezing": partial(unet.compiled, dtype=torch.bfloat16, freezing=True),
    "compile-freezing-fp32": partial(unet.compiled, dtype=torch.float32, freezing=True),
}
GOALS = {
    name: {kind: least if kind == "authors" else 1.4 for kind in PEERS}
    for name, least in (("latent", 2.2), ("pixel", 2.1))
}


def jobs() -> Iterator[Job]:
    for name in ("latent", "pixel"):
        yield _evaluation(name)
        yield _ablation(name)
    yield _decoder()


def workload(name: str, context: Context) -> Workload:
    """Return the pixel or latent model, small in a quick run."""
    return workloads.pixel(context.quick) if name == "pixel" else workloads.latent(context.quick)


@cache
def velocity(kind: str, name: str, quick: bool, device: torch.device) -> PeerVelocity:
    """Build a variant's network once per process; compiling one takes a minute.

    Raises:
        Unavailable: It cannot run here.
    """
    network = (workloads.pixel(quick) if name == "pixel" else workloads.latent(quick)).network
    return PEERS[kind](network, device)


def ours(
    network: UNet, time_grid: list[float], device: torch.device, precision: PrecisionName = "auto"
) -> InferenceForm:
    """Return our inference form of the network, in the precision that predictions of many draws have by default."""
    dtype = dtype_for(precision, network.config.base_channels, torch.float32, device)
    return inference_form(copy.deepcopy(network).to(device), time_grid, dtype=dtype)


def _evaluation(name: str) -> Job:
    def state(context: Context) -> Tensor:
        model = workload(name, context)
        channels, height, width = model.flow.image_shape
        n = 2 if context.quick else MICRO_BATCH
        shape = (n, channels + model.flow.semantic_shape[0], height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device)

    def our_form(precision: PrecisionName) -> Build:
        def build(context: Context) -> Subject:
            z = state(context)
            field = ours(workload(name, context).network, [1.0, 0.0], context.device, precision)
            chosen = f"{precision_of(field.dtype)}, chosen by auto" if precision == "auto" else precision
            return Subject(lambda: field(z, 1.0), note=chosen)

        return build

    def plain(context: Context) -> Subject:
        z = state(context)
        network = copy.deepcopy(workload(name, context).network).to(context.device, torch.bfloat16)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Subject(lambda: network(z.to(torch.bfloat16), 1.0).float(), note="the plain module in bf16")

    def peer(kind: str) -> Build:
        def build(context: Context) -> Subject:
            z, field = state(context), velocity(kind, name, context.quick, context.device)
            field(z, 1.0)  # compiles it, after which its note is complete
            return Subject(lambda: field(z, 1.0), note=field.note)

        return build

    numel = MICRO_BATCH * CHANNELS[name] * 32 * 32
    return Comparison(
        suite=SUITE,
        name=f"{name}-evaluation-mb16",
        note=f"published {MODEL[name]} network, micro-batch {MICRO_BATCH}, t = 1",
        tests=("tests/msf/network/test_unet.py", "tests/msf/network/inference"),
        variants={
            OURS: our_form("auto"),
            "ours-fp32": our_form("fp32"),
            "ours-bf16": our_form("bf16"),
            "ours-plain": plain,
            **{kind: peer(kind) for kind in PEERS},
        },
        unit="ms",
        plan=Plan(n_rounds=15, warm_up_seconds=1.0, sample_seconds=0),
        agree=close_in_rms(3e-2),
        work=Work(MICRO_BATCH * GFLOP[name] * 1e9, 2 * PARAMETERS[name] + 2 * 4 * numel, torch.bfloat16),
        n_items=MICRO_BATCH,
        items="evaluations",
        goals=GOALS[name],
    )


def _ablation(name: str) -> Job:
    """What each rewrite of the inference form gives: the same evaluation without it."""

    def variant(left_out: Rewrite | None) -> Build:
        def build(context: Context) -> Subject:
            model = workload(name, context)
            n = 2 if context.quick else MICRO_BATCH
            generator = torch.Generator().manual_seed(0)
            image, noise = (
                torch.randn(rows, *shape, generator=generator).to(context.device)
                for rows, shape in ((1, model.flow.image_shape), (n, model.flow.semantic_shape))
            )
            network = copy.deepcopy(model.network).to(context.device)
            field = inference_form(
                network, (1.0,), dtype=torch.bfloat16, rewrites=ALL_REWRITES - ({left_out} if left_out else set())
            )
            semantic = slice(image.shape[1], image.shape[1] + noise.shape[1])
            z = torch.cat([image.expand(n, -1, -1, -1), noise], dim=1)

            def evaluate() -> Tensor:
                return field(z, 1.0, channels=semantic).float()

            return Subject(evaluate, note="all rewrites" if left_out is None else f"without {left_out.value}")

        return build

    return Comparison(
        suite=SUITE,
        name=f"{name}-ablation-mb16",
        note=f"published {MODEL[name]} network, last step of classifying one picture, {MICRO_BATCH} samples, bf16",
        tests=("tests/msf/network/inference",),
        variants={OURS: variant(None)} | {f"ours-without-{rewrite.value}": variant(rewrite) for rewrite in Rewrite},
        unit="ms",
        plan=Plan(n_rounds=15, warm_up_seconds=0.5, sample_seconds=0),
        agree=close_in_rms(3e-2),
        n_items=MICRO_BATCH,
        items="evaluations",
    )


@cache
def _decoders(size: int, device: torch.device) -> Mapping[str, Callable[[], Tensor]]:
    """Calls that decode the same latents of one picture.

    `ours` is what the latent path runs: convolutions laid out, norms and sums fused, channels-last.
    """
    plain = workloads.latent().diffusers_autoencoder(device)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    ours = KLAutoencoder(copy.deepcopy(plain)).fold()
    latents = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0)).to(device)
    unscaled = latents / ours.scaling_factor
    unscaled_last = unscaled.to(memory_format=torch.channels_last)
    return {
        OURS: lambda: ours.decode(latents),
        "diffusers": lambda: plain.decode(unscaled).sample,
        "diffusers-channels-last": lambda: last.decode(unscaled_last).sample,
    }


def _decoder() -> Job:
    def variant(name: str) -> Build:
        return lambda context: _decoders(64 if context.quick else 256, context.device)[name]

    return Comparison(
        suite=SUITE,
        name="decode-sd-vae-256",
        note="one 256x256 picture, float32, random weights",
        tests=("tests/msf/autoencoder/test_folded.py",),
        variants={name: variant(name) for name in (OURS, "diffusers", "diffusers-channels-last")},
        unit="ms",
        plan=Plan(n_rounds=5, warm_up_seconds=0, sample_seconds=0),
        agree=same_numbers(1e-4),
        n_items=1,
        items="pictures",
        goals={"diffusers": 1.15},
    )
