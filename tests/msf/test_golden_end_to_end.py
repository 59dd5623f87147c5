"""Whole solves end where the authors' solves end: states, distances, labels, pictures, and the loss on the way."""

import pytest
import torch

from msf.flow.path import SymmetricProbPath
from msf.medsymmflow import MedSymmFlow
from msf.training.losses import symmetric_loss
from msf_kernels import use_backend
from msf_kernels.solvers import EULER, HEUN, MIDPOINT, RK4_38, integrate, uniform_grid

# The authors integrate with torchdiffeq, whose rk4 is the 3/8 rule and whose heun2 is the classical Heun step.
SOLVES = {
    "euler1": (EULER, 1),
    "euler5": (EULER, 5),
    "midpoint4": (MIDPOINT, 4),
    "heun2_4": (HEUN, 4),
    "rk4_4": (RK4_38, 4),
}


@pytest.fixture(scope="module", params=["auto", "reference"])
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def flow(golden, backend):
    settings = golden.settings
    flow = MedSymmFlow.from_official(
        golden.path,
        n_classes=int(settings["n_classes"]),
        code="rgb" if settings["rgb_mask"] == "True" else "grey",
        head_channels=int(settings["num_head_channels"]),
        beta=float(settings["beta"]),
        image_size=int(settings["image_size"]),
    )
    flow.network.requires_grad_(False)
    return flow


def assert_near(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("solve", SOLVES)
def test_classification_ends_in_the_authors_state_distances_and_labels(golden, flow, solve):
    tableau, n_steps = SOLVES[solve]
    tensors, prefix = golden.tensors, f"classify_{solve}"
    z_1 = torch.cat([tensors["image"], tensors["classify_noise"]], dim=1)
    solution = integrate(flow.velocity_field, z_1, uniform_grid(n_steps, 1.0, 0.0), tableau)
    assert_near(solution.state, tensors[f"{prefix}_state"], 1e-4)
    semantic = solution.state[:, flow.task.image_channels :]
    assert_near(flow.code.distance(semantic)[0], tensors[f"{prefix}_distance"], 1e-4)
    assert torch.equal(flow.code.decode_mean(semantic), tensors[f"{prefix}_mean"].long())
    assert torch.equal(flow.code.decode_mode(semantic), tensors[f"{prefix}_mode"].long())


def test_grids_per_sample_end_in_the_authors_state_too(golden, flow):
    tensors = golden.tensors
    z_1 = torch.cat([tensors["image"], tensors["classify_noise"]], dim=1)
    grid = torch.tensor(uniform_grid(4, 1.0, 0.0)).expand(z_1.shape[0], -1)
    solution = integrate(flow.velocity_field, z_1, grid, HEUN)
    assert_near(solution.state, tensors["classify_heun2_4_state"], 1e-4)


def test_generation_ends_in_the_authors_state(golden, flow):
    tensors = golden.tensors
    z_0 = torch.cat([tensors["generate_noise"], tensors["mask"]], dim=1)
    solution = integrate(flow.velocity_field, z_0, uniform_grid(5), EULER)
    assert solution.nfe == 5
    assert_near(solution.state, tensors["generate_euler5_state"], 1e-4)


def test_loss_terms_equal_the_authors(golden, flow):
    tensors = golden.tensors
    point = SymmetricProbPath(flow.config.path.sigma_min).sample(
        tensors["image"], tensors["mask"], tensors["loss_t"], tensors["loss_noise_image"], tensors["loss_noise_mask"]
    )
    v = flow.velocity_field(point.z_t, point.t)
    loss = symmetric_loss(v, point.dz_t, flow.task.image_channels, float(golden.settings["image_weight"]))
    assert_near(torch.stack([loss.image, loss.semantic]), tensors["loss"], 1e-5)
