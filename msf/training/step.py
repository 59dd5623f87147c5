"""The gradients of one batch: the same, but for rounding, in however many parts and processes it is worked on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msf.data import seeded_generator
from msf.flow.path import sample_times
from msf.medsymmflow import MedSymmFlow
from msf.training.dropping import LabelDrop
from msf.training.images import ImageDraws, TrainingImages
from msf.training.item_dropout import drop_by_item, of_items
from msf.training.losses import ItemShares, symmetric_loss
from msf.training.processes import Processes
from msf.training.weighting import weighted
from msf_kernels import symmetric_path

# Keeps the draws of a step apart from those of an epoch's order.
STEP_STREAM = 1


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """A whole batch and all that is random about it, on the host.

    It is drawn for the whole batch by every process, so that nothing depends on how many share it.

    Args:
        rows: Numbers of the pictures; int64 [B].
        draws: What was drawn for the pictures.
        semantic: Semantic maps at t = 0; [B, K, h, w].
        t: Times; [B], or [B, 2].
        sample_index: Identity of each item, in the whole run; int64 [B].
        shares: What each item adds to the loss.
    """

    rows: Tensor
    draws: ImageDraws
    semantic: Tensor
    t: Tensor
    sample_index: Tensor
    shares: ItemShares

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)

    def of(self, items: Tensor, counts: Tensor) -> DrawnBatch:
        """Return some of the items.

        Args:
            items: Their places in the batch; int64 [M].
            counts: Which of them add to the loss; bool [M].
        """
        shares = self.shares.of(items)
        return DrawnBatch(
            self.rows[items],
            self.draws.of(items),
            self.semantic[items],
            self.t[items],
            self.sample_index[items],
            ItemShares(shares.image * counts, shares.semantic * counts),
        )


class GradientStep:
    """Leaves the gradients of a batch's mean loss with the weights.

    A batch of B items is shared by the processes, each of which takes its items in `accumulate` parts. Every process
    has equally many items, filled up with some that count nothing: so all take part in every exchange of gradients,
    also where B is less than their number.

    Args:
        flow: What is trained; its configuration says how.
        network: Its network, as the accelerator has prepared it.
        processes: Who shares the batches.
        precision: `fp32`, or `bf16` for autocast.
    """

    def __init__(
        self,
        flow: MedSymmFlow,
        network: nn.Module,
        processes: Processes,
        precision: str,
    ) -> None:
        """Make the dropout of the network one that knows the items."""
        self._flow = flow
        self._network = network
        self._processes = processes
        self._uses_bf16 = precision == "bf16"
        self._settings = flow.config.train
        self._drop = LabelDrop(flow, self._settings.label_drop)
        self._dropout = drop_by_item(flow.network)

    def draw(self, rows: Tensor, step: int, images: TrainingImages) -> DrawnBatch:
        """Draw what is random in a step.

        Args:
            rows: Numbers of the pictures of the whole batch; int64 [B].
            step: Number of the step.
            images: Where the pictures are from.
        """
        settings = self._settings
        generator = seeded_generator(settings.seed, STEP_STREAM, step)
        draws = images.draw(len(rows), generator)
        maps = self._flow.semantic_maps(images.labels(rows, draws), generator)
        t = sample_times(len(rows), self._flow.config.path, generator)
        semantic, is_labelled = self._drop(maps, generator)
        sample_index = step * settings.batch_size + torch.arange(len(rows))
        return DrawnBatch(rows, draws, semantic, t, sample_index, ItemShares.of_batch(len(rows), is_labelled))

    def gradients(self, batch: DrawnBatch, images: TrainingImages) -> Tensor:
        """Compute gradients, in place of those that were there, and clip them once.

        Args:
            batch: What `draw` returned.
            images: Where the pictures are from.

        Returns:
            Loss of the whole batch, its image term and its semantic term; float32 [3], on the device.
        """
        settings, accelerator = self._settings, self._processes.accelerator
        items, counts = self._processes.padded_rows(len(batch))
        parts = list(zip(items.chunk(settings.accumulate), counts.chunk(settings.accumulate), strict=True))
        self._network.zero_grad(set_to_none=True)
        terms = torch.zeros(3, device=accelerator.device)
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with nullcontext() if is_last else accelerator.no_sync(self._network):
                terms += self._backward(batch.of(*part), images)
        terms = self._processes.sum(terms)
        if settings.gradient_clip:
            accelerator.clip_grad_norm_(self._network.parameters(), settings.gradient_clip)
        return terms

    def _backward(self, part: DrawnBatch, images: TrainingImages) -> Tensor:
        """Add the gradients of a part's share of the loss; return its terms."""
        config, device = self._flow.config, self._processes.accelerator.device
        image = images.batch(part.rows, part.draws)
        image, semantic, t, sample_index = (
            tensor.to(device, non_blocking=True) for tensor in (image, part.semantic, part.t, part.sample_index)
        )
        z_t, dz_t = symmetric_path(
            image,
            semantic,
            t,
            sample_index=sample_index,
            seed=self._settings.seed,
            sigma_min=config.path.sigma_min,
        )
        with (
            of_items(self._dropout, sample_index, self._settings.seed),
            torch.autocast(device.type, torch.bfloat16, enabled=self._uses_bf16),
        ):
            velocity = self._network(z_t, t)
        path, n_image = config.path, image.shape[1]
        velocity, dz_t = (weighted(each, t, n_image, path.loss_weighting) for each in (velocity, dz_t))
        loss = symmetric_loss(velocity, dz_t, n_image, path.image_weight, part.shares.to(device))
        # The processes' gradients are averaged where they are to be added.
        self._processes.accelerator.backward(loss.total * self._processes.n)
        return torch.stack([loss.total, loss.image, loss.semantic]).detach()
