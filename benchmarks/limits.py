"""What the machine itself can do, measured in the same run as the jobs: copy bandwidth and matmul rate.

On random data: a GPU clocks higher on ones or zeros, and shares of such a limit come out too low.
"""

from __future__ import annotations

import torch

from benchmarks.context import Context, Limits
from benchmarks.rows import MACHINE
from benchmarks.timing import Plan, interleaved

JOB = "machine-limits"
DTYPES = (torch.float32, torch.bfloat16)


def measure_limits(context: Context) -> Limits:
    """Measure the limits and add their rows, for all threads and, on a CPU, for one."""
    threads = torch.get_num_threads()
    if context.device.type == "cpu" and threads > 1:
        torch.set_num_threads(1)
        _measure(context)
        torch.set_num_threads(threads)
    return _measure(context)


def _measure(context: Context) -> Limits:
    is_gpu = context.device.type == "cuda"
    n_bytes = (16 << 20) if context.quick else (1 << 30) if is_gpu else (256 << 20)
    size = 256 if context.quick else 8192 if is_gpu else 2048
    threads = torch.get_num_threads()
    where = "" if is_gpu else f"-{threads}-thread" + ("s" if threads > 1 else "")
    plan = context.plan(Plan(n_rounds=11, warm_up_seconds=0.2, sample_seconds=0.05))

    source = torch.randint(-128, 128, (n_bytes,), dtype=torch.int8, device=context.device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source)}
    for dtype in DTYPES:
        a, b = (torch.randn(size, size, dtype=dtype, device=context.device) for _ in range(2))
        calls[str(dtype)] = lambda a=a, b=b: torch.mm(a, b)  # type: ignore[misc]
    with torch.inference_mode():
        seconds = interleaved(calls, plan, context.device)

    job = JOB + where
    bandwidth = [2 * n_bytes / sample for sample in seconds["copy"]]
    note = f"{n_bytes >> 20} MiB copied, bytes read plus bytes written; cold cache"
    row = context.writer.add(job, MACHINE, "copy_bandwidth", "GB/s", [value / 1e9 for value in bandwidth], note)
    rates = {}
    for dtype in DTYPES:
        rate = [2 * size**3 / sample / 1e9 for sample in seconds[str(dtype)]]
        name = str(dtype).removeprefix("torch.")
        found = context.writer.add(
            job, MACHINE, f"matmul_{name}", "GFLOP/s", rate, f"{size}x{size} times {size}x{size}"
        )
        rates[dtype] = 1e9 * (found.median or 0.0)
    return Limits(1e9 * (row.median or 0.0), rates)
