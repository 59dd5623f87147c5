"""FID and KID against torchmetrics' own way from pictures, and against the formulas; precision to coverage by hand."""

import warnings

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from msf.pools.classifier import Classifier
from msf.pools.fidelity import frechet_and_kernel, manifold_figures


class Features(nn.Module):
    num_features = 64

    def __init__(self):
        super().__init__()
        self.network = Classifier(1, 8, 3).eval()

    def forward(self, images):
        return self.network.features(images)


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (70, 8, 8, 1), generator=generator, dtype=torch.uint8)
    return real, (torch.randint(0, 200, (50, 8, 8, 1), generator=generator, dtype=torch.uint8))


def test_fid_and_kid_are_those_that_torchmetrics_gives_for_the_pictures(pictures):
    network = Features()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fid = FrechetInceptionDistance(network)
        kid = KernelInceptionDistance(network, subsets=50, subset_size=50)
    for metric in (fid, kid):
        metric.update(pictures[0], real=True)
        metric.update(pictures[1], real=False)
    torch.manual_seed(7)
    mean, deviation = kid.compute()
    found = frechet_and_kernel(*map(network, pictures), seed=7)
    assert found["fid"] == pytest.approx(float(fid.compute()), rel=1e-4, abs=1e-5)
    assert found["kid"] == pytest.approx(float(mean), rel=1e-3, abs=1e-5)
    assert found["kid_std"] == pytest.approx(float(deviation), rel=1e-2, abs=1e-6)
    assert (found["kid_subsets"], found["kid_subset_size"]) == (50, 50)


def test_fid_is_the_distance_of_two_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    real, made = torch.randn(400, 3, generator=generator), 2 * torch.randn(300, 3, generator=generator) + 1
    means, covariances = [x.double().mean(0) for x in (real, made)], [torch.cov(x.double().T) for x in (real, made)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ values.sqrt().diag() @ vectors.T
    middle = torch.linalg.eigvalsh(root @ covariances[1] @ root).sqrt().sum()
    wanted = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * middle
    assert frechet_and_kernel(real, made)["fid"] == pytest.approx(float(wanted), rel=1e-9)


def test_kid_of_all_pictures_is_the_unbiased_estimate():
    generator = torch.Generator().manual_seed(0)
    real, made = torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator) + 0.5
    found = frechet_and_kernel(real, made)
    kernel = lambda a, b: (a.double() @ b.double().T / 5 + 1) ** 3  # noqa: E731
    within = sum((k.sum() - k.trace()) / (40 * 39) for k in (kernel(real, real), kernel(made, made)))
    assert found["kid"] == pytest.approx(float(within - 2 * kernel(real, made).mean()), rel=1e-9)
    assert (found["kid_subsets"], found["kid_std"]) == (1, 0)


def test_the_callers_random_numbers_stay(pictures):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    frechet_and_kernel(torch.randn(10, 3, generator=torch.Generator()), torch.randn(12, 3, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_recall_density_and_coverage_on_a_line():
    real = torch.tensor([0.0, 1.0, 2.0, 10.0])[:, None]  # radii of the first neighbour: 1, 1, 1, 8
    made = torch.tensor([0.5, 1.5, 30.0])[:, None]  # radii: 1, 1, 28.5
    found = manifold_figures(real, made, k=1)
    # 0.5 and 1.5 lie in two balls each; 30 in none.
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["density"] == pytest.approx(4 / 3)
    # Balls of 0, 1 and 2 hold a generated picture, and that of 10 (reach 8): 1.5 is 8.5 away, so none.
    assert found["coverage"] == pytest.approx(3 / 4)
    # 0, 1, 2 are within 1 of a generated picture; 10 is within 28.5 of 30.
    assert found["recall"] == pytest.approx(1.0)


def test_the_same_distribution_has_high_figures_and_another_low_ones():
    generator = torch.Generator().manual_seed(0)
    real, same = torch.randn(2, 300, 4, generator=generator).unbind()
    alike, apart = manifold_figures(real, same), manifold_figures(real, same + 20)
    assert min(alike["precision"], alike["recall"], alike["coverage"]) > 0.8
    assert alike["density"] == pytest.approx(1, abs=0.2)
    assert (apart["precision"], apart["coverage"], apart["density"]) == (0, 0, 0)
