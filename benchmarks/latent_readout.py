"""Classification on latents end to end: read from the latents, or decoded to colours first (published).

    python -m benchmarks.latent_readout [--out FILE] [--samples 32] [--dtype bf16] [--clock cpu --threads 1]

The full-size sd-vae and the published 128-channel network, both with random weights, classify one 256x256 picture:
encode it, draw, follow the flow in one Euler step, compare with eight classes. Decoding is timed once unless told
otherwise, since it takes minutes; the rounds of `ours` are taken half before and half after it. Class latents, which
are encoded once in the life of a flow, are timed on their own. The decoder is the folded one; `--plain-decoder` takes
that of diffusers. On a machine with other work use `--clock cpu --threads 1`: time of the processor, not of the wall.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.folded_decoder import CONFIG
from benchmarks.rows import OURS, Row, RowWriter, ratios
from msf.autoencoder import KLAutoencoder
from msf.config import RECIPES, ExperimentConfig, ReadoutName, TaskConfig
from msf.medsymmflow import MedSymmFlow
from msf.uncertainty import Prediction

SUITE = "readout"
N_CLASSES = 8
DECODED = "decoded"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_flow(experiment: ExperimentConfig, *, plain_decoder: bool = False) -> MedSymmFlow:
    """Build a flow with random weights; the network's zero layers too, so that no arithmetic is trivial."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = KLAutoencoder(AutoencoderKL(**CONFIG))
        if not plain_decoder:
            autoencoder.fold()
        task = TaskConfig(n_classes=N_CLASSES, image_channels=3)
        flow = MedSymmFlow(task, experiment, autoencoder=autoencoder)
        with torch.no_grad():
            for parameter in flow.network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
    return flow


def measure(
    writer: RowWriter,
    flow: MedSymmFlow,
    *,
    n_samples: int,
    n_rounds: int,
    n_decoded_rounds: int,
    note: str,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time both read-outs of one picture on the flow's device and return the rows that this added."""
    n_before = len(writer.rows)
    size = flow.config.data.image_size
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def classify(readout: ReadoutName) -> Prediction:
        return flow.classify(picture.to(flow.device), n_samples, readout=readout)

    class_seconds, _ = timed(lambda: flow.semantic_maps(torch.arange(N_CLASSES)), clock)
    classify("latent")  # warm-up
    seconds: dict[str, list[float]] = {OURS: [], DECODED: []}
    rounds: list[tuple[str, ReadoutName]] = [(OURS, "latent")] * n_rounds
    rounds[n_rounds // 2 : n_rounds // 2] = [(DECODED, "decoded")] * n_decoded_rounds
    for variant, readout in rounds:
        seconds[variant].append(timed(lambda readout=readout: classify(readout).label, clock)[0])

    job = f"classify-latent-{size}-s{n_samples}"
    for variant, values in seconds.items():
        writer.add(job, variant, "time", "s", values, note)
    middle = sorted(seconds[OURS])[n_rounds // 2]
    writer.add(
        job, OURS, f"speedup_vs:{DECODED}", "ratio", ratios(seconds[DECODED], [middle] * n_decoded_rounds),
        f"{note}; times of decoded over the median of ours",
    )  # fmt: skip
    writer.add(f"class-latents-{size}", OURS, "time", "s", [class_seconds], f"{N_CLASSES} classes, once per flow")
    return writer.rows[n_before:]


def timed(call: Callable[[], Tensor], clock: Callable[[], float]) -> tuple[float, Tensor]:
    """Return the seconds of one call, which ends with its result on the host, and the result."""
    started = clock()
    result = call().cpu()
    return clock() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write rows as JSON Lines")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--size", type=int, default=256, help="pixels along a side, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--decoded-rounds", type=int, default=1)
    parser.add_argument("--plain-decoder", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the network; the autoencoder is float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu needs --threads 1")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu counts the threads of a process together: add --threads 1")
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES["published-224"]
    experiment = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, image_size=arguments.size))
    flow = make_flow(experiment, plain_decoder=arguments.plain_decoder)
    flow.to(arguments.device, DTYPES[arguments.dtype])
    writer = RowWriter(SUITE, torch.device(arguments.device))
    decoder = "diffusers' decoder" if arguments.plain_decoder else "folded decoder"
    measure(
        writer,
        flow,
        n_samples=arguments.samples,
        n_rounds=arguments.rounds,
        n_decoded_rounds=arguments.decoded_rounds,
        note=f"one picture, one Euler step, {arguments.dtype} network, float32 autoencoder, {decoder}, random weights",
        clock=time.perf_counter if arguments.clock == "wall" else time.process_time,
    )
    print(writer.table())
    if arguments.out is not None:
        writer.write(arguments.out)


if __name__ == "__main__":
    main()
