"""Where the time of one evaluation goes: every layer of the inference form with its work, its limit and its time.

`python -m benchmarks.layers latent` prints the table of `docs/performance.md` as Markdown. The layers are timed where
they run, inside whole evaluations, so caches are as warm as they are in use. CPU only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import msf_kernels
from benchmarks.context import Context, Limits
from benchmarks.limits import measure_limits
from benchmarks.rows import RowWriter
from benchmarks.suites import network as suite
from msf.network.inference import inference_form, layers
from msf.network.inference.layers import Norm
from msf_kernels.prepared import PreparedConvolution

NETWORKS = ("latent", "pixel")


@dataclass
class Layer:
    """Layers of one kind and shape, added up over an evaluation.

    Args:
        flops: Arithmetic of one call, 2 per multiply-add.
        n_bytes: What one call must read and write at least: inputs, weights and result, once each.
        n_calls: Calls per evaluation.
        seconds: Time of all its calls, one entry per evaluation.
    """

    flops: int
    n_bytes: int
    n_calls: int = 0
    seconds: list[float] = field(default_factory=list)


class Recorder:
    """Times the calls of the inference form's layers by kind and shape."""

    def __init__(self) -> None:
        self.layers: dict[tuple[str, str], Layer] = {}
        self._round: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)

    def timed(self, key: tuple[str, str], flops: int, n_bytes: int, call: Callable[[], Tensor]) -> Tensor:
        started = time.perf_counter()
        result = call()
        self._round[key] += time.perf_counter() - started
        self._counts[key] += 1
        self.layers.setdefault(key, Layer(flops, n_bytes))
        return result

    def end_evaluation(self) -> None:
        """Close the books of one evaluation."""
        for key, layer in self.layers.items():
            layer.seconds.append(self._round[key])
            layer.n_calls = self._counts[key]
        self._round.clear()
        self._counts.clear()


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Send every layer call inside the block through the recorder."""
    convolve, normalise, attend = PreparedConvolution.__call__, Norm.__call__, msf_kernels.spatial_attention

    def convolution(self: PreparedConvolution, x: Tensor, **options: Any) -> Tensor:
        weight = self.n_weights
        n, in_channels, height, width = x.shape
        out_channels = weight // (in_channels * self.n_taps)
        pixels = n * height * width
        out_pixels = 4 * pixels if self.upsample else pixels // self.stride**2
        flops = 2 * weight * (pixels if self.upsample else out_pixels)
        moved = pixels * in_channels + out_pixels * out_channels * (1 + ("residual" in options)) + weight
        side = round(self.n_taps**0.5)
        kind = f"{side}x{side} convolution" + (" of the doubled map" if self.upsample else "")
        shape = f"{in_channels} -> {out_channels}, {height}x{width}" + ("" if self.stride == 1 else " / 2")
        return recorder.timed((kind, shape), flops, moved * x.element_size(), lambda: convolve(self, x, **options))

    def norm(self: Norm, x: Tensor, **options: Any) -> Tensor:
        skip = options.get("skip")
        channels = x.shape[1] + (0 if skip is None else skip.shape[1])
        numel = x.numel() // x.shape[1] * channels
        name = "norm and SiLU" if self.silu else "norm"
        shape = f"{channels}, {x.shape[2]}x{x.shape[3]}"
        # Some ten operations per element; one read and one write.
        return recorder.timed(
            (name, shape), 10 * numel, 2 * numel * x.element_size(), lambda: normalise(self, x, **options)
        )

    def attention(qkv: Tensor, num_heads: int, **options: Any) -> Tensor:
        n, tokens, packed = qkv.shape
        flops = 4 * n * tokens * tokens * packed // 3
        n_bytes = qkv.numel() * 4 // 3 * qkv.element_size()
        shape = f"{tokens} tokens, {num_heads} heads"
        return recorder.timed(("attention", shape), flops, n_bytes, lambda: attend(qkv, num_heads, **options))

    with (
        mock.patch.object(PreparedConvolution, "__call__", convolution),
        mock.patch.object(Norm, "__call__", norm),
        mock.patch.object(layers, "spatial_attention", attention),
    ):
        yield


def measure(name: str, context: Context, n_rounds: int) -> tuple[Recorder, list[float]]:
    """Return what every layer took, and the time of whole evaluations, in seconds.

    Args:
        name: `latent` or `pixel`.
        context: Device, and whether small networks will do.
        n_rounds: Evaluations.
    """
    model = suite.workload(name, context)
    channels = model.flow.image_shape[0] + model.flow.semantic_shape[0]
    n = 2 if context.quick else suite.MICRO_BATCH
    z = torch.randn(n, channels, *model.flow.image_shape[1:], generator=torch.Generator().manual_seed(0))
    velocity = inference_form(model.network, (1.0,), dtype=torch.bfloat16)
    for _ in range(3):
        velocity(z, 1.0)
    recorder = Recorder()
    whole = []
    with recording(recorder):
        for _ in range(n_rounds):
            started = time.perf_counter()
            velocity(z, 1.0)
            whole.append(time.perf_counter() - started)
            recorder.end_evaluation()
    return recorder, whole


@dataclass(frozen=True)
class Work:
    """Arithmetic and bytes of a row of the table, and the time that the machine's limits allow for them."""

    flops: float
    n_bytes: float
    least_seconds: float


def table(recorder: Recorder, whole: Sequence[float], limits: Limits, n_items: int) -> str:
    """Return the layers as a Markdown table, the slowest first; times per item."""
    lines = [
        "| layer | shape | calls | GFLOP | MB | limit, ms | measured, ms | share of the limit | share of the time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total = median(whole)
    sums = [0.0, 0.0, 0.0, 0.0]
    rows = sorted(recorder.layers.items(), key=lambda item: -median(item[1].seconds))
    for (kind, shape), layer in rows:
        flops, n_bytes = layer.flops * layer.n_calls, layer.n_bytes * layer.n_calls
        least = (limits.least_seconds(layer.flops, layer.n_bytes, torch.bfloat16) or 0.0) * layer.n_calls
        taken = median(layer.seconds)
        for i, value in enumerate((flops, n_bytes, least, taken)):
            sums[i] += value
        work = Work(flops, n_bytes, least)
        lines.append(_line(kind, shape, str(layer.n_calls), work, taken, total, n_items))
    rest = total - sums[3]
    lines.append(f"| everything else | | | | | | {1e3 * rest / n_items:.3f} | | {rest / total:.1%} |")
    lines.append(_line("**together**", "", "", Work(*sums[:3]), total, total, n_items))
    return "\n".join(lines)


def _line(
    kind: str,
    shape: str,
    calls: str,
    work: Work,
    taken: float,
    total: float,
    n_items: int,
) -> str:
    per_item = 1e3 / n_items
    return (
        f"| {kind} | {shape} | {calls} | {work.flops / n_items / 1e9:.3f} | {work.n_bytes / n_items / 1e6:.2f} | "
        f"{work.least_seconds * per_item:.3f} | {taken * per_item:.3f} | {work.least_seconds / taken:.0%} | "
        f"{taken / total:.1%} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a tiny network: shows that everything works")
    options = parser.parse_args(arguments)
    device = torch.device("cpu")
    writer = RowWriter("layers", device)
    context = Context(device, writer, quick=options.quick)
    limits = measure_limits(context)
    recorder, whole = measure(options.network, context, options.rounds)
    print(writer.table() + "\n")
    print(table(recorder, whole, limits, 2 if options.quick else suite.MICRO_BATCH))
    return 0


if __name__ == "__main__":
    sys.exit(main())
