"""Peak memory of one piece of work in a process of its own: `python -m benchmarks.peak_memory WORK ...`.

Prints one JSON object: by how much the resident memory (on CUDA: the allocated memory) rose above what it was when the
work began; Python, torch and weights are not counted. The caller tells glibc to hand large blocks back to the system
when they are freed (`benchmarks.suites.memory.HAND_BACK`), so that the peak is that of live tensors and not of a heap
in fragments.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

N_CLASSES = 4


def peak_above_start(work: Callable[[], object], device: torch.device) -> int:
    """Return bytes by which memory rose during the work."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    before = _reset_peak()
    work()
    return _peak() - before


def _reset_peak() -> int:
    """Forget the peak so far where the system can, and return the resident memory; else the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _kernel_figure("VmRSS")


def _peak() -> int:
    if Path("/proc/self/status").exists():
        return _kernel_figure("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _kernel_figure(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return 1024 * int(found.group(1))


def engine(options: argparse.Namespace) -> Callable[[], object]:
    """The many-sample engine around a small network."""
    from msf_kernels.sampling import Mean, MeanEntropy, MeanVariance, Statistic, Votes, draw

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(6, options.width, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(options.width, options.width, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(options.width, N_CLASSES, 3, padding=1),
    )
    net.requires_grad_(False).to(options.device)

    def trajectory(image: Tensor, noise: Tensor) -> dict[str, Tensor]:
        distance = net(torch.cat([image, noise], dim=1)).square().mean((2, 3))
        return {"distance": distance, "probability": torch.softmax(-distance, dim=1)}

    statistics: dict[str, Statistic] = {
        "distance": MeanVariance("distance"),
        "votes": Votes("distance"),
        "probability": Mean("probability"),
        "entropy": MeanEntropy("probability"),
    }
    image = torch.zeros(1, 3, options.size, options.size, device=options.device)
    shape = (3, options.size, options.size)
    return lambda: draw(trajectory, image, options.samples, shape, statistics=statistics, micro_batch=options.batch)


def evaluation(options: argparse.Namespace) -> Callable[[], object]:
    """One evaluation of a published network by one variant, after a first one that sets it up."""
    from benchmarks.suites.network import CHANNELS, CONFIGS, PEERS, ours
    from msf.network.unet import UNet

    channels = CHANNELS[options.model]
    network = UNet(CONFIGS[options.model], channels, channels).eval().requires_grad_(False)
    device = torch.device(options.device)
    field = ours(network, [1.0, 0.0], device) if options.variant == "ours" else PEERS[options.variant](network, device)
    z = torch.zeros(options.batch, channels, options.size, options.size, device=device)
    field(z, 1.0)
    return lambda: field(z, 1.0)


def first_evaluation(options: argparse.Namespace) -> Callable[[], object]:
    """A network made, its form made, and one evaluation: everything counts, weights included.

    Variants: `ours-fp32`, the inference form; `eager-fp32`, the plain network, with as many bytes beside it as the
    transformed weights of the form have, which is what the form may take.
    """
    import gc

    from benchmarks.suites.network import CHANNELS, CONFIGS
    from msf.network.inference import inference_form
    from msf.network.unet import UNet
    from msf_kernels.conv3x3 import TransformedWeight

    channels = CHANNELS[options.model]
    z = torch.zeros(options.batch, channels, options.size, options.size, device=options.device)
    torch.nn.functional.conv2d(z, torch.zeros(1, channels, 1, 1, device=options.device))  # the library's own memory

    def network() -> UNet:
        made = UNet(CONFIGS[options.model], channels, channels).eval().requires_grad_(False)
        return made.to(options.device)

    def ours() -> object:
        plain = network()
        form = inference_form(plain, (1.0,), dtype=torch.float32)
        return plain, form, form(z, 1.0)

    def eager() -> object:
        plain = network()
        return plain, plain(z, 1.0)

    if options.variant == "ours-fp32":
        return ours
    kept = ours()
    transformed = sum(one.values.nbytes for one in gc.get_objects() if type(one) is TransformedWeight)
    del kept
    gc.collect()
    return lambda: (torch.ones(transformed // 4, device=options.device), eager())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__.partition(":")[0])
    parser.add_argument("work", choices=("engine", "evaluation", "first-evaluation"))
    parser.add_argument("--samples", type=int, default=64, help="of the engine, per input")
    parser.add_argument("--width", type=int, default=16, help="of the engine's network")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--model", default="pixel", help="published network to evaluate: pixel or latent")
    parser.add_argument("--variant", default="ours", help="who evaluates it: ours, or a peer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    works = {"engine": engine, "evaluation": evaluation, "first-evaluation": first_evaluation}
    work = works[options.work](options)
    with torch.inference_mode():
        print(json.dumps({"peak_bytes": peak_above_start(work, torch.device(options.device))}))


if __name__ == "__main__":
    main()
