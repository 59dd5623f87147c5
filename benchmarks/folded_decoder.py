"""The folded decoder of the latent path against diffusers' own, full-size configuration, random weights.

    python -m benchmarks.folded_decoder [--out FILE] [--size 256] [--clock cpu --threads 1]

All variants decode the same latents in one process, in turn, and must agree to 1e-4 with diffusers as it comes.
`ours` is what the latent path runs: upsampling folded, norms fused with their activations, channels-last. Two variants
tell these apart: `ours-upsampling-only`, folded and else as diffusers comes, and `diffusers-channels-last`. On a
machine with other work use `--clock cpu --threads 1`: time of the processor, not of the wall, so that being
interrupted does not count.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import OURS, Row, RowWriter
from benchmarks.timing import Plan, interleaved
from msf.autoencoder import KLAutoencoder
from msf.autoencoder.folded import fold_upsampling

SUITE = "decoder"
TOLERANCE = 1e-4
N_LEVELS = 4
CONFIG: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * N_LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * N_LEVELS,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
}


def decoders(size: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Return the variants as calls that decode one picture of a size."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = AutoencoderKL(**CONFIG).eval().requires_grad_(False).to(device)
        latents = torch.randn(1, 4, size // 8, size // 8).to(device)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    folded = copy.deepcopy(plain)
    fold_upsampling(folded.decoder)
    ours = KLAutoencoder(copy.deepcopy(plain)).fold()
    unscaled = latents / ours.scaling_factor
    unscaled_last = unscaled.to(memory_format=torch.channels_last)
    return {
        OURS: lambda: ours.decode(latents),
        "ours-upsampling-only": lambda: folded.decode(unscaled).sample,
        "diffusers": lambda: plain.decode(unscaled).sample,
        "diffusers-channels-last": lambda: last.decode(unscaled_last).sample,
    }


def measure(writer: RowWriter, device: torch.device, *, size: int, plan: Plan) -> list[Row]:
    """Check that the decoders agree, time them in turn, and return the rows that this added.

    Raises:
        RuntimeError: A decoder disagrees.
    """
    n_before = len(writer.rows)
    variants = decoders(size, device)
    with torch.inference_mode():
        wanted = variants["diffusers"]()
        for name, decode in variants.items():
            error = float((decode() - wanted).abs().max())
            if not error <= TOLERANCE:
                raise RuntimeError(f"{name} must agree with diffusers to {TOLERANCE}; got {error}")
        seconds = interleaved(variants, plan, device)
    job = f"decode-sd-vae-{size}"
    note = f"one {size}x{size} picture, float32, random weights"
    for name, values in seconds.items():
        writer.add(job, name, "time", "ms", [value * 1e3 for value in values], note)
    writer.add_speedups(job, seconds, dict.fromkeys(seconds, note))
    return writer.rows[n_before:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write rows as JSON Lines")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu needs --threads 1")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu counts the threads of a process together: add --threads 1")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    plan = Plan(n_rounds=arguments.rounds, warm_up_seconds=0.0, sample_seconds=0.0, clock=clock)
    writer = RowWriter(SUITE, device)
    measure(writer, device, size=arguments.size, plan=plan)
    print(writer.table())
    if arguments.out is not None:
        writer.write(arguments.out)


if __name__ == "__main__":
    main()
