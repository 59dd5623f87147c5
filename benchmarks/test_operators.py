"""The operator suite under pytest-benchmark: `pytest benchmarks --benchmark-json FILE`.

For those whose tools read that format; `python -m benchmarks run --suite ops` compares variants in turn instead.
"""

from typing import Any

import pytest
import torch

from benchmarks.context import Context
from benchmarks.peers import Unavailable
from benchmarks.registry import Comparison, Subject
from benchmarks.rows import RowWriter
from benchmarks.suites import ops

pytest.importorskip("pytest_benchmark")

CPU = torch.device("cpu")
VARIANTS = [(job, variant) for job in ops.jobs() for variant in job.variants]


@pytest.mark.parametrize(("job", "variant"), VARIANTS, ids=[f"{job.name}-{variant}" for job, variant in VARIANTS])
def test_operator(job: Comparison, variant: str, benchmark: Any) -> None:
    try:
        built = job.variants[variant](Context(CPU, RowWriter("ops", CPU)))
    except Unavailable as reason:
        pytest.skip(str(reason))
    call = built.timed if isinstance(built, Subject) else built
    benchmark.group = job.name
    with torch.inference_mode():
        benchmark(call)
