"""Measure which backend serves a call fastest on the GPU at hand, and write the tables that `auto` goes by.

    python -m msf_kernels.tune [--op attention_block|conv3x3|spatial_attention ...] [--out FILE] [--rounds N]

The shapes are those of the published networks. Backends of one shape are timed in turn, with device events, on the same
tensors; the medians replace this GPU's rows in the operator's `measured.json` (or in FILE, for one operator), and rows
of other GPUs stay. A backend that refuses or fails is missing from its row. Exit code 2: bad arguments, or no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf_kernels._measured import FORMAT, MeasuredTable
from msf_kernels.attention_block import attention_block
from msf_kernels.backend import explain, measured_tables
from msf_kernels.conv3x3 import conv3x3, pack_weight
from msf_kernels.spatial_attention import spatial_attention

Key = dict[str, str | int | bool]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Items per call: enough to fill a GPU on the smallest map.
_ITEMS = 256
_REPEATS = 5
_WARM_UPS = 3


@dataclass(frozen=True)
class Call:
    """One call to measure: its inputs are made, and a backend's name is left open.

    Args:
        operator: Name of the operator.
        arguments: Positional arguments.
        options: Keyword arguments without `backend`.
        has_gradient: Whether backward is timed with it.
    """

    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    has_gradient: bool = False

    def run(self, backend: str) -> None:
        """Run it on a backend."""
        function = {
            "attention_block": attention_block,
            "conv3x3": conv3x3,
            "spatial_attention": spatial_attention,
        }[self.operator]
        with torch.set_grad_enabled(self.has_gradient):
            out: Tensor = function(*self.arguments, **self.options, backend=backend)  # type: ignore[operator]
            if self.has_gradient:
                torch.autograd.grad(out, self.arguments[0], out.detach())


@dataclass(frozen=True)
class Tunable:
    """An operator whose backends are measured.

    Args:
        table: Its table.
        list_keys: Yields the keys of the rows.
        make: Makes the call of a key: (key, number of items, device).
    """

    table: MeasuredTable
    list_keys: Callable[[], Iterator[Key]]
    make: Callable[[Key, int, torch.device], Call]


def measure(tunable: Tunable, key: Key, n_items: int, device: torch.device, n_rounds: int) -> dict[str, Any] | None:
    """Return the row of a key; None where no backend runs."""
    call = tunable.make(key, n_items, device)
    with torch.set_grad_enabled(call.has_gradient):
        reasons = explain(call.operator, *call.arguments, **call.options)
    samples: dict[str, list[float]] = {}
    for backend in (name for name in tunable.table.backends if not reasons.get(name, ["is not there"])):
        try:
            for _ in range(_WARM_UPS):
                call.run(backend)
            _wait(device)
            samples[backend] = []
        except (RuntimeError, NotImplementedError) as error:  # a library that fails is not measured
            print(f"  {backend} fails: {(str(error).splitlines() or [''])[0]}", file=sys.stderr)
    for _ in range(n_rounds):
        for backend, its in samples.items():
            its.append(_seconds(lambda name=backend: call.run(name), device))  # type: ignore[misc]
    if not samples:
        return None
    times = {backend: round(1e6 * statistics.median(its), 3) for backend, its in samples.items()}
    return {**key, "microseconds": times}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m msf_kernels.tune", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--op", choices=sorted(TUNABLES), nargs="+", default=sorted(TUNABLES), metavar="NAME",
                        help=f"{', '.join(sorted(TUNABLES))}; default all")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="table to write instead of the shipped one")
    parser.add_argument("--rounds", type=int, default=21, metavar="N", help="samples per backend; default 21")
    parser.add_argument("--dry-run", action="store_true", help="the smallest shape on a CPU; writes to --out only")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1; got {options.rounds}")
    if options.out is not None and len(options.op) != 1:
        parser.error(f"--out takes the table of one operator: give one --op; got {', '.join(options.op)}")
    if not options.dry_run and not torch.cuda.is_available():
        print("tune: there is no CUDA device on this machine, so nothing can be measured", file=sys.stderr)
        return 2
    device = torch.device("cpu") if options.dry_run else torch.device("cuda", torch.cuda.current_device())
    gpu = "dry run" if options.dry_run else torch.cuda.get_device_name(device)
    for name in options.op:
        tunable = TUNABLES[name]
        path = options.out or (None if options.dry_run else tunable.table.path)
        keys = list(tunable.list_keys())
        if options.dry_run:
            smallest = min(keys, key=_size)
            keys = [smallest | {"dtype": "float32"}]
        rows = []
        for key in keys:
            row = measure(tunable, key, 1 if options.dry_run else _ITEMS, device, options.rounds)
            if row is not None:
                print(name, json.dumps(row), flush=True)
                rows.append(row)
                if path is not None:
                    write_rows(tunable.table, path, gpu, rows)  # at once: a run that is cut short keeps what it has
        print(f"{len(rows)} rows of {gpu} " + ("measured" if path is None else f"written to {path}"))
    return 0


def _size(key: Mapping[str, str | int | bool]) -> int:
    return math.prod(value for value in key.values() if isinstance(value, int) and value)


def write_rows(table: MeasuredTable, path: Path, gpu: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace one GPU's rows in a table's file, which may not exist yet.

    Raises:
        ValueError: The file holds something else.
    """
    before = json.loads(path.read_text()) if path.exists() else {"format": FORMAT, "gpus": {}}
    merged = table.merged(before, path.name, gpu, rows)
    gpus = {name: [json.dumps(row) for row in its] for name, its in merged["gpus"].items()}
    lines = [f"{json.dumps(name)}: [\n  " + ",\n  ".join(its) + "\n ]" for name, its in gpus.items()]
    path.write_text(f'{{"format": {FORMAT}, "gpus": {{\n ' + ",\n ".join(lines) + "\n}}\n")


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(_REPEATS):
            call()
        return (time.perf_counter() - started) / _REPEATS
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(_REPEATS):
        call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e-3 / _REPEATS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _normal(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


# Channels in and out, height = width, stride, doubled: what the published networks' levels convolve.
_LEVELS = (
    (128, 128, 32), (256, 256, 32), (384, 128, 32), (256, 128, 32), (128, 256, 16), (256, 256, 16), (512, 256, 16),
    (384, 256, 16), (256, 256, 8), (512, 256, 8), (256, 256, 4), (512, 256, 4),
    (64, 64, 32), (128, 64, 32), (192, 64, 32), (64, 128, 16), (128, 128, 16), (256, 128, 16), (128, 128, 8),
    (256, 128, 8), (128, 128, 4), (256, 128, 4),
)  # fmt: skip


def _conv_keys() -> Iterator[Key]:
    def key(channels: int, n_out: int, side: int, *, stride: int = 1, upsample: bool = False) -> Key:
        return {
            "dtype": "bfloat16",
            "in_channels": channels,
            "out_channels": n_out,
            "stride": stride,
            "upsample": upsample,
            "n_pixels": side * side,
        }

    for channels, n_out, side in _LEVELS:
        yield key(channels, n_out, side)
    for channels in (64, 128, 256):
        for side in (32, 16, 8):
            yield key(channels, channels, side, stride=2)
            yield key(channels, channels, side // 2, upsample=True)
    for channels, n_out in ((8, 128), (6, 64)):
        yield key(channels, n_out, 32)
        yield key(n_out, channels, 32)


def _conv_call(key: Key, n_items: int, device: torch.device) -> Call:
    dtype, channels, n_out = DTYPES[str(key["dtype"])], int(key["in_channels"]), int(key["out_channels"])
    side = int(int(key["n_pixels"]) ** 0.5)
    x = _normal(device, dtype, n_items, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = _normal(device, dtype, n_out, channels, 3, 3) / (9 * channels) ** 0.5
    options: dict[str, Any] = {"stride": int(key["stride"]), "upsample": bool(key["upsample"])}
    bias = _normal(device, torch.float32, n_out)
    return Call("conv3x3", (x, pack_weight(weight, upsample=bool(key["upsample"])), bias), options)


def _attention_keys() -> Iterator[Key]:
    for n_tokens in (16, 64, 256, 1024):
        for has_gradient in (False, True):
            yield {"dtype": "bfloat16", "head_dim": 64, "n_tokens": n_tokens, "has_gradient": has_gradient}


def _attention_call(key: Key, n_items: int, device: torch.device) -> Call:
    heads, has_gradient = 4, bool(key["has_gradient"])
    qkv = _normal(
        device, DTYPES[str(key["dtype"])], n_items, int(key["n_tokens"]), 3 * heads * int(key["head_dim"])
    ).requires_grad_(has_gradient)
    return Call("spatial_attention", (qkv, heads), {}, has_gradient)


def _block_keys() -> Iterator[Key]:
    for channels, num_heads in ((128, 2), (256, 4)):
        for n_tokens in (16, 64, 256, 1024):
            yield {"dtype": "bfloat16", "channels": channels, "num_heads": num_heads, "n_tokens": n_tokens}


def _block_call(key: Key, n_items: int, device: torch.device) -> Call:
    dtype, channels, side = DTYPES[str(key["dtype"])], int(key["channels"]), int(int(key["n_tokens"]) ** 0.5)
    x = _normal(device, dtype, n_items, channels, side, side).contiguous(memory_format=torch.channels_last)
    vectors = [_normal(device, torch.float32, size) for size in (channels, channels, 3 * channels, channels)]
    qkv_weight, proj_weight = (
        _normal(device, dtype, size, channels) / channels**0.5 for size in (3 * channels, channels)
    )
    parameters = (vectors[0], vectors[1], qkv_weight, vectors[2], proj_weight, vectors[3])
    num_groups = min(32, channels // 2)
    return Call("attention_block", (x, *parameters, num_groups, int(key["num_heads"])), {})


_TABLES = measured_tables()
TUNABLES = {
    "attention_block": Tunable(_TABLES["attention_block"], _block_keys, _block_call),
    "conv3x3": Tunable(_TABLES["conv3x3"], _conv_keys, _conv_call),
    "spatial_attention": Tunable(_TABLES["spatial_attention"], _attention_keys, _attention_call),
}

if __name__ == "__main__":
    sys.exit(main())
