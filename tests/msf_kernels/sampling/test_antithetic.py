import pytest
import torch
from torch import Tensor

from msf_kernels.sampling import FlowTrajectory, draw
from msf_kernels.solvers import EULER, uniform_grid
from msf_kernels.testing import GaussianMixtureFlow

N_IMAGES, N_PAIRS, N_CLASSES = 40, 128, 4


def variance_of_pair_means(distance: Tensor) -> Tensor:
    pairs = distance.reshape(N_IMAGES, N_PAIRS, 2, N_CLASSES).mean(2)
    return pairs.var(1).mean()


@pytest.mark.parametrize("name", ["joint", "conditional"])
@pytest.mark.parametrize("n_steps", [2, 4, 16])
def test_antithetic_pairs_cut_the_variance_of_mean_distances_of_the_exact_field(name, n_steps, capsys):
    flow = GaussianMixtureFlow(2.2 * torch.eye(4, 16).double(), torch.eye(4).double(), sigma=0.9)
    images, _ = flow.sample(N_IMAGES, torch.Generator().manual_seed(1))
    trajectory = FlowTrajectory(
        flow.velocity_field if name == "joint" else flow.held_image_field,
        uniform_grid(n_steps, 1.0, 0.0),
        EULER,
        readout=lambda z: {"distance": torch.cdist(z[:, 16:], flow.codes)},
    )
    variance, antithetic = (
        variance_of_pair_means(
            draw(
                trajectory,
                images,
                2 * N_PAIRS,
                (4,),
                noise_dtype=torch.float64,
                statistics={},
                keep_samples=True,
                micro_batch=256,
                antithetic=is_antithetic,
            ).samples["distance"]
        )
        for is_antithetic in (False, True)
    )
    with capsys.disabled():
        print(f"\nantithetic, {name} flow, {n_steps} steps: variance ratio {antithetic / variance:.2f}")
    assert antithetic < 0.95 * variance


def test_the_mean_of_a_readout_that_is_linear_in_the_noise_is_exact():
    result = draw(lambda x, noise: x + noise, torch.zeros(1, 1), 8, (1,), antithetic=True)
    assert result.statistics["readout"]["mean"].item() == 0.0
