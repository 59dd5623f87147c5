"""Peak memory of the many-sample engine against the number of samples per input.

Every number of samples runs in a process of its own, which reports by how much its peak resident memory (on CUDA: its
peak allocated memory) rose during the draw; what Python, torch and the network take is not counted. glibc is told to
hand large blocks back to the system when they are freed, so that the peak is that of live tensors and not of a heap in
fragments. Prints one JSON object: the runs, and the ratio of the largest number of samples to the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from msf_kernels.sampling import Mean, MeanEntropy, Moments, Votes, draw

N_CLASSES = 4
HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def network(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(6, width, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(width, width, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(width, N_CLASSES, 3, padding=1),
    ).requires_grad_(False)


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def run_one(n_samples: int, arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    net = network(arguments.width).to(device)

    def trajectory(image: Tensor, noise: Tensor) -> dict[str, Tensor]:
        distance = net(torch.cat([image, noise], dim=1)).square().mean((2, 3))
        return {"distance": distance, "probability": torch.softmax(-distance, dim=1)}

    statistics = {
        "distance": Moments("distance"),
        "votes": Votes("distance"),
        "probability": Mean("probability"),
        "entropy": MeanEntropy("probability"),
    }
    image = torch.zeros(arguments.n_inputs, 3, arguments.size, arguments.size, device=device)
    noise_shape = (3, arguments.size, arguments.size)

    start = peak_bytes(device)
    result = draw(trajectory, image, n_samples, noise_shape, statistics=statistics, micro_batch=arguments.micro_batch)
    return {"peak_bytes": peak_bytes(device) - start, "n_evaluations": result.n_evaluations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 4096], help="samples per input, ascending")
    parser.add_argument("--n-inputs", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", action="store_true", help="run the first number of samples in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments.samples[0], arguments)))
        return
    runs = {}
    for n_samples in arguments.samples:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("samples", "one")}
        flags = [text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        command = [sys.executable, __file__, "--one", "--samples", str(n_samples), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | HAND_BACK)
        runs[str(n_samples)] = json.loads(done.stdout)
    peaks = [runs[str(n_samples)]["peak_bytes"] for n_samples in arguments.samples]
    print(json.dumps({"torch": torch.__version__, "runs": runs, "ratio": peaks[-1] / peaks[0]}, indent=2))


if __name__ == "__main__":
    main()
