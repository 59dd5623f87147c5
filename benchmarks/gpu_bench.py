"""Speed on a GPU, in one command: `make gpu-bench`, or `python -m benchmarks.gpu_bench`. Installs and loads nothing.

Parts run one after another, each in a process of its own with a share of the time, so that a compiler that takes too
long costs its own part only: `operators` (each against its peers), `sweep` (one evaluation of the published latent
network at micro-batches of 16 to 1024, ours against eager bf16 channels-last with SDPA) and `compiled` (against
torch.compile in max-autotune mode, which includes CUDA graphs). `gpu_first` runs further parts by `--part`: `limits`,
`captured` (classification with and without graphs: same bits, and what graphs give) and `profile` (the kernels of one
evaluation). Every part measures the copy bandwidth and the matmul
rate first. Ours is replayed as one CUDA graph. The rows go to `gpu-bench-<gpu>.jsonl`, also those of a part that ran
out of time. Exit code 0: done; 1: a part failed or variants disagreed; 2: bad arguments, or no GPU.

With `--dry-run` the same code runs on the CPU with tiny sizes and two samples: a test, not a measurement.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import msf.network.layers
from benchmarks.agreement import close_in_rms
from benchmarks.context import Context
from benchmarks.gpu_operators import operator_jobs, pytorch_attention, pytorch_group_norm_silu
from benchmarks.limits import measure_limits
from benchmarks.published import GFLOP, PARAMETERS
from benchmarks.registry import Build, Comparison, Job, Subject, Work
from benchmarks.rows import OURS, RESULTS, Row, RowWriter, load_rows
from benchmarks.timing import Plan
from msf.config import RECIPES, UNetConfig
from msf.network.inference import inference_form
from msf.network.unet import UNet
from msf_kernels.sampling import CapturedTrajectory, FlowTrajectory, SamplingResult, draw

# Share of the time of each part.
PARTS = {"operators": 0.4, "sweep": 0.25, "compiled": 0.35}
SINGLE_PARTS = ("limits", "captured", "profile")
MICRO_BATCHES = (16, 32, 64, 128, 256, 512, 1024)
# Compiled anew for each size, a minute or more: the middle one first.
COMPILED_MICRO_BATCHES = (256, 1024, 64)
DRY_MICRO_BATCHES = (2, 4)
CHANNELS, SIDE = 8, 32
_SMALL = UNetConfig(base_channels=32, channel_multipliers=(1, 1), n_res_blocks=1, head_channels=16)
_PLAN = Plan(n_rounds=11, warm_up_seconds=0.3, sample_seconds=0.05)


def make_network(context: Context) -> UNet:
    """Return the latent network with random weights, its zero-initialised layers included; small in a dry run."""
    torch.manual_seed(0)
    network = UNet(_SMALL if context.quick else RECIPES["published-224"].network, CHANNELS, CHANNELS)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False).to(context.device)


def make_state(context: Context, n: int) -> Tensor:
    side = 8 if context.quick else SIDE
    z = torch.randn((n, CHANNELS, side, side), generator=torch.Generator().manual_seed(n))
    return z.to(context.device)


def captured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Return the call as a replayed CUDA graph, whose result is the same memory every time; on a CPU, itself."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _ours(n: int) -> Build:
    def build(context: Context) -> Subject:
        field = inference_form(make_network(context), (1.0,), dtype=torch.bfloat16)
        z = make_state(context, n)
        return Subject(captured(lambda: field(z, 1.0), context.device), note="bf16, one CUDA graph")

    return build


def _eager(n: int, *, is_graph: bool = False) -> Build:
    def build(context: Context) -> Subject:
        run = _plain_network(context)
        z = make_state(context, n).to(torch.bfloat16, memory_format=torch.channels_last)
        call: Callable[[], Tensor] = lambda: run(z)  # noqa: E731
        note = "bf16, channels-last, PyTorch's own norm and attention"
        return Subject(captured(call, context.device) if is_graph else call, note=note + ", one CUDA graph" * is_graph)

    return build


def _compiled(n: int, compiler: dict[str, Any]) -> Build:
    def build(context: Context) -> Subject:
        torch._dynamo.reset()
        started = time.perf_counter()
        run = _plain_network(context, lambda network: torch.compile(network, dynamic=False, **compiler))
        z = make_state(context, n).to(torch.bfloat16, memory_format=torch.channels_last)
        run(z)
        seconds = time.perf_counter() - started
        context.writer.add(f"latent-mb{n}", "compile", "compilation", "s", [seconds], "torch.compile, first call")
        # The graph's output is overwritten by its next replay.
        mode = compiler.get("mode", "default")
        return Subject(lambda: run(z), lambda: run(z).clone(), f"the same under torch.compile, {mode}, CUDA graph")

    return build


def _plain_network(
    context: Context, compiled: Callable[[nn.Module], Callable[..., Tensor]] = lambda network: network
) -> Callable[[Tensor], Tensor]:
    """Return the network with PyTorch's own operators, as one tunes it without ours, perhaps compiled."""
    network = make_network(context).to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    evaluate = compiled(network)

    def run(z: Tensor) -> Tensor:
        with pytorchs_operators():
            return evaluate(z, 1.0)

    return run


@contextmanager
def pytorchs_operators() -> Iterator[None]:
    """Let the plain network call PyTorch's norm and attention; it would have no inference form meanwhile."""
    ours = vars(msf.network.layers).copy()
    vars(msf.network.layers).update(group_norm_silu=pytorch_group_norm_silu, spatial_attention=pytorch_attention)
    try:
        yield
    finally:
        vars(msf.network.layers).update(
            group_norm_silu=ours["group_norm_silu"], spatial_attention=ours["spatial_attention"]
        )


def network_jobs(sizes: Sequence[int], compiler: dict[str, Any] | None = None) -> Iterator[Job]:
    """Yield one evaluation per micro-batch: ours against eager, or against the compiled network where one is given."""
    for n in sizes:
        peers = {"compile": _compiled(n, compiler or {})}
        if compiler is None:
            peers = {"eager": _eager(n), "eager-graph": _eager(n, is_graph=True)}
        n_bytes = 2 * PARAMETERS["latent"] + 4 * n * CHANNELS * SIDE * SIDE
        yield Comparison(
            suite="gpu",
            name=f"latent-mb{n}",
            note=f"published latent network, random weights, micro-batch {n}, t = 1",
            tests=("tests/msf/network/test_unet.py",),
            variants={OURS: _ours(n), **peers},
            unit="ms",
            plan=_PLAN,
            agree=close_in_rms(3e-2),
            work=Work(n * GFLOP["latent"] * 1e9, n_bytes, torch.bfloat16),
            n_items=n,
            items="evaluations",
            goals={"eager": 1.5} if compiler is None else {"compile": 1.5},
        )


def part_jobs(part: str, is_dry: bool, sizes: Sequence[int] = (), mode: str = "max-autotune") -> list[Job]:
    """Return the jobs of a part; `sizes` takes the place of its micro-batches, `mode` is torch.compile's."""
    if part == "operators":
        return list(operator_jobs(is_dry))
    if part == "sweep":
        return list(network_jobs(sizes or (DRY_MICRO_BATCHES if is_dry else MICRO_BATCHES)))
    if part == "compiled":
        compiler = {"backend": "aot_eager"} if is_dry else {"mode": mode}
        return list(network_jobs(sizes or (DRY_MICRO_BATCHES[:1] if is_dry else COMPILED_MICRO_BATCHES), compiler))
    return []


def measure_part(
    part: str,
    context: Context,
    keep: Callable[[], None],
    sizes: Sequence[int] = (),
    mode: str = "max-autotune",
) -> int:
    """Measure the jobs of a part, keep the rows after each, and return how many jobs failed."""
    context.writer.suite = "gpu"
    n_failed = 0
    if part in ("captured", "profile"):
        measure = measure_captured if part == "captured" else measure_profile
        n_failed += not measure(context, max(sizes, default=DRY_MICRO_BATCHES[0] if context.quick else 256))
        keep()
        print(context.writer.table(), flush=True)
        return n_failed
    context.limits = measure_limits(context)
    keep()
    if part == "limits":
        print(context.writer.table(), flush=True)
    for job in part_jobs(part, context.quick, sizes, mode):
        first = len(context.writer.rows)
        try:
            job.measure(context)
            add_energy_per_thousand(context.writer, first, job)
        # One job's failure must not take the others' numbers; disagreement and a failing kernel are findings.
        except Exception as error:
            n_failed += 1
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            context.writer.add(job.name, OURS, "time", "us", [], f"not timed, because it failed: {reason}")
        keep()
        print(context.writer.table(first), flush=True)
    return n_failed


def measure_captured(context: Context, n: int) -> bool:
    """Classify with and without graphs; add the times of a call, and return whether all bits were equal."""
    image_channels, n_samples = 4, 4 * n
    network = make_network(context).to(torch.bfloat16)
    field = inference_form(network, (1.0,), dtype=torch.bfloat16)
    codes = torch.randn(8, CHANNELS - image_channels, 1, 1, generator=torch.Generator().manual_seed(2))
    codes = codes.to(context.device)

    def readout(z: Tensor) -> dict[str, Tensor]:
        return {"distance": (z[:, None, image_channels:] - codes).square().mean((2, 3, 4))}

    flow = FlowTrajectory(field, (1.0, 0.0), readout=readout, cast_to=torch.bfloat16)
    graphed = CapturedTrajectory(flow)
    inputs, noise_shape = make_state(context, 1)[:, :image_channels], (CHANNELS - image_channels, SIDE, SIDE)
    noise_shape = (*noise_shape[:1], *inputs.shape[2:])

    def classify(seed: int, is_captured: bool) -> SamplingResult:
        return draw(graphed, inputs, n_samples, noise_shape, seed=seed, micro_batch=n, capture=is_captured,
                    keep_samples=True)  # fmt: skip

    same, seconds = True, {False: [], True: []}  # type: ignore[var-annotated]
    for seed in range(4):
        found = {}
        for is_captured, its in seconds.items():
            _wait(context.device)
            started = time.perf_counter()
            found[is_captured] = classify(seed, is_captured)
            _wait(context.device)
            its.append(time.perf_counter() - started)
        same &= torch.equal(found[True].samples["distance"], found[False].samples["distance"])
        same &= found[True].is_captured or context.device.type != "cuda"
    job, note = f"classify-mb{n}", f"one picture, {n_samples} samples, one step; the first call of four left out"
    for is_captured, its in seconds.items():
        context.writer.add(job, OURS if is_captured else "ours-uncaptured", "time", "s", its[1:], note)
    context.writer.add(job, OURS, "same_bits", "bool", [float(same)], "captured against uncaptured, four seeds")
    return bool(same)


def measure_profile(context: Context, n: int) -> bool:
    """Add the kernels of one evaluation with their times on the device, the longest first."""
    field = inference_form(make_network(context), (1.0,), dtype=torch.bfloat16)
    z = make_state(context, n)
    for _ in range(3):
        field(z, 1.0)
    _wait(context.device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * (context.device.type == "cuda")
    with torch.profiler.profile(activities=kinds) as profile:
        field(z, 1.0)
        _wait(context.device)
    events = profile.key_averages()
    on_device = context.device.type == "cuda"
    times = {event.key: event.self_device_time_total if on_device else event.self_cpu_time_total for event in events}
    calls = {event.key: event.count for event in events}
    job = f"profile-mb{n}"
    for name in sorted(times, key=lambda name: -times[name])[:25]:
        if times[name] > 0:
            context.writer.add(job, OURS, f"self_time:{name[:80]}", "us", [times[name]], f"{calls[name]} calls")
    return bool(context.writer.rows)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def add_energy_per_thousand(writer: RowWriter, first: int, job: Job) -> None:
    """Add joules per thousand evaluations for every variant whose energy was read."""
    if not isinstance(job, Comparison) or not job.n_items:
        return
    for row in writer.rows[first:]:
        if row.metric == "energy" and row.median is not None:
            joules = 1000 * row.median / job.n_items
            writer.add(row.job, row.variant, f"energy_per_1000_{job.items}", "J", [joules], row.note)


def run_parts(options: argparse.Namespace, writer: RowWriter) -> tuple[list[Row], int]:
    """Run every part in a process of its own; return all rows and how many parts did not end well."""
    deadline = time.monotonic() + 60 * options.minutes
    rows: list[Row] = []
    n_bad = 0
    for i, part in enumerate(options.parts):
        shares = [PARTS[name] for name in options.parts[i:]]
        seconds = (deadline - time.monotonic()) * PARTS[part] / sum(shares)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            command = [sys.executable, "-m", "benchmarks.gpu_bench", "--part", part, "--rows", str(path)]
            command += ["--dry-run"] * options.dry_run
            reason = ""
            try:
                code = subprocess.run(command, timeout=max(seconds, 1.0), check=False).returncode
                reason = f"the part ended with exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                reason = f"the part's share of the time, {seconds:.0f} s, was up"
            if path.exists():
                rows += load_rows(path)
        if reason:
            n_bad += not reason.startswith("the part's share")
            rows += [writer.add(part, OURS, "time", "us", [], f"what follows was not measured: {reason}")]
            print(f"{part}: {reason}", file=sys.stderr)
    return rows, n_bad


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu-bench: there is no CUDA device on this machine, so nothing was measured", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    remark = "dry run: tiny sizes, no measurement" if options.dry_run else ""
    writer = RowWriter("gpu", device, remark)
    if options.part is not None:
        context = Context(device, writer, quick=options.dry_run)
        keep = partial(writer.write, options.rows)
        return 1 if measure_part(options.part, context, keep, options.sizes, options.mode) else 0
    started = time.monotonic()
    rows, n_bad = run_parts(options, writer)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "dry-run"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-bench-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.jsonl"
    writer.write(path, rows)
    print(f"{len(rows)} rows in {time.monotonic() - started:.0f} s; written to {path}")
    return 1 if n_bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bench", description="Speed on a GPU.")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=8.5, help="time for everything; default 8.5")
    parser.add_argument("--dry-run", action="store_true", help="the same code on the CPU with tiny sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], metavar="N", help="micro-batches of one --part")
    parser.add_argument("--mode", default="max-autotune", help="torch.compile's mode in the part `compiled`")
    # What a part's own process is told.
    parser.add_argument("--part", choices=[*PARTS, *SINGLE_PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
