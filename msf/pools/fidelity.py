"""How close a set of generated pictures is to a set of real ones, in the space of some features."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000
NEIGHBOURS = 5
_ROWS = 1024


class _AsGiven(nn.Module):
    """Takes features where a metric expects a network that makes them."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.num_features = n_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_and_kernel(real: Tensor, generated: Tensor, *, seed: int = 0) -> dict[str, float | int]:
    """Return the Frechet and the kernel distance of two sets of features, as torchmetrics computes them.

    Args:
        real: float [N, F], N >= 2.
        generated: float [M, F], M >= 2.
        seed: Of the subsets of the kernel distance.

    Returns:
        `fid`; `kid` (mean) and `kid_std` over `kid_subsets` subsets of `kid_subset_size` pictures.

    Numerics:
        float64.

    Source:
        Heusel et al., arXiv 1706.08500; Binkowski et al., arXiv 1801.01401 (polynomial kernel of degree 3).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(real), len(generated))
    n_subsets = 1 if size == len(real) == len(generated) else KID_SUBSETS
    network = _AsGiven(real.shape[1])
    fid = FrechetInceptionDistance(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features, which are here already
        kid = KernelInceptionDistance(network, subsets=n_subsets, subset_size=size)
    for metric in (fid, kid):
        metric.update(real.double(), real=True)
        metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = kid.compute()
    return {
        "fid": float(fid.compute()),
        "kid": float(mean),
        "kid_std": float(deviation),
        "kid_subsets": n_subsets,
        "kid_subset_size": size,
    }


def manifold_figures(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> dict[str, float | int]:
    """Return precision, recall, density and coverage of two sets of features.

    Every picture has a ball that reaches to its k-th neighbour in its own set. Precision: share of the generated
    pictures inside a real ball. Density: real balls around a generated picture, over k. Recall: share of the real
    pictures inside a generated ball. Coverage: share of the real balls with a generated picture inside.

    Args:
        real: float [N, F], N >= 2.
        generated: float [M, F], M >= 2.
        k: Neighbours; lowered to N - 1 and M - 1.

    Returns:
        The four figures, and `k`.

    Source:
        Kynkaanniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797.
    """
    k = min(k, len(real) - 1, len(generated) - 1)
    real, generated = real.double(), generated.double()
    real_radius, generated_radius = _radius(real, k), _radius(generated, k)
    n_balls = torch.zeros(len(generated), dtype=torch.int64)
    is_recalled, is_covered = [], []
    for rows in torch.split(torch.arange(len(real)), _ROWS):
        distance = torch.cdist(real[rows], generated)  # [rows, M]
        is_inside = distance <= real_radius[rows, None]
        n_balls += is_inside.sum(0)
        is_covered.append(is_inside.any(1))
        is_recalled.append((distance <= generated_radius).any(1))
    return {
        "precision": float((n_balls > 0).double().mean()),
        "recall": float(torch.cat(is_recalled).double().mean()),
        "density": float(n_balls.double().mean() / k),
        "coverage": float(torch.cat(is_covered).double().mean()),
        "k": k,
    }


def _radius(features: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th neighbour among the others."""
    return torch.cat(
        [torch.cdist(part, features).kthvalue(k + 1, dim=1).values for part in torch.split(features, _ROWS)]
    )  # the first neighbour is the row itself
