"""What an evaluation should take on a GPU that has not been measured: a model, from what the compiler made of kernels.

    python -m benchmarks.gpu_model [--out docs/gpu-model.md] [--json FILE]

Compiles the kernels of one evaluation without a GPU, reads registers, shared memory and the main loop's instructions
from the machine code, and predicts times from a stated model of the machine. A prediction, to be held against the
first measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_launches import Launch, evaluation_launches
from benchmarks.rows import ROOT

MICRO_BATCHES = (64, 256, 512)
ARCH = 90


@dataclass(frozen=True)
class Machine:
    """What the model takes for granted of a GPU; nothing of it was measured by this project.

    Args:
        name: Of the GPU.
        processors: Multiprocessors.
        clock: Cycles per second under load.
        schedulers: Instructions that a multiprocessor issues per cycle.
        matmul: Operations per second of a large matrix product in bfloat16.
        attention: Operations per second of the library's attention at 256 tokens of 64 channels.
        memory: Bytes per second of a copy, read plus written.
        cache: Bytes per second that all multiprocessors together read from the second-level cache.
        launch: Seconds between two kernels of a graph.
        host: Seconds of the host per kernel without a graph.
        registers: Of a multiprocessor.
        shared: Bytes of shared memory of a multiprocessor.
        threads: Most threads of a multiprocessor.
    """

    name: str = "H200"
    processors: int = 132
    clock: float = 1.755e9
    schedulers: int = 4
    matmul: float = 790e12
    attention: float = 350e12
    memory: float = 4.3e12
    cache: float = 5.5e12
    launch: float = 1.0e-6
    host: float = 2.7e-6
    registers: int = 65536
    shared: int = 227 * 1024
    threads: int = 2048


@dataclass(frozen=True)
class Kernel:
    """What the compiler made of one kernel.

    Args:
        registers: Per thread.
        shared: Bytes of shared memory per block.
        matmul_instructions: Instructions of the main loop for the matrix units.
        loop_instructions: All instructions of the main loop, per warp.
        instructions: All instructions of the kernel.
    """

    registers: int
    shared: int
    matmul_instructions: int
    loop_instructions: int
    instructions: int

    def per_processor(self, warps: int, machine: Machine) -> int:
        """Return how many blocks a multiprocessor holds at once."""
        by_registers = machine.registers // (max(self.registers, 1) * 32 * warps)
        by_shared = machine.shared // max(self.shared + 1024, 1)
        return max(1, min(by_registers, by_shared, machine.threads // (32 * warps)))


def compiled(case: Any) -> Kernel:
    """Compile one case and read its machine code."""
    from triton import knobs

    from msf_kernels._aot.triton_kernels import _resources

    made = case.compile(ARCH)
    registers, _ = _resources(made.asm["cubin"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-sass", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loop, matmul, total = main_loop(text)
    return Kernel(registers, made.metadata.shared, matmul, loop, total)


def main_loop(sass: str) -> tuple[int, int, int]:
    """Return the instructions of the main loop, those of them for the matrix units, and all instructions.

    The main loop is the innermost one with most matrix instructions, or the longest.
    """
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    places = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (_, text) in enumerate(lines):
        jump = re.search(r"\bBRA(?:\.\w+)*\s+.*?0x([0-9a-f]+)", text)
        if jump and (start := places.get(int(jump[1], 16))) is not None and start < i:
            loops.append((start, i))
    innermost = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    counted = [(sum("MMA" in lines[i][1] for i in range(a, b + 1)), b - a + 1) for a, b in innermost]
    matmul, length = max(counted, default=(0, 0))
    return length, matmul, len(lines)


@dataclass(frozen=True)
class Prediction:
    """One launch, or several alike, in the model.

    Args:
        operator: As in `Launch`.
        what: Sizes, for a reader.
        n: How many there are.
        kernel: What the compiler made of it; None for PyTorch's.
        blocks: Blocks of one launch.
        per_processor: Blocks that a multiprocessor holds at once.
        flops: Of one launch.
        n_bytes: Of one launch.
        limits: Seconds by the name of what limits them, of one launch.
        extra_bytes: What a library would move beside it, that adds biases, residuals and shortcuts in passes of their
            own: two passes over the result for each.
    """

    operator: str
    what: str
    n: int
    kernel: Kernel | None
    blocks: int
    per_processor: int
    flops: float
    n_bytes: int
    limits: dict[str, float]
    extra_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Of one launch, without the gap to the next."""
        return max(self.limits.values())

    @property
    def bound(self) -> str:
        """What limits it."""
        return max(self.limits, key=lambda name: self.limits[name])


def predict(launch: Launch, kernels: dict[Any, Kernel], machine: Machine) -> Prediction:
    """Return the model's time of one launch.

    A multiprocessor works through its share of the blocks, and in each step of the main loop as long as the slowest of:
    the matrix units, the instructions to be issued, the tiles to be read from the cache. The whole takes at least the
    time in which every tensor passes the memory once.
    """
    limits = {"memory": launch.n_bytes / machine.memory}
    what = " ".join("x".join(map(str, shape)) for shape in launch.shapes[:2])
    if not launch.cases:
        if "attention" in launch.operator:
            limits["matrix units"] = launch.flops / machine.attention
        elif launch.flops:
            limits["matrix units"] = launch.flops / machine.matmul
        return Prediction(launch.operator, what, 1, None, 0, 0, launch.flops, launch.n_bytes, limits)
    case = launch.cases[0]
    kernel = kernels[case.label, case.signature_key]
    blocks, constants = case.n_programs, case.constexprs
    if case.is_matmul and blocks:
        m, n, k = (constants[f"BLOCK_{axis}"] for axis in "MNK")
        rounds = math.ceil(blocks / machine.processors)
        steps = launch.flops / blocks / (2 * m * n * k)
        share = machine.processors
        limits["matrix units"] = rounds * launch.flops / blocks * share / machine.matmul
        issued = kernel.loop_instructions * case.num_warps / machine.schedulers
        limits["instructions"] = rounds * steps * issued / machine.clock
        limits["cache"] = rounds * steps * (m + n) * k * 2 * share / machine.cache
    per_processor = kernel.per_processor(case.num_warps, machine)
    result = launch.shapes[-1]
    n_added = 1 + sum(shape[2:] == result[2:] and len(shape) == 4 for shape in launch.shapes[2:-1])
    extra = n_added * 2 * 2 * math.prod(result) if case.is_matmul else 0
    return Prediction(
        launch.operator, what, 1, kernel, blocks, per_processor, launch.flops, launch.n_bytes, limits, extra
    )


class _Keyed:
    """A case with a key by which equal compilations are found."""

    def __init__(self, case: Any) -> None:
        self._case = case
        constants = sorted((name, repr(value)) for name, value in case.constexprs.items())
        self.signature_key = repr((sorted(case.signature.items()), constants))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._case, name)


def evaluation(n: int, kernels: dict[Any, Kernel], machine: Machine) -> list[Prediction]:
    """Return the predictions of one evaluation at a micro-batch, alike launches together."""
    groups: dict[Any, list[Prediction]] = defaultdict(list)
    for launch in evaluation_launches(n=n, arch=ARCH):
        keyed = tuple(_Keyed(case) for case in launch.cases)
        for case in keyed:
            if (case.label, case.signature_key) not in kernels:
                kernels[case.label, case.signature_key] = compiled(case)
        one = predict(Launch(**{**vars(launch), "cases": keyed}), kernels, machine)
        groups[one.operator, launch.shapes, one.kernel].append(one)
    return [
        Prediction(**{**{name: getattr(its[0], name) for name in its[0].__dataclass_fields__}, "n": len(its)})
        for its in groups.values()
    ]


def document(predictions: dict[int, list[Prediction]], machine: Machine) -> str:
    """Return the page."""
    first = predictions[MICRO_BATCHES[1]]
    n_launches = sum(each.n for each in first)
    lines = [
        "# What an evaluation should take on an H200",
        "",
        "**Predictions, not measurements.** No kernel of this project has run on a GPU. This page is made by",
        "",
        "    python -m benchmarks.gpu_model",
        "",
        "from what the compiler made of the kernels that one evaluation of the published latent network (256 x 256",
        f"pictures, bfloat16, inference form) launches on sm_{ARCH}, and from a model of the machine. It is to be held",
        "against the first run of `make gpu-first`.",
        "",
        "## The machine in the model",
        "",
        "| what | taken for granted |",
        "|---|---|",
        f"| multiprocessors, clock | {machine.processors}, {machine.clock / 1e9:.3f} GHz |",
        f"| matrix product in bfloat16 | {machine.matmul / 1e12:.0f} TFLOP/s |",
        f"| the library's attention at 256 tokens | {machine.attention / 1e12:.0f} TFLOP/s |",
        f"| memory, read plus written | {machine.memory / 1e12:.1f} TB/s |",
        f"| second-level cache, read by all | {machine.cache / 1e12:.1f} TB/s |",
        f"| instructions issued per cycle and multiprocessor | {machine.schedulers} |",
        f"| between two kernels of a graph | {machine.launch * 1e6:.1f} us |",
        f"| the host per kernel without a graph | {machine.host * 1e6:.1f} us |",
        "",
        "A launch takes the longest of: all its tensors through the memory once; the matrix units; the instructions of",
        "the main loop; the tiles of the main loop from the cache. The last three in whole rounds of blocks over the",
        "multiprocessors: what does not fill the last round is lost. Latencies, the start and the end of a block, bank",
        "conflicts and clocks that fall under load are not in it, so times are lower bounds.",
        "",
        "## One evaluation",
        "",
        "| micro-batch | launches | kernels, ms | with the gaps of a graph, ms | host without a graph, ms | "
        "us per sample | "
        "share of the matrix units |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for n, its in predictions.items():
        busy = sum(each.n * each.seconds for each in its)
        count = sum(each.n for each in its)
        whole = busy + count * machine.launch
        flops = sum(each.n * each.flops for each in its)
        lines.append(
            f"| {n} | {count} | {busy * 1e3:.3f} | {whole * 1e3:.3f} | {count * machine.host * 1e3:.2f} | "
            f"{whole / n * 1e6:.2f} | {flops / machine.matmul / whole:.0%} |"
        )
    lines += ["", "## Which limit, over all launches", "", "| micro-batch | " + " | ".join(_LIMITS) + " |"]
    lines.append("|---|" + "---|" * len(_LIMITS))
    for n, its in predictions.items():
        shares = [sum(each.n * each.seconds for each in its if each.bound == name) for name in _LIMITS]
        lines.append(f"| {n} | " + " | ".join(f"{share / sum(shares):.0%}" for share in shares) + " |")
    convolutions = [each for each in first if each.kernel is not None and each.kernel.matmul_instructions]
    busy = sum(each.n * each.seconds for each in convolutions)
    extra = sum(each.n * each.extra_bytes for each in convolutions)
    lost = extra / machine.memory
    rate = sum(each.n * each.flops for each in convolutions) / busy
    lines += [
        "",
        "## Bias, residual and shortcut in the convolution",
        "",
        f"Added in passes of their own they would move {extra / MICRO_BATCHES[1] / 1e6:.1f} MB a sample more, "
        f"{lost * 1e3:.2f} ms at micro-batch {MICRO_BATCHES[1]},",
        f"where the convolutions and projections take {busy * 1e3:.2f} ms. A library whose convolutions do not add",
        f"them has to multiply at {rate * busy / max(busy - lost, 1e-9) / 1e12:.0f} TFLOP/s to be level with these at "
        f"{rate / 1e12:.0f}.",
        "",
        f"## The kernels, at micro-batch {MICRO_BATCHES[1]}",
        "",
        f"{n_launches} launches; alike ones are one row. `loop` are the instructions of the main loop per warp,",
        "`matrix` those of them for the matrix units; `held` is how many blocks a multiprocessor holds at once.",
        "",
        "| operator | first tensors | launches | blocks | registers | shared bytes | matrix | loop | held | "
        "GFLOP | MB | us | limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for each in sorted(first, key=lambda each: -each.n * each.seconds):
        kernel = each.kernel
        of_kernel = ["-"] * 5
        if kernel is not None:
            of_kernel = [str(value) for value in (kernel.registers, kernel.shared, kernel.matmul_instructions,
                                                  kernel.loop_instructions, each.per_processor)]  # fmt: skip
        lines.append(
            f"| {each.operator.partition('::')[2]} | {each.what} | {each.n} | {each.blocks or '-'} | "
            + " | ".join(of_kernel)
            + f" | {each.flops / 1e9:.2f} | {each.n_bytes / 1e6:.1f} | {each.seconds * 1e6:.1f} | {each.bound} |"
        )
    return "\n".join(lines) + "\n"


_LIMITS = ("memory", "matrix units", "instructions", "cache")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description="Predicted times on an H200.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu-model.md", metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the predictions themselves")
    options = parser.parse_args(arguments)
    machine, kernels = Machine(), {}  # type: ignore[var-annotated]
    predictions = {n: evaluation(n, kernels, machine) for n in MICRO_BATCHES}
    options.out.write_text(document(predictions, machine))
    if options.json is not None:
        rows = [
            {"micro_batch": n, "seconds": each.seconds, **asdict(each)}
            for n, its in predictions.items()
            for each in its
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    for n, its in predictions.items():
        print(f"micro-batch {n}: {1e3 * sum(each.n * each.seconds for each in its):.3f} ms in kernels (predicted)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
