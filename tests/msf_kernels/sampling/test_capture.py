import copy
import gc
import logging
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from msf_kernels import use_backend
from msf_kernels.sampling import CapturedTrajectory, FlowTrajectory, GraphCache, Votes, draw
from msf_kernels.sampling.capture import CudaGraphs, GraphedFunction
from msf_kernels.solvers import HEUN, uniform_grid
from tests.fake_graphs import AddressGraphs, FakeGraphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def double(x, y):
    return {"out": 2 * x + y}


def use(graphed, *values, times=2):
    """Call a function twice, so that it is recorded, and return its last outputs."""
    for _ in range(times):
        outputs = graphed(*values)
    return outputs


def test_a_graph_is_recorded_at_the_second_use_of_a_signature_and_sees_new_arguments():
    graphs = FakeGraphs()
    graphed = GraphedFunction(double, GraphCache(graphs))
    assert not graphed.is_captured
    for number, value in enumerate((1.0, 5.0, -2.0, 7.0)):
        x, y = torch.full((4,), value), torch.arange(4.0)
        assert torch.equal(graphed(x, y)["out"], 2 * x + y)
        assert (graphs.n_recorded, graphed.is_captured) == ((1, True) if number else (0, False))
    graphed(torch.zeros(8), torch.zeros(8))
    graphed(torch.zeros(4, dtype=torch.float64), torch.zeros(4))
    assert (graphs.n_recorded, graphed.is_captured) == (1, False)
    graphed(torch.zeros(8), torch.zeros(8))
    graphed(torch.zeros(4, dtype=torch.float64), torch.zeros(4))
    assert graphs.n_recorded == 3


def test_arguments_are_copied_not_kept():
    graphed = GraphedFunction(double, GraphCache(FakeGraphs()))
    x, y = torch.ones(3), torch.zeros(3)
    out = use(graphed, x, y)["out"]
    x.fill_(100.0)
    assert torch.equal(out, torch.full((3,), 2.0))
    graphed(torch.full((3,), 4.0), y)
    assert torch.equal(out, torch.full((3,), 8.0))  # static: valid until the next call
    assert torch.equal(x, torch.full((3,), 100.0))


def test_what_a_graph_reads_lives_as_long_as_the_graph_and_no_longer():
    weights = [torch.ones(3), torch.nn.Parameter(torch.ones(3), requires_grad=False)]
    temporary = []

    def function(x):
        half = x / 2  # made on the way: the graph's own
        temporary.append(weakref.ref(half))
        return {"out": half * weights[0] + weights[1]}

    graphs = AddressGraphs()
    cache = GraphCache(graphs, max_graphs=1)
    graphed = GraphedFunction(function, cache)
    use(graphed, torch.zeros(3))
    reads = [memory for shape, memory in graphs.reads[0]]
    weights[0] = torch.zeros(3)  # evicted by its owner
    weights[1].data = torch.zeros(3)  # another storage in the same parameter
    gc.collect()
    graphed(torch.zeros(3))  # replays
    assert len(reads) == 3
    assert not any(memory.expired() for memory in reads)
    assert not any(reference() is not None for reference in temporary)
    use(graphed, torch.zeros(2, 3))  # takes the only place
    gc.collect()
    assert all(memory.expired() for memory in reads)


def test_a_failure_concerns_its_signature_alone_and_is_tried_once_more(caplog):
    error = RuntimeError("operation not permitted when stream is capturing")
    graphs = FakeGraphs(error)
    graphed = GraphedFunction(double, GraphCache(graphs))
    with caplog.at_level(logging.WARNING):
        use(graphed, torch.ones(3), torch.ones(3), times=2)
        assert (graphs.n_recorded, graphed.is_captured) == (1, False)
        use(graphed, torch.ones(5), torch.ones(5), times=2)  # another signature
        assert (graphs.n_recorded, graphed.is_captured) == (2, True)
        out = use(graphed, torch.ones(3), torch.ones(3), times=1)["out"]
        assert (graphs.n_recorded, graphed.is_captured) == (3, True)
        assert torch.equal(out, torch.full((3,), 3.0))
        graphs.errors = [error, error]
        for _ in range(9):
            assert torch.equal(graphed(torch.ones(7), torch.ones(7))["out"], torch.full((7,), 3.0))
    assert (graphs.n_recorded, graphed.is_captured) == (5, False)
    reason = "RuntimeError: operation not permitted when stream is capturing"
    text = "the trajectory cannot be captured as a CUDA graph and runs without"
    for_now, for_good = f"{text}, for now: {reason}", f"{text}: {reason}"
    assert [record.getMessage() for record in caplog.records] == [for_now, for_now, for_good]


def test_lack_of_memory_while_recording_frees_the_other_graphs_and_changes_no_result():
    graphs = FakeGraphs()
    cache = GraphCache(graphs)
    graphed = GraphedFunction(double, cache)
    use(graphed, torch.ones(3), torch.ones(3))
    graphs.errors = [torch.OutOfMemoryError("CUDA out of memory.")]
    assert torch.equal(use(graphed, torch.ones(5), torch.ones(5))["out"], torch.full((5,), 3.0))
    gc.collect()
    assert [reference() for reference in graphs.outputs[0]] == [None]
    use(graphed, torch.ones(5), torch.ones(5), times=1)
    assert (graphs.n_recorded, graphed.is_captured) == (3, True)


def test_graphs_are_few_and_the_least_recently_used_goes_first():
    graphs = FakeGraphs()
    graphed = GraphedFunction(double, GraphCache(graphs, max_graphs=3))
    for size in range(1, 30):
        use(graphed, torch.ones(size), torch.ones(size))
        graphed(torch.ones(1), torch.ones(1))  # in use all the time
    gc.collect()
    alive = [size for size, (reference,) in enumerate(graphs.outputs, start=1) if reference() is not None]
    assert alive == [1, 28, 29]
    assert graphs.n_recorded == 29


def test_more_signatures_in_turn_than_places_are_never_recorded():
    graphs = FakeGraphs()
    graphed = GraphedFunction(double, GraphCache(graphs, max_graphs=3))
    for _ in range(5):
        for size in range(1, 5):
            graphed(torch.ones(size), torch.ones(size))
    assert graphs.n_recorded == 0


def test_a_forced_backend_has_graphs_of_its_own():
    graphs = FakeGraphs()
    graphed = GraphedFunction(double, GraphCache(graphs))
    use(graphed, torch.ones(3), torch.ones(3))
    with use_backend("reference"):
        use(graphed, torch.ones(3), torch.ones(3))
    assert graphs.n_recorded == 2


def test_a_cuda_graph_is_recorded_into_one_pool_and_minds_its_own_thread(monkeypatch):
    entered, made = [], []

    class Recording:
        def __init__(self, graph, **options):
            entered.append(options)

        def __enter__(self):
            made.append("in")

        def __exit__(self, *_error):
            made.append("out")

    class Graph:
        def replay(self):
            made.append("replay")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    record = CudaGraphs()
    for _ in range(2):
        replay, outputs = record(lambda: made.append("call") or {"out": 1})
        replay()
        assert outputs == {"out": 1}
    assert entered == [{"pool": (0, 7), "capture_error_mode": "thread_local"}] * 2
    assert made == ["in", "call", "out", "replay"] * 2  # nothing runs but what is recorded


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


def test_another_number_of_inputs_or_samples_or_another_seed_needs_no_new_graph():
    graphs = FakeGraphs()
    captured = CapturedTrajectory(trajectory, graphs)
    run(captured)
    for n_inputs, n_samples, seed in ((1, 1, 0), (20, 2, 1), (2, 100, 2**63 - 1), (5, 33, 2)):
        result = run(captured, n_inputs, n_samples, seed=seed)
        expected = run(trajectory, n_inputs, n_samples, seed=seed)
        assert torch.equal(result.samples["distance"], expected.samples["distance"])
        assert result.is_captured
    assert graphs.n_recorded == 1
    noise = torch.ones(5, 33, 3)
    result = run(captured, noise=noise)
    assert torch.equal(result.samples["distance"], run(trajectory, noise=noise).samples["distance"])
    assert graphs.n_recorded == 2
    run(captured, antithetic=True)
    assert graphs.n_recorded == 3


def test_capture_can_be_declined():
    graphs = FakeGraphs()
    assert not run(CapturedTrajectory(trajectory, graphs), capture=False).is_captured
    assert graphs.n_recorded == 0


def test_graphs_of_a_micro_batch_that_is_too_large_now_are_released():
    largest = [8]

    def limited(x, noise):
        if len(x) > largest[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return trajectory(x, noise)

    graphs = FakeGraphs()
    captured = CapturedTrajectory(limited, graphs)
    assert run(captured).micro_batch == 8
    largest[0] = 4
    result = run(captured)
    assert (result.micro_batch, result.n_halvings, result.is_captured) == (4, 1, True)
    assert torch.equal(result.samples["distance"], run(trajectory).samples["distance"])
    gc.collect()
    assert [[each() is None for each in of_one] for of_one in graphs.outputs] == [[True], [False]]
    captured.release()
    run(captured, n_inputs=1)
    gc.collect()
    assert [reference() for reference in graphs.outputs[1]] == [None]


def test_a_draw_inside_a_draw_and_one_of_another_thread_leave_the_graphs_alone():
    graphs = FakeGraphs()
    cache = GraphCache(graphs)
    inner = CapturedTrajectory(trajectory, graphs=cache)
    found = []

    def outer(x, noise):
        found.append(run(inner, 2, 40).is_captured)
        return trajectory(x, noise)

    with cache.in_use():
        with ThreadPoolExecutor(1) as threads:
            elsewhere = threads.submit(run, CapturedTrajectory(trajectory, graphs=cache)).result()
        assert (elsewhere.is_captured, graphs.n_recorded) == (False, 0)
    assert run(CapturedTrajectory(outer, graphs=cache), 2, 2).micro_batch == 8
    assert found == [False]
    assert run(inner).is_captured


def test_a_copied_cache_starts_empty():
    graphs = FakeGraphs()
    cache = GraphCache(graphs)
    run(CapturedTrajectory(trajectory, graphs=cache))
    twin = copy.deepcopy(cache)
    assert not twin._entries
    assert isinstance(pickle.loads(pickle.dumps(GraphCache())), GraphCache)
    assert not pickle.loads(pickle.dumps(GraphCache())).serves(torch.device("cpu"))


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
