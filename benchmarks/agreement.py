"""When two variants of a job count as the same computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# (metric, unit, value): what a comparison states about two results, besides not raising.
Stated = tuple[str, str, float]
Agree = Callable[[Any, Any], Iterator[Stated]]


def no_agreement(ours: Any, peer: Any) -> Iterator[Stated]:
    """Compare nothing: the variants draw different random numbers, or return nothing."""
    yield from ()


def same_numbers(tolerance: float) -> Agree:
    """Require tensors that are equal up to rounding, and state the largest difference."""

    def agree(ours: Tensor, peer: Tensor) -> Iterator[Stated]:
        torch.testing.assert_close(peer.to(ours.dtype), ours, rtol=tolerance, atol=tolerance)
        yield "largest_difference", "1", float((ours.double() - peer.double()).abs().max())

    return agree


def close_in_rms(largest: float) -> Agree:
    """Require a root-mean-square difference that is small beside the result's own: for low precision."""

    def agree(ours: Tensor, peer: Tensor) -> Iterator[Stated]:
        difference = (ours.double() - peer.double()).square().mean().sqrt()
        relative = float(difference / peer.double().square().mean().sqrt())
        if not relative <= largest:
            raise AssertionError(f"relative RMS difference {relative:.3g}, wanted at most {largest:g}")
        yield "relative_rms_difference", "ratio", relative

    return agree


def same_decisions(least_share: float) -> Agree:
    """Require equal labels for a share of the pictures, and state how far the distances are apart.

    A result is a mapping with `label` [N] and `distance` [N, n_classes]. A slow variant may have fewer pictures: the
    first of the others'.
    """

    def agree(ours: Mapping[str, Tensor], peer: Mapping[str, Tensor]) -> Iterator[Stated]:
        n = len(peer["label"])
        share = float((ours["label"][:n] == peer["label"]).double().mean())
        if not share >= least_share:
            raise AssertionError(f"{share:.3f} of the labels are equal, wanted at least {least_share:g}")
        yield "label_agreement", "ratio", share
        difference = (ours["distance"][:n].double() - peer["distance"].double()).abs()
        yield "distance_difference", "1", float(difference.max())

    return agree
