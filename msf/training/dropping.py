"""Label dropping: a share of the training items is shown without its label, so that generation can be guided."""

from __future__ import annotations

import torch
from torch import Tensor

from msf.medsymmflow import MedSymmFlow


class LabelDrop:
    """Hides labels: the semantic map of an item becomes the code's null map, `LabelCode.null_map`.

    What such an item teaches is the image's velocity without a label. Its semantic part does not count in the loss:
    recovering the null map would pull every answer of the classifier towards the mean of the classes.

    Args:
        flow: Its code has the null map.
        share: Probability that an item's label is hidden, in [0, 1).

    Raises:
        ValueError: The null map is that of a class.

    Source:
        Ho and Salimans, arXiv 2207.12598, algorithm 1 (joint training of both models).
    """

    def __init__(self, flow: MedSymmFlow, share: float) -> None:
        """Make the null map where any label is to be hidden."""
        self.share = share
        self._null = flow.semantic_code.null_map(*flow.semantic_shape[1:]) if share else None

    def __call__(self, semantic: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return the maps with some in the null map's place, and which are labelled; with a share of 0 draw nothing.

        Args:
            semantic: Maps of a whole batch at t = 0; [N, K, h, w], on the CPU.
            generator: Source of the choice.

        Returns:
            Maps, and bool [N] or None.
        """
        if self._null is None:
            return semantic, None
        is_labelled = torch.rand(len(semantic), generator=generator) >= self.share
        return torch.where(is_labelled[:, None, None, None], semantic, self._null), is_labelled
