import importlib.util

import pytest
import torch

from benchmarks import workloads
from benchmarks.peers import Unavailable, attention, module_from_file, require, solvers, unet
from benchmarks.peers.authors import PublishedPipeline
from msf_kernels import spatial_attention

CPU = torch.device("cpu")
need_torchcfm = pytest.mark.skipif(importlib.util.find_spec("torchcfm") is None, reason="needs torchcfm")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        return workloads.pixel(quick=True)


def test_a_missing_package_is_a_reason():
    with pytest.raises(Unavailable, match="no_such_package cannot be imported"):
        require("no_such_package.part")
    with pytest.raises(Unavailable, match="no_such_package is not installed"):
        module_from_file("no_such_package", "part.py")
    with pytest.raises(Unavailable, match=r"this version of torch has no no_such_part\.py"):
        module_from_file("torch", "no_such_part.py")


@need_torchcfm
def test_the_published_network_computes_what_ours_does_with_the_same_weights(model):
    z = torch.randn(2, 6, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model.network(z, 0.5)
        torch.testing.assert_close(unet.published(model.network, CPU)(z, 0.5), ours, rtol=1e-4, atol=1e-5)
        tuned = unet.eager(model.network, CPU, torch.bfloat16)(z, 0.5)
        torch.testing.assert_close(unet.eager(model.network, CPU, torch.float32)(z, 0.5), ours, rtol=1e-4, atol=1e-5)
    assert float((tuned - ours).square().mean().sqrt() / ours.square().mean().sqrt()) < 0.03


@pytest.mark.parametrize("is_cured", [True, False])
def test_a_compiler_that_gives_nan_is_tried_with_narrower_vectors(is_cured, monkeypatch):
    from torch._inductor import config

    def compile_wrongly(network, dynamic):
        factor = []  # of the options at the first call, as the compiler does it

        def call(*arguments):
            factor.append(1 if is_cured and config.cpp.simdlen == 256 else float("nan"))
            return network(*arguments) * factor[0]

        return call

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    network = unet.CompiledNetwork(lambda t, z: z + t, {"freezing": True})
    assert network(torch.ones(2), torch.ones(2)).isfinite().all() == is_cured
    assert network(torch.ones(2), torch.ones(2)).isfinite().all() == is_cured
    assert "simdlen" in network.note
    assert config.cpp.simdlen != 256


def test_a_compiler_that_fails_is_a_reason(monkeypatch):
    def fail(network, dynamic):
        return lambda *arguments: torch.ones(2) @ torch.ones(3)

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(Unavailable, match=r"torch\.compile fails here: RuntimeError"):
        unet.CompiledNetwork(lambda z: z, {})(torch.ones(2))


@need_torchcfm
@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_published_pipeline_and_ours_decide_alike(model, n_steps):
    pipeline = PublishedPipeline(unet.published(model.network, CPU), model.palette, batch=4)
    images, noise = model.images(6), model.noise(6, 2)
    with torch.inference_mode():
        peer = pipeline.classify(images, noise, n_steps)
    ours = model.flow.classify(images, n_samples=2, n_steps=n_steps, noise=noise)
    assert torch.equal(ours.label, peer["label"])
    torch.testing.assert_close(ours.class_distance.float(), peer["distance"], rtol=1e-3, atol=1e-4)


def test_the_fitted_model_decides_right(model):
    found = model.flow.classify(model.images(8), n_samples=1, noise=model.noise(8, 1))
    assert found.label.tolist() == list(range(8))


@pytest.mark.parametrize("name", ["sdpa-math", "sdpa-flash"])
def test_attention_peers_read_the_same_packing(name):
    qkv = torch.randn(2, 16, 3 * 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention.PEERS[name](qkv, 2)(), spatial_attention(qkv, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sdpa-cudnn", "flash-attn", "xformers"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_attention_that_needs_a_gpu_says_so(name):
    with pytest.raises(Unavailable):
        attention.PEERS[name](torch.zeros(1, 4, 24), 2)


@pytest.mark.parametrize(
    ("make", "n_calls"),
    [
        (solvers.torchdiffeq_heun, 50), (solvers.torchode_heun, 50), (solvers.diffusers_heun, 49),
        (solvers.torchdiffeq_euler, 25), (solvers.torchode_euler, 25), (solvers.diffusers_euler, 25),
    ],
)  # fmt: skip
def test_solver_peers_take_the_steps_they_are_asked_for(make, n_calls):
    calls = []

    def field(z):
        calls.append(z)
        return -0.5 * z

    try:
        end = make(field, 25)(torch.ones(2, 3))
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert len(calls) == n_calls
    exact = torch.full((2, 3), -0.5).exp()
    torch.testing.assert_close(end, exact, rtol=1e-2, atol=0.0)
