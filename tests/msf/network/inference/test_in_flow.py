"""Classification and generation run on the inference form, and give what the network itself gives."""

import copy
import pickle

import pytest
import torch

from msf.config import CodeConfig, DataConfig, ExperimentConfig, PathConfig, TaskConfig
from msf.flow.solver import FlowSolver
from msf.medsymmflow import MedSymmFlow
from msf.network.inference import InferenceForm
from msf.network.inference import form as form_module
from msf.network.velocity import PlainVelocity, Velocity
from msf_kernels import use_backend
from tests.msf.tiny_unet import TINY, with_random_weights

TASK = TaskConfig(n_classes=3, image_channels=1)


def tiny_flow(time_coupling="shared"):
    torch.manual_seed(0)
    flow = MedSymmFlow(
        TASK,
        ExperimentConfig(
            data=DataConfig(image_size=8),
            code=CodeConfig(name="simplex"),
            path=PathConfig(time_coupling=time_coupling),
            network=TINY,
        ),
    )
    with_random_weights(flow.network)
    return flow


def form_of(flow):
    return flow._fast_network.of(flow.network)


def pictures(n=2):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


class CountingNetwork(torch.nn.Module):
    """The same function in a module that has no inference form."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z, t):
        return self.network(z, t)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("flow_name", ["joint", "conditional"])
def test_predictions_and_pictures_are_those_of_the_network_itself(method, n_steps, flow_name):
    flow = tiny_flow("independent")
    plain = MedSymmFlow(TASK, flow.config, network=CountingNetwork(flow.network))
    options = {"n_steps": n_steps, "method": method, "flow": flow_name}
    ours, expected = (f.classify(pictures(), n_samples=3, **options) for f in (flow, plain))
    torch.testing.assert_close(ours.class_distance, expected.class_distance, rtol=1e-4, atol=1e-5)
    assert ours.nfe == expected.nfe == n_steps * (2 if method == "heun" else 1)
    torch.testing.assert_close(
        flow.generate([0, 1, 2], **options), plain.generate([0, 1, 2], **options), rtol=1e-4, atol=1e-4
    )


def test_a_changed_weight_is_seen_and_of_an_unchanged_network_one_form_is_made(monkeypatch):
    flow = tiny_flow()
    made = []
    build = form_module.build_form
    monkeypatch.setattr(
        "msf.network.inference.kept.build_form", lambda *given, **how: made.append(1) or build(*given, **how)
    )

    before = flow.classify(pictures(), n_samples=2)
    flow.classify(pictures(), n_samples=2)
    assert len(made) == 1
    with torch.no_grad():
        flow.network.out.conv.bias.add_(1.0)
    after = flow.classify(pictures(), n_samples=2)
    assert len(made) == 2
    assert not torch.equal(before.class_distance, after.class_distance)


def test_a_weight_that_was_changed_behind_pytorch_s_back_is_seen():
    flow = tiny_flow().to(dtype=torch.bfloat16)
    flow.classify(pictures(), n_samples=2)
    for parameter in flow.network.parameters():
        parameter.data.mul_(0.5)
    halved = flow.classify(pictures(), n_samples=2)
    fresh = MedSymmFlow(TASK, flow.config, network=flow.network).classify(pictures(), n_samples=2)
    assert torch.equal(halved.class_distance, fresh.class_distance)


def test_a_flow_made_in_inference_mode_serves():
    with torch.inference_mode():
        flow = tiny_flow()
        expected = flow.classify(pictures(), n_samples=2)
    assert torch.equal(flow.classify(pictures(), n_samples=2).class_distance, expected.class_distance)


def test_another_dtype_is_another_form():
    flow = tiny_flow()
    flow.classify(pictures(), n_samples=2)
    flow.to(dtype=torch.bfloat16)
    flow.classify(pictures(), n_samples=2)
    assert form_of(flow).dtype == torch.bfloat16


def test_the_last_step_computes_only_what_is_read():
    flow = tiny_flow()
    wanted = []
    network = form_of(flow)

    class Recorder(Velocity):
        def __call__(self, z, t, *, channels=None):
            wanted.append(channels)
            return network(z, t, channels=channels)

    solver = FlowSolver(Recorder(), n_steps=3, method="euler", flow="joint", dtype=torch.float32)
    noise = torch.randn(2, 2, 8, 8)
    solver.to_code(pictures(), noise)
    solver.to_picture(pictures(), noise)
    assert wanted == [None, None, slice(1, 3), None, None, slice(0, 1)]


@pytest.mark.parametrize("flow_name", ["joint", "conditional"])
@pytest.mark.parametrize("is_hooked", [False, True], ids=["inference form", "plain network"])
def test_a_flow_in_float64_computes_in_float64(is_hooked, flow_name):
    flow, twin = tiny_flow("independent"), tiny_flow("independent").to(dtype=torch.float64)
    if is_hooked:
        for each in (flow, twin):
            each.network.register_forward_hook(lambda module, inputs, output: output)
    velocities = [form_of(each) for each in (flow, twin)]
    assert all(isinstance(velocity, PlainVelocity if is_hooked else InferenceForm) for velocity in velocities)
    z = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert velocities[1](z, (1.0, 0.5)).dtype == torch.float64
    torch.testing.assert_close(
        velocities[1](z, (1.0, 0.5)), twin.network(z, torch.tensor([[1.0, 0.5]])), rtol=1e-11, atol=1e-11
    )
    for method in ("euler", "heun"):
        single, double = (
            each.classify(pictures(), n_samples=3, n_steps=2, method=method, flow=flow_name) for each in (flow, twin)
        )
        torch.testing.assert_close(
            double.class_distance, single.class_distance, rtol=1e-4, atol=1e-5, check_dtype=False
        )
        generated = [each.generate([0, 1], n_steps=2, method=method, flow=flow_name) for each in (flow, twin)]
        torch.testing.assert_close(*generated, rtol=1e-4, atol=1e-4)


def test_a_form_made_under_a_forced_backend_is_not_kept_beyond_it():
    flow = tiny_flow()
    first = form_of(flow)
    with use_backend("reference"):
        assert form_of(flow) is not first
    flow.refresh()
    assert form_of(flow) is not first


def test_a_hooked_network_classifies_as_itself_and_says_so_once(caplog):
    flow = tiny_flow()
    before = flow.classify(pictures(), n_samples=2)
    flow.network.out.register_forward_hook(lambda module, inputs, output: output + 0.5)
    hooked = [flow.classify(pictures(), n_samples=2) for _ in range(2)]
    assert len([record for record in caplog.records if "has hooks" in record.getMessage()]) == 1
    plain = MedSymmFlow(TASK, flow.config, network=CountingNetwork(flow.network)).classify(pictures(), n_samples=2)
    assert torch.equal(hooked[0].class_distance, plain.class_distance)
    assert not torch.allclose(hooked[0].class_distance, before.class_distance, rtol=1e-3)


def test_a_copied_or_pickled_flow_makes_its_own_form():
    flow = tiny_flow()
    expected = flow.classify(pictures(), n_samples=2)
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(twin.classify(pictures(), n_samples=2).class_distance, expected.class_distance)
