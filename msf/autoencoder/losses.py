"""What the training of an autoencoder minimises, and the figure that its reconstructions are judged by."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.shapes import ImageBatch

N_SCALES = 3  # of the gradient term: full, half and quarter resolution


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

        |decoded - pictures| + gradient_weight * gradient_difference + kl_weight * KL(N(mean, exp(logvar)) || N(0, 1))

    All three terms are means: over values, over values and scales, over latents.

    Args:
        decoded: float32 [N, C, H, W].
        pictures: Like `decoded`.
        mean: Posterior means, float32 [N, L, h, w].
        logvar: Logarithms of the posterior variances, like `mean`.
        kl_weight: >= 0.
        gradient_weight: >= 0.

    Returns:
        0-dim.
    """
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = (decoded - pictures).abs().mean() + kl_weight * divergence
    if gradient_weight:
        loss = loss + gradient_weight * gradient_difference(decoded, pictures)
    return loss


def gradient_difference(decoded: ImageBatch, pictures: ImageBatch) -> Tensor:
    """Return the mean absolute difference between neighbouring-pixel differences, at several resolutions.

    A blurred edge costs little in the pixels and much here.

    Args:
        decoded: float [N, C, H, W]. Resolutions below two pixels are left out.
        pictures: Like `decoded`.

    Returns:
        0-dim: mean over axes and resolutions; 0 for pictures of one pixel.
    """
    error = decoded - pictures
    terms = []
    for _ in range(N_SCALES):
        if min(error.shape[2:]) < 2:
            break
        terms += [error.diff(dim=2).abs().mean(), error.diff(dim=3).abs().mean()]
        error = functional.avg_pool2d(error, 2)
    return torch.stack(terms).mean() if terms else error.new_zeros(())


def psnr(decoded: ImageBatch, pictures: ImageBatch) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in decibels, [N].

        10 log10(4 / mean squared error), 2 being the width of the range [-1, 1]

    Args:
        decoded: float [N, C, H, W]; clamped to [-1, 1].
        pictures: Like `decoded`, in [-1, 1].
    """
    error = (decoded.clamp(-1, 1) - pictures).square().flatten(1).mean(dim=1)
    return 10 * (math.log10(4.0) - error.log10())
