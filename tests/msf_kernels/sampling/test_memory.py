import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.suites.memory import HAND_BACK
from msf_kernels.sampling import SettledVote, Votes, default_micro_batch, draw
from msf_kernels.sampling.memory import is_out_of_memory

CPU = torch.device("cpu")
N_INPUTS, N_SAMPLES, MICRO_BATCH = 5, 13, 8
N_CALLS = -(-N_INPUTS * N_SAMPLES // MICRO_BATCH)


class OutOfMemoryOnce:
    """`x + noise`, elementwise and so equal in every micro-batch, but one call runs out of memory."""

    def __init__(self, failing_calls, error=None):
        self.failing_calls = failing_calls
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes = []

    def __call__(self, x, noise):
        self.sizes.append(len(x))
        if len(self.sizes) - 1 in self.failing_calls:
            raise self.error
        return {"distance": x + noise}


def run(trajectory, **options):
    inputs = torch.arange(10.0).reshape(N_INPUTS, 2)
    return draw(trajectory, inputs, N_SAMPLES, (2,), micro_batch=MICRO_BATCH, keep_samples=True, **options)


@pytest.mark.parametrize("failing", range(N_CALLS))
def test_running_out_of_memory_in_any_micro_batch_loses_nothing(failing):
    expected = run(OutOfMemoryOnce([]))
    trajectory = OutOfMemoryOnce([failing])
    result = run(trajectory)
    assert torch.equal(result.samples["distance"], expected.samples["distance"])
    for name, tensor in expected.statistics["distance"].items():
        assert torch.equal(result.statistics["distance"][name], tensor)
    assert (result.micro_batch, result.n_halvings) == (4, 1)
    # What was finished is not evaluated again: full micro-batches, the failed one, halves for the rest.
    rest = N_INPUTS * N_SAMPLES - failing * 8
    assert trajectory.sizes == [8] * (failing + 1) + [4] * -(-rest // 4)


@pytest.mark.parametrize("failing", [[0, 1], [2, 3, 4], [1, 5]])
def test_the_micro_batch_is_halved_again_when_memory_runs_out_again(failing):
    result = run(OutOfMemoryOnce(failing))
    assert torch.equal(result.samples["distance"], run(OutOfMemoryOnce([])).samples["distance"])
    assert (result.micro_batch, result.n_halvings) == (8 >> len(failing), len(failing))


def test_an_order_survives_running_out_of_memory():
    order = [3, 0, 8, 1, 7, 5, 2, 4, 6]
    result = run(OutOfMemoryOnce([4]), order=order)
    assert torch.equal(result.samples["distance"], run(OutOfMemoryOnce([])).samples["distance"])


@pytest.mark.parametrize("failing", range(4))
def test_stopping_survives_running_out_of_memory(failing):
    options = {"stop": SettledVote(0.3, first=4), "statistics": {"votes": Votes()}}
    expected = run(OutOfMemoryOnce([]), **options)
    result = run(OutOfMemoryOnce([failing]), **options)
    assert torch.equal(result.n_samples, expected.n_samples)
    assert torch.equal(result.statistics["votes"]["count"], expected.statistics["votes"]["count"])


def test_memory_that_does_not_suffice_for_one_sample_is_an_error():
    class Always(OutOfMemoryOnce):
        def __call__(self, x, noise):
            self.sizes.append(len(x))
            raise self.error

    trajectory = Always([])
    with pytest.raises(torch.OutOfMemoryError):
        run(trajectory)
    assert trajectory.sizes == [8, 4, 2, 1]


def test_an_allocation_that_the_machine_refuses_is_recognised():
    def trajectory(x, noise):
        if len(x) > 2:
            torch.empty(2**58, dtype=torch.uint8)
        return x + noise

    result = draw(trajectory, torch.zeros(2, 2), 4, (2,), micro_batch=8)
    assert (result.micro_batch, result.n_halvings) == (2, 2)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_lack_of_memory_is_taken_for_it(error, is_memory):
    assert is_out_of_memory(error) is is_memory


def test_the_default_micro_batch_is_a_power_of_two_that_fits_the_machine(monkeypatch):
    monkeypatch.setattr("msf_kernels.sampling.memory._total_memory", lambda device: 4 << 30)
    assert default_micro_batch(24 << 10, CPU) == 16
    assert default_micro_batch(512 << 10, CPU) == 4
    assert default_micro_batch(700 << 10, CPU) == 2
    assert default_micro_batch(1 << 40, CPU) == 1
    assert default_micro_batch(24 << 10, torch.device("cuda")) == 64


def test_the_default_micro_batch_depends_on_neither_inputs_nor_samples():
    sizes = {draw(lambda x, noise: x, torch.zeros(n, 2), s, (2,)).micro_batch for n, s in ((1, 1), (100, 1), (1, 100))}
    assert sizes == {default_micro_batch(16, CPU)}


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_samples():
    peaks = []
    for n_samples in ("64", "4096"):
        command = [sys.executable, "-m", "benchmarks.peak_memory", "engine", "--samples", n_samples]
        root, environment = Path(__file__).parents[3], os.environ | HAND_BACK
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
        peaks.append(json.loads(done.stdout)["peak_bytes"])
    assert peaks[0] > 0
    assert peaks[1] <= 1.1 * peaks[0]
