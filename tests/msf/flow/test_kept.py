"""CUDA graphs of a flow: how often they are recorded, what they hold, how long they live. With graphs that are none."""

import copy
import gc
import weakref

import pytest
import torch

from msf.config import CodeConfig, DataConfig, ExperimentConfig, TaskConfig, TrainConfig
from msf.flow.kept import KeptTrajectories
from msf.medsymmflow import MedSymmFlow
from msf.network.inference import form as form_module
from msf_kernels.sampling import GraphCache
from msf_kernels.sampling.capture import MAX_GRAPHS
from tests.fake_graphs import AddressGraphs, FakeGraphs
from tests.msf.tiny_unet import TINY, with_random_weights


def graphed_flow(graphs, max_graphs=MAX_GRAPHS):
    """A flow whose micro-batches are recorded on any device."""
    torch.manual_seed(0)
    config = ExperimentConfig(
        data=DataConfig(image_size=8),
        code=CodeConfig(name="simplex"),
        network=TINY,
        train=TrainConfig(label_drop=0.1),
    )
    flow = MedSymmFlow(TaskConfig(n_classes=3, image_channels=1), config)
    with_random_weights(flow.network)
    kept = KeptTrajectories(GraphCache(graphs, max_graphs))
    flow._trajectories, flow._fast_network._before_change = kept, kept.release
    return flow


def pictures(seed, n=2):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def classified(flow, seed, **options):
    return flow.classify(pictures(seed), n_samples=2, seed=seed, micro_batch=4, **options)


def same(a, b):
    return torch.equal(a.class_distance, b.class_distance) and (a.nfe, a.micro_batch) == (b.nfe, b.micro_batch)


def test_twenty_classifications_of_different_pictures_and_seeds_record_once():
    graphs, plain = FakeGraphs(), graphed_flow(None)
    flow = graphed_flow(graphs)
    for seed in range(20):
        found = classified(flow, seed)
        if seed % 5 == 1:
            assert same(found, classified(plain, seed))
        assert graphs.n_recorded == min(seed, 1)  # at the second use


def test_generations_of_different_labels_and_seeds_record_once():
    graphs, plain = FakeGraphs(), graphed_flow(None)
    flow = graphed_flow(graphs)
    for seed in range(6):
        labels = torch.tensor([seed % 3, 1])
        expected = plain.generate(labels, n_steps=2, seed=seed, micro_batch=4)
        assert torch.equal(flow.generate(labels, n_steps=2, seed=seed, micro_batch=4), expected)
    assert graphs.n_recorded == 1


def test_guided_generations_record_once_per_weight_of_the_guidance():
    graphs, plain = FakeGraphs(), graphed_flow(None)
    flow = graphed_flow(graphs)
    for seed in range(8):
        options = {"n_steps": 2, "guidance": (0.5, 2.0)[seed % 2], "seed": seed, "micro_batch": 4}
        expected = plain.generate(torch.tensor([seed % 3, 1]), **options)
        assert torch.equal(flow.generate(torch.tensor([seed % 3, 1]), **options), expected)
    assert graphs.n_recorded == 2


def test_what_a_graph_bakes_in_makes_another_one():
    graphs, plain = FakeGraphs(), graphed_flow(None)
    flow = graphed_flow(graphs)
    variants = [{}, {"n_steps": 2}, {"n_steps": 2, "grid": "uniform"}, {"n_steps": 2, "method": "heun"},
                {"antithetic": True}]  # fmt: skip
    for _ in range(3):
        for seed, options in enumerate(variants):
            assert same(classified(flow, seed, **options), classified(plain, seed, **options))
    assert graphs.n_recorded == len(variants)


@pytest.mark.parametrize("change", ["in place", "data", "dtype", "hook", "refresh"])
def test_a_changed_network_is_recorded_anew_and_the_old_graphs_are_gone(change):
    graphs = FakeGraphs()
    flow = graphed_flow(graphs)
    for seed in range(3):
        classified(flow, seed)
    weight = flow.network.out.conv.weight
    old_form = weakref.ref(flow._fast_network.of(flow.network))
    if change == "in place":
        with torch.no_grad():
            weight[0, 0, 0, 0] += 1
    elif change == "data":
        weight.data = weight.data * 2
    elif change == "dtype":
        flow.to(dtype=torch.float64)
    elif change == "hook":
        flow.network.out.register_forward_hook(lambda module, inputs, output: output + 0.5)
    else:
        flow.refresh()
    fresh = MedSymmFlow(flow.task, flow.config, network=flow.network)
    expected = classified(fresh, 1)
    assert same(classified(flow, 1), expected)
    gc.collect()
    assert old_form() is None
    assert [reference() for reference in graphs.outputs[0]] == [None] * len(graphs.outputs[0])
    assert same(classified(flow, 1), expected)


def test_a_graph_outlives_the_folded_times_that_it_reads(monkeypatch):
    monkeypatch.setattr(form_module, "MAX_FOLDED_TIMES", 1)
    graphs = AddressGraphs()
    flow = graphed_flow(graphs)
    for _ in range(2):
        classified(flow, 0)
    form = flow._fast_network.of(flow.network)
    (folded,) = [weakref.ref(time.bias) for time in form._times[(1.0,)][:1]]
    form.prepare([0.25])
    assert form.times == ((0.25,),)
    gc.collect()
    assert folded() is None  # nobody keeps the tensor, but the graph its memory
    assert len(graphs.reads[0]) > 20
    classified(flow, 0)  # replays, and finds all that it reads


def test_the_memory_of_graphs_is_bounded(monkeypatch):
    monkeypatch.setattr("msf.flow.kept.MAX_TRAJECTORIES", 2)
    graphs = FakeGraphs()
    flow = graphed_flow(graphs, max_graphs=3)
    for n_steps, micro_batch in ((1, 4), (1, 5), (2, 4), (3, 4), (4, 4)):
        for _ in range(2):
            flow.classify(pictures(0), n_samples=2, n_steps=n_steps, micro_batch=micro_batch)
    gc.collect()
    alive = [any(reference() is not None for reference in outputs) for outputs in graphs.outputs]
    assert alive == [False, False, True, True, True]
    assert len(flow._trajectories._kept) == 2


def test_a_network_evaluated_as_it_is_keeps_no_graph_beyond_a_call():
    class Somebodys(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))
            self.offset = 0.0

        def forward(self, z, t):
            return z * self.factor + self.offset

    graphs = FakeGraphs()
    kept = graphed_flow(graphs)
    flow = MedSymmFlow(kept.task, kept.config, network=Somebodys().requires_grad_(False))
    flow._trajectories = kept._trajectories
    before = [classified(flow, 0) for _ in range(3)]
    assert graphs.n_recorded == 0  # one micro-batch per call
    flow.network.offset = 1.0  # what no comparison of weights shows
    assert not same(classified(flow, 0), before[0])


def test_a_copied_flow_has_graphs_of_its_own():
    flow = graphed_flow(FakeGraphs())
    classified(flow, 0)
    twin = copy.deepcopy(flow)
    assert twin._fast_network._before_change.__self__ is twin._trajectories
    assert same(classified(twin, 0), classified(flow, 0))
    assert not twin._trajectories._kept.keys() & flow._trajectories._kept.keys()
