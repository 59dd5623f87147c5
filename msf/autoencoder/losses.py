"""What the training of an autoencoder minimises, and the figure that its reconstructions are judged by."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.shapes import ImageBatch

N_SCALES = 3  # full resolution, half, quarter


def autoencoder_loss(
    decoded: ImageBatch,
    pictures: ImageBatch,
    mean: Tensor,
    logvar: Tensor,
    *,
    kl_weight: float,
    gradient_weight: float,
) -> Tensor:
    """Return the training loss of a batch.

        reconstruction + kl_weight * KL(N(mean, exp(logvar)) || N(0, 1)), the latter as a mean over latents

    Args:
        decoded: float32 [N, C, H, W].
        pictures: Like `decoded`.
        mean: Posterior means, float32 [N, L, h, w].
        logvar: Logarithms of the posterior variances, like `mean`.
        kl_weight: >= 0.
        gradient_weight: >= 0; see `reconstruction_loss`.

    Returns:
        0-dim.
    """
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(decoded, pictures, gradient_weight=gradient_weight) + kl_weight * divergence


def reconstruction_loss(decoded: ImageBatch, pictures: ImageBatch, *, gradient_weight: float) -> Tensor:
    """Return how far pictures are from the originals, in values and in edges, at several resolutions.

    The coarse resolutions are there for colours: a wrong hue is a small error in every pixel that does not average out
    as that of fine texture does. The gradients are there for edges: a blurred one costs little in the pixels.

    Args:
        decoded: float [N, C, H, W].
        pictures: Like `decoded`.
        gradient_weight: Weight of the mean absolute difference between neighbouring-pixel differences against that
            between pixels; >= 0.

    Returns:
        0-dim: mean over the resolutions, down to two pixels along the shorter axis.
    """
    error = decoded - pictures
    terms: list[Tensor] = []
    for _ in range(N_SCALES):
        if terms and min(error.shape[2:]) < 2:
            break
        terms.append(error.abs().mean())
        if gradient_weight and min(error.shape[2:]) >= 2:
            edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            terms[-1] = terms[-1] + gradient_weight * edges / 2
        error = functional.avg_pool2d(error, 2, ceil_mode=True)
    return torch.stack(terms).mean()


def psnr(decoded: ImageBatch, pictures: ImageBatch) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in decibels, [N].

        10 log10(4 / mean squared error), 2 being the width of the range [-1, 1]

    Args:
        decoded: float [N, C, H, W]; clamped to [-1, 1].
        pictures: Like `decoded`, in [-1, 1].
    """
    error = (decoded.clamp(-1, 1) - pictures).square().flatten(1).mean(dim=1)
    return 10 * (math.log10(4.0) - error.log10())
