import logging

import pytest
import torch

from msf_kernels.sampling import CapturedTrajectory, FlowTrajectory, Votes, draw
from msf_kernels.sampling.capture import GraphedFunction
from msf_kernels.solvers import HEUN, uniform_grid

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeGraphs:
    """Record by remembering the function; replay by calling it and overwriting the static outputs, as a graph does."""

    def __init__(self, error=None):
        self.n_recorded = 0
        self.error = error

    def __call__(self, function):
        self.n_recorded += 1
        if self.error is not None:
            raise self.error
        outputs = function()

        def replay():
            for name, value in function().items():
                outputs[name].copy_(value)

        return replay, outputs


def double(x, y):
    return {"out": 2 * x + y}


def test_a_graph_is_recorded_once_per_signature_and_sees_new_arguments():
    graphs = FakeGraphs()
    graphed = GraphedFunction(double, graphs)
    assert not graphed.is_captured
    for value in (1.0, 5.0, -2.0):
        x, y = torch.full((4,), value), torch.arange(4.0)
        assert torch.equal(graphed(x, y)["out"], 2 * x + y)
    assert graphs.n_recorded == 1
    assert graphed.is_captured
    graphed(torch.zeros(8), torch.zeros(8))
    graphed(torch.zeros(4, dtype=torch.float64), torch.zeros(4))
    assert graphs.n_recorded == 3


def test_arguments_are_copied_not_kept():
    graphed = GraphedFunction(double, FakeGraphs())
    x, y = torch.ones(3), torch.zeros(3)
    out = graphed(x, y)["out"]
    x.fill_(100.0)
    assert torch.equal(out, torch.full((3,), 2.0))
    graphed(torch.full((3,), 4.0), y)
    assert torch.equal(out, torch.full((3,), 8.0))  # static: valid until the next call
    assert torch.equal(x, torch.full((3,), 100.0))


def test_a_function_that_cannot_be_recorded_runs_as_it_is_and_the_reason_is_logged_once(caplog):
    graphs = FakeGraphs(RuntimeError("operation not permitted when stream is capturing"))
    graphed = GraphedFunction(double, graphs)
    with caplog.at_level(logging.WARNING):
        for size in (3, 3, 5):
            assert torch.equal(graphed(torch.ones(size), torch.ones(size))["out"], torch.full((size,), 3.0))
    assert graphs.n_recorded == 1
    assert not graphed.is_captured
    assert [record.getMessage() for record in caplog.records] == [
        "the trajectory cannot be captured as a CUDA graph and runs without: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]


def test_lack_of_memory_while_recording_is_passed_on():
    graphed = GraphedFunction(double, FakeGraphs(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(torch.OutOfMemoryError):
        graphed(torch.ones(3), torch.ones(3))


def trajectory(x, noise):
    return {"distance": (x.unsqueeze(1) - noise).abs()}


def run(captured, n_inputs=5, n_samples=33, **options):
    inputs = torch.linspace(-1, 1, n_inputs)
    return draw(captured, inputs, n_samples, (3,), micro_batch=8, keep_samples=True, **options)


def test_a_captured_draw_has_the_bits_of_an_uncaptured_one():
    graphs = FakeGraphs()
    captured, plain = run(CapturedTrajectory(trajectory, graphs)), run(trajectory)
    assert captured.is_captured
    assert not plain.is_captured
    assert torch.equal(captured.samples["distance"], plain.samples["distance"])
    for name, tensor in plain.statistics["distance"].items():
        assert torch.equal(captured.statistics["distance"][name], tensor)
    assert graphs.n_recorded == 1


def test_another_number_of_inputs_or_samples_needs_no_new_graph_but_another_seed_does():
    graphs = FakeGraphs()
    captured = CapturedTrajectory(trajectory, graphs)
    run(captured)
    for n_inputs, n_samples in ((1, 1), (20, 2), (2, 100)):
        result = run(captured, n_inputs, n_samples)
        assert torch.equal(result.samples["distance"], run(trajectory, n_inputs, n_samples).samples["distance"])
    assert graphs.n_recorded == 1
    result = run(captured, seed=1)
    assert torch.equal(result.samples["distance"], run(trajectory, seed=1).samples["distance"])
    assert graphs.n_recorded == 2
    noise = torch.ones(5, 33, 3)
    result = run(captured, noise=noise)
    assert torch.equal(result.samples["distance"], run(trajectory, noise=noise).samples["distance"])
    assert graphs.n_recorded == 3


def test_capture_can_be_declined():
    graphs = FakeGraphs()
    assert not run(CapturedTrajectory(trajectory, graphs), capture=False).is_captured
    assert graphs.n_recorded == 0


def test_graphs_of_a_micro_batch_that_was_too_large_are_released():
    class TooLarge(FakeGraphs):
        def __call__(self, function):
            recorded = super().__call__(function)
            if len(recorded[1]["distance"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return recorded

    graphs = TooLarge()
    captured = CapturedTrajectory(trajectory, graphs)
    result = run(captured)
    assert (result.micro_batch, result.n_halvings, result.is_captured) == (4, 1, True)
    assert torch.equal(result.samples["distance"], run(trajectory).samples["distance"])
    captured.release()
    run(captured, n_inputs=1)
    assert graphs.n_recorded == 4


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(32, 4, 3, padding=1)
    ).requires_grad_(False)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_captured_draw_has_the_bits_of_an_uncaptured_one(dtype):
    net = network().cuda().to(dtype)
    codes = torch.eye(3, device="cuda").reshape(3, 3, 1, 1)

    def readout(z):
        return {"distance": (z[:, None, 1:] - codes).square().mean((2, 3, 4))}

    flow = FlowTrajectory(lambda z, t: net(z), uniform_grid(4, 1.0, 0.0), HEUN, readout=readout, cast_to=dtype)
    inputs = torch.randn(6, 1, 16, 16)
    results = [
        draw(
            flow,
            inputs,
            50,
            (3, 16, 16),
            device="cuda",
            capture=capture,
            micro_batch=32,
            keep_samples=True,
            statistics={"votes": Votes()},
        )
        for capture in (True, False)
    ]
    assert [result.is_captured for result in results] == [True, False]
    assert torch.equal(results[0].samples["distance"], results[1].samples["distance"])
    assert torch.equal(results[0].statistics["votes"]["count"], results[1].statistics["votes"]["count"])


@needs_gpu
@pytest.mark.gpu
def test_on_a_gpu_a_trajectory_that_reads_values_falls_back(caplog):
    def reads(x, noise):
        return noise * float(noise.abs().max().item() > 0)

    with caplog.at_level(logging.WARNING):
        result = draw(reads, torch.zeros(2, 3, device="cuda"), 40, (3,), micro_batch=16)
    assert not result.is_captured
    assert "cannot be captured" in caplog.text
