"""From pictures to decisions, and from labels to pictures: encoding, sampling, solving, reading out.

Peers are the published pipeline, the same tuned, and the strongest that one can assemble: the compiled network with
our read-out from the latents. Where a peer is too slow to run all of its samples in minutes, the part that grows with
their number is timed on a few and scaled; its note says so, and `--full` runs all.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks import workloads
from benchmarks.agreement import close_in_rms, same_decisions
from benchmarks.context import Context
from benchmarks.peers import require
from benchmarks.peers.authors import PublishedPipeline
from benchmarks.registry import Build, Comparison, Job, NotMeasured, Subject
from benchmarks.rows import OURS
from benchmarks.suites import startup
from benchmarks.suites.network import velocity, workload
from benchmarks.timing import Part, Plan
from msf import MedSymmFlow

SUITE = "end-to-end"
MICRO_BATCH = 16
N_COMPARED = {"pixel": 16, "latent": 8}
TESTS = (
    "tests/msf/flow/test_classify.py", "tests/msf/test_golden_end_to_end.py", "tests/msf/network/inference",
    "tests/msf/latent/test_latent_flow.py",
)  # fmt: skip
GENERATE_TESTS = (
    "tests/msf/flow/test_generate.py",
    "tests/msf/network/inference",
    "tests/msf/latent/test_latent_flow.py",
)
SIZES = {"pixel": "32x32 pictures", "latent": "256x256 pictures, 32x32 latents"}
SAMPLES = (1, 16, 64, 256, 1024)
STEPS = (5, 25)
# Rounds by the largest number of evaluations in a call of ours.
_ROUNDS = {"pixel": {16: 7, 64: 5, 256: 3, 1024: 2}, "latent": {64: 3, 256: 2, 1024: 1}}
_LONG = 64


def jobs() -> Iterator[Job]:
    yield from startup.jobs()
    yield _uncertainty("latent", 32, {"authors": 40.0, "authors-as-published": 80.0})
    yield _uncertainty("pixel", 64, {"authors": 2.2})
    for name in ("latent", "pixel"):
        for n_samples in SAMPLES:
            yield _one_picture(name, n_samples)
        for n_samples in SAMPLES:
            yield _many_pictures(name, n_samples)
        for n_steps in STEPS:
            yield _several_steps(name, n_steps)
        yield _generation(name)


@cache
@torch.inference_mode(False)  # the flow watches its weights for changes, which inference tensors do not tell
def our_flow(name: str, quick: bool, device: torch.device) -> MedSymmFlow:
    """Our flow as a user has it: `precision="auto"` chooses the arithmetic, and the prediction says which."""
    model = workloads.pixel(quick) if name == "pixel" else workloads.latent(quick)
    return copy.deepcopy(model.flow).to(device)


@cache
def pipeline(kind: str, name: str, quick: bool, device: torch.device, decodes_both: bool) -> PublishedPipeline:
    """The published pipeline around one form of the network; bf16 in the autoencoder, too, where that form is tuned.

    Raises:
        Unavailable: It cannot run here.
    """
    model = workloads.pixel(quick) if name == "pixel" else workloads.latent(quick)
    require("torchdiffeq")
    autoencoder = _published_autoencoder(name, quick, device, kind != "authors")
    return PublishedPipeline(
        velocity(kind, name, quick, device),
        model.palette,
        autoencoder,
        model.flow.autoencoder.scaling_factor,
        decodes_both=decodes_both,
        batch=MICRO_BATCH,
    )


@cache
def _published_autoencoder(name: str, quick: bool, device: torch.device, is_tuned: bool) -> object:
    if name == "pixel":
        return None
    model = workloads.latent(quick).diffusers_autoencoder(device)
    return _Tuned(model) if is_tuned else model


class _Tuned:
    """A diffusers autoencoder in bf16 and channels-last, fp32 outside."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, images: Tensor) -> object:
        posterior = self.model.encode(images.to(torch.bfloat16)).latent_dist
        posterior.mean = posterior.mean.float()
        return dataclasses.make_dataclass("Encoded", ["latent_dist"])(posterior)

    def decode(self, latents: Tensor) -> object:
        sample = self.model.decode(latents.to(torch.bfloat16)).sample.float()
        return dataclasses.make_dataclass("Decoded", ["sample"])(sample)


def _rounds(name: str, n_evaluations: int) -> Plan:
    rounds = next(rounds for most, rounds in _ROUNDS[name].items() if n_evaluations <= most)
    return Plan(n_rounds=rounds, warm_up_seconds=0, sample_seconds=0)


def _our_decisions(context: Context, name: str, n_steps: int, readout: str) -> Callable[[], Mapping[str, Tensor]]:
    """The same pictures and noise for all variants, to compare decisions."""
    model, flow = workload(name, context), our_flow(name, context.quick, context.device)
    n = N_COMPARED[name]

    def result() -> Mapping[str, Tensor]:
        images, noise = model.images(n).to(context.device), model.noise(n, 1).to(context.device)
        found = flow.classify(images, n_samples=1, n_steps=n_steps, noise=noise, readout=readout, micro_batch=n)
        return {"label": found.label, "distance": found.class_distance}

    return result


@cache
def _peer_decisions(kind: str, name: str, quick: bool, device: torch.device, n_steps: int) -> Mapping[str, Tensor]:
    """Computed once for a pipeline with and without its second decode, which changes no decision."""
    model = workloads.pixel(quick) if name == "pixel" else workloads.latent(quick)
    peer, n = pipeline(kind, name, quick, device, False), N_COMPARED[name]
    return peer.classify(model.images(n).to(device), model.noise(n, 1).to(device), n_steps)


def _ours(name: str, n_pictures: int, n_samples: int, n_steps: int = 1, n_timed: int | None = None) -> Build:
    """Our classification; `n_timed` of the pictures are timed and scaled where all would take minutes."""

    def build(context: Context) -> Subject:
        model, flow = workload(name, context), our_flow(name, context.quick, context.device)
        n = n_pictures if context.full else n_timed or n_pictures
        images = model.images(n).to(context.device)
        return Subject(
            [Part(lambda: flow.classify(images, n_samples=n_samples, n_steps=n_steps), n_pictures / n)],
            _our_decisions(context, name, n_steps, "latent"),
            f"{n} of {n_pictures} pictures timed" if n < n_pictures else "",
        )

    return build


def _our_decoded(name: str, n_samples: int, n_timed: int) -> Build:
    def build(context: Context) -> Subject:
        model, flow = workload(name, context), our_flow(name, context.quick, context.device)
        images = model.images(1).to(context.device)
        n = n_samples if context.full else n_timed
        latents = flow.space.encode(images, context.device)

        def sample() -> object:
            return flow.classify(images, n_samples=n, readout="decoded", micro_batch=n_timed, latents=latents)

        return Subject(
            [Part(lambda: flow.space.encode(images, context.device)), Part(sample, n_samples / n)],
            _our_decisions(context, name, 1, "decoded"),
            f"the published read-out, decoder folded; encoding and {n} of {n_samples} samples timed",
        )

    return build


def _peer(
    kind: str, name: str, n_samples: int, n_steps: int = 1, n_timed: int | None = None, decodes_both: bool = False
) -> Build:
    """The published pipeline on one picture: encoded once, then its samples."""

    def build(context: Context) -> Subject:
        peer = pipeline(kind, name, context.quick, context.device, decodes_both)
        model = workload(name, context)
        image = model.images(1).to(context.device)
        n = n_samples if context.full else n_timed or n_samples
        shape = (n, *model.flow.semantic_shape)
        encoded = peer.encode(image).expand(n, -1, -1, -1)

        def sample() -> Tensor:
            return peer.distances(encoded, torch.randn(shape, device=context.device), n_steps)

        return Subject(
            [Part(lambda: peer.encode(image)), Part(sample, n_samples / n)],
            lambda: _peer_decisions(kind, name, context.quick, context.device, n_steps),
            f"encoding and {n} of {n_samples} samples timed" if n < n_samples else "",
        )

    return build


def _compiled_with_our_readout(n_samples: int) -> Build:
    """The compiled network on latents, compared with the classes' latents: the published pipeline has no such thing."""

    def build(context: Context) -> Subject:
        model = workload("latent", context)
        encoder = _published_autoencoder("latent", context.quick, context.device, True)
        codes = model.flow.semantic_maps(torch.arange(workloads.N_CLASSES)).to(context.device)
        field = velocity("compile-freezing", "latent", context.quick, context.device)

        def classify(images: Tensor, noise: Tensor) -> Mapping[str, Tensor]:
            latents = encoder.encode(images).latent_dist.mode() * workloads.SCALING_FACTOR  # type: ignore[attr-defined]
            image = latents.repeat_interleave(len(noise) // len(images), dim=0)
            distances = []
            for first in range(0, len(noise), MICRO_BATCH):
                rows = slice(first, first + MICRO_BATCH)
                # Compiled for one batch size: the last part is filled up.
                n_missing = max(0, MICRO_BATCH - len(noise[rows]))
                z = torch.cat([image[rows], noise[rows]], dim=1)
                v = field(nn.functional.pad(z, (0, 0, 0, 0, 0, 0, 0, n_missing)), 1.0)[: len(z)]
                semantic = noise[rows] - v[:, latents.shape[1] :]
                distances.append((semantic[:, None] - codes).norm(dim=2).mean(dim=(2, 3)))
            distance = torch.cat(distances).view(len(images), -1, len(codes)).mean(dim=1)
            return {"label": distance.argmin(dim=1), "distance": distance}

        image = model.images(1).to(context.device)
        shape = (n_samples, *model.flow.semantic_shape)
        n = N_COMPARED["latent"]
        return Subject(
            lambda: classify(image, torch.randn(shape, device=context.device)),
            lambda: classify(model.images(n).to(context.device), model.noise(n, 1).flatten(0, 1).to(context.device)),
            "bf16, read-out from the latents as ours",
        )

    return build


def _uncertainty(name: str, n_samples: int, goals: Mapping[str, float]) -> Job:
    variants: dict[str, Build] = {OURS: _ours(name, 1, n_samples)}
    if name == "latent":
        variants |= {
            "ours-decoded": _our_decoded(name, n_samples, 2),
            "authors": _peer("authors", name, n_samples, n_timed=2),
            "authors-as-published": _peer("authors", name, n_samples, n_timed=2, decodes_both=True),
            "eager-bf16": _peer("eager-bf16", name, n_samples, n_timed=2),
            "compile-freezing": _compiled_with_our_readout(n_samples),
        }
    else:
        variants |= {kind: _peer(kind, name, n_samples) for kind in ("authors", "eager-bf16", "compile-freezing")}
    return Comparison(
        suite=SUITE,
        name=f"{name}-uncertainty-s{n_samples}-1step",
        note=f"one picture, {n_samples} samples, 1 Euler step, {SIZES[name]}, 8 classes; with encoding",
        tests=TESTS,
        variants=variants,
        unit="s",
        plan=Plan(n_rounds=3 if name == "latent" else 9, warm_up_seconds=0, sample_seconds=0),
        agree=same_decisions(0.75),
        agrees_at_full_size_only=name == "latent",
        n_items=n_samples,
        goals=goals,
    )


def _one_picture(name: str, n_samples: int) -> Job:
    variants: dict[str, Build] = {OURS: _ours(name, 1, n_samples)}
    if n_samples == 1:
        variants["authors"] = _peer("authors", name, 1)
    return Comparison(
        suite=SUITE,
        name=f"{name}-classify-1-picture-s{n_samples}",
        note=f"one picture, {n_samples} samples, 1 Euler step, {SIZES[name]}; with encoding",
        tests=TESTS,
        variants=variants,
        unit="s",
        plan=_rounds(name, n_samples),
        is_warm=n_samples > _LONG,
        n_items=n_samples,
    )


def _many_pictures(name: str, n_samples: int) -> Job:
    job = f"{name}-classify-64-pictures-s{n_samples}"
    if n_samples > 16:
        return NotMeasured(
            suite=SUITE,
            name=job,
            note=f"64 pictures share no work: 64 times {name}-classify-1-picture-s{n_samples}, too long for this suite",
            tests=TESTS,
        )
    # At least one full micro-batch: a part of one would count idle work.
    n_timed = max(4, MICRO_BATCH // n_samples) if name == "latent" else None
    return Comparison(
        suite=SUITE,
        name=job,
        note=f"64 pictures, {n_samples} samples each, 1 Euler step, {SIZES[name]}; with encoding",
        tests=TESTS,
        variants={OURS: _ours(name, 64, n_samples, n_timed=n_timed)},
        unit="s",
        plan=_rounds(name, (n_timed or 64) * n_samples),
        is_warm=n_samples > 1,
        n_items=64 * n_samples,
    )


def _several_steps(name: str, n_steps: int) -> Job:
    n_samples = 16
    return Comparison(
        suite=SUITE,
        name=f"{name}-classify-s{n_samples}-{n_steps}step",
        note=f"one picture, {n_samples} samples, {n_steps} Euler steps, {SIZES[name]}; with encoding",
        tests=TESTS,
        variants={
            OURS: _ours(name, 1, n_samples, n_steps),
            "authors": _peer("authors", name, n_samples, n_steps),
        },
        unit="s",
        plan=Plan(n_rounds=2, warm_up_seconds=0, sample_seconds=0),
        is_warm=True,
        n_items=n_samples,
    )


def _generation(name: str) -> Job:
    n_pictures, n_steps = 64, 25
    n_timed = 4 if name == "latent" else 16

    def labels(n: int) -> Tensor:
        return torch.arange(n) % workloads.N_CLASSES

    def timed_count(context: Context) -> int:
        return n_pictures if context.full else n_timed

    def note(context: Context) -> str:
        n = timed_count(context)
        return f"{n} of {n_pictures} pictures timed" if n < n_pictures else ""

    def compared(context: Context) -> tuple[Tensor, Tensor]:
        flow = workload(name, context).flow
        noise = torch.randn(2, *flow.image_shape, generator=torch.Generator().manual_seed(3))
        return labels(2), noise

    def ours(context: Context) -> Subject:
        flow, n = our_flow(name, context.quick, context.device), timed_count(context)

        def result() -> Tensor:
            chosen, noise = compared(context)
            return flow.generate(chosen.to(context.device), n_steps=1, noise=noise.to(context.device))

        # A micro-batch is filled up to its size, so that one larger than what is timed would count idle work.
        size = min(n, MICRO_BATCH)
        timed = Part(
            lambda: flow.generate(labels(n).to(context.device), n_steps=n_steps, micro_batch=size), n_pictures / n
        )
        return Subject([timed], result, note(context))

    def authors(context: Context) -> Subject:
        peer = pipeline("authors", name, context.quick, context.device, False)
        flow, n = workload(name, context).flow, timed_count(context)
        maps = flow.semantic_maps(labels(n)).to(context.device)
        shape = (n, *flow.image_shape)

        def result() -> Tensor:
            chosen, noise = compared(context)
            return peer.generate(flow.semantic_maps(chosen).to(context.device), noise.to(context.device), 1)

        timed = Part(lambda: peer.generate(maps, torch.randn(shape, device=context.device), n_steps), n_pictures / n)
        return Subject([timed], result, note(context))

    return Comparison(
        suite=SUITE,
        name=f"{name}-generate-64-25step",
        note=f"64 pictures, {n_steps} Euler steps, {SIZES[name]}; with decoding; pictures compared after one step",
        tests=GENERATE_TESTS,
        variants={OURS: ours, "authors": authors},
        unit="s",
        plan=Plan(n_rounds=2, warm_up_seconds=0, sample_seconds=0),
        is_warm=True,
        agree=close_in_rms(0.05),
        n_items=n_pictures,
        items="pictures",
    )
