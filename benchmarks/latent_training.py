"""One training step of a flow on latents: from the cache, against encoding the pictures at every step.

    python -m benchmarks.latent_training [--out FILE] [--batch 4] [--rounds 3] [--clock cpu --threads 1]

Both variants take the same steps (published 256-pixel network, full-size sd-vae with random weights, synthetic
pictures) in one process, in turn, and their losses must agree before anything is timed. Encoding on the fly encodes
the pictures only; the class maps are encoded once per run either way. On a machine with other work use `--clock cpu
--threads 1`: time of the processor, not of the wall, so that being interrupted does not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.folded_decoder import CONFIG
from benchmarks.rows import OURS, Row, RowWriter
from benchmarks.timing import Plan, interleaved
from msf.autoencoder import KLAutoencoder
from msf.config import RECIPES, ExperimentConfig
from msf.data import ImageDataset, Split
from msf.data.latent_cache import CACHE_ENV
from msf.train import TrainingRun

SUITE = "latent-training"
ON_THE_FLY = "on-the-fly"
SIZE = 256


def experiment(source: Path, batch_size: int) -> ExperimentConfig:
    """Return the published 224 recipe with an autoencoder from a folder."""
    published = RECIPES["published-224"]
    return dataclasses.replace(
        published,
        autoencoder=dataclasses.replace(published.autoencoder, source=str(source)),
        train=dataclasses.replace(published.train, batch_size=batch_size),
    )


def pictures(n: int) -> ImageDataset:
    """Return n random pictures of two classes, without flips: a cache of one variant."""
    generator = torch.Generator().manual_seed(0)
    train, val = (
        Split(
            torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8),
            torch.arange(count) % 2,
        )
        for count in (n, 2)
    )
    return ImageDataset(
        name="random", train=train, val=val, test=val, class_names=("a", "b"), flips=False, is_ordinal=False,
        licence="", citation="", fingerprint="random",
    )  # fmt: skip


def steps(folder: Path, device: torch.device, batch_size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the variants as calls that take one step on the same batch."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        KLAutoencoder(AutoencoderKL(**CONFIG)).save_pretrained(folder / "autoencoder")
    os.environ[CACHE_ENV] = str(folder / "cache")
    settings, data, rows = (
        experiment(folder / "autoencoder", batch_size),
        pictures(batch_size),
        torch.arange(batch_size),
    )
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    for name in (OURS, ON_THE_FLY):
        run = TrainingRun(settings, data, folder / name, Accelerator(cpu=device.type == "cpu"), resume=False)
        run.prepare_images(use_cache=name == OURS, progress=None)
        calls[name] = lambda run=run: run.step(rows)  # type: ignore[misc]
    return calls


def measure(writer: RowWriter, device: torch.device, *, batch_size: int, plan: Plan) -> list[Row]:
    """Check that the first steps have one loss, time further steps in turn, and return the rows that this added.

    Raises:
        RuntimeError: The losses differ.
    """
    n_before = len(writer.rows)
    with tempfile.TemporaryDirectory() as folder:
        variants = steps(Path(folder), device, batch_size)
        losses = {name: float(step()) for name, step in variants.items()}
        if losses[OURS] != losses[ON_THE_FLY]:
            raise RuntimeError(f"losses must be equal; got {losses}")
        seconds = interleaved(variants, plan, device)
    job = f"train-step-latent-{SIZE}-batch-{batch_size}"
    note = f"{batch_size} pictures of {SIZE} pixels, published network, full-size encoder, bf16 network, fp32 encoder"
    for name, values in seconds.items():
        writer.add(job, name, "time", "s", values, note)
    writer.add_speedups(job, seconds, dict.fromkeys(seconds, note))
    return writer.rows[n_before:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write rows as JSON Lines")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu needs --threads 1")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu adds the times of all threads: add --threads 1")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    plan = Plan(n_rounds=arguments.rounds, warm_up_seconds=0.0, sample_seconds=0.0, clock=clock)
    remark = f"{arguments.clock} time, {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    writer = RowWriter(SUITE, device, remark)
    measure(writer, device, batch_size=arguments.batch, plan=plan)
    print(writer.table())
    if arguments.out is not None:
        writer.write(arguments.out)


if __name__ == "__main__":
    main()
