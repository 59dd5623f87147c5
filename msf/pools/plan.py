"""What a pool is made of: which pictures, with which noise, and what is noted about each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf.config import GenerateSettings
from msf.files.tensors import digest_of
from msf.flow.solver import require_trained_for
from msf.medsymmflow import MedSymmFlow
from msf.report.figures import as_pixels

MOST_PER_CLASS = 2**25  # what the keys of noise leave for the index, beside 64 classes
COLUMNS = (
    "file", "label", "label_name", "index", "seed", "checkpoint_sha256", "n_steps", "method", "flow",
    "guidance", "dequantise", "size", "micro_batch",
)  # fmt: skip
# Pictures evaluated at once, the same in every part of a pool, since bits of a network depend on it.
_MICRO_BATCH = {"cpu": 64}
_MICRO_BATCH_ELSEWHERE = 256


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """A pool before it is made: picture number i is number `i % per_class` of class `labels[i // per_class]`.

    Args:
        labels: The classes, each once.
        per_class: Pictures of each.
        class_names: Of all classes of the network.
        channels: Of the pictures, 1 or 3.
        settings: How they are made; `micro_batch` and `size` are numbers.
        seed: Of the noise.
        checkpoint: Digest of the network's tensors.

    Raises:
        ValueError: More pictures of a class than there are keys.
    """

    labels: tuple[int, ...]
    per_class: int
    class_names: tuple[str, ...]
    channels: int
    settings: GenerateSettings
    seed: int
    checkpoint: str

    def __post_init__(self) -> None:
        """Check the number."""
        if not 1 <= self.per_class <= MOST_PER_CLASS:
            raise ValueError(f"per_class must be in [1, {MOST_PER_CLASS}]; got {self.per_class}")

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels) * self.per_class

    def label(self, number: int) -> int:
        """Return the class of a picture."""
        return self.labels[number // self.per_class]

    def index(self, number: int) -> int:
        """Return a picture's number within its class."""
        return number % self.per_class

    def note(self) -> dict[str, Any]:
        """Return what all pictures depend on, JSON-ready; pools with another note are never mixed."""
        settings = self.settings
        return {
            "checkpoint_sha256": self.checkpoint,
            "labels": list(self.labels),
            "per_class": self.per_class,
            "seed": self.seed,
            **settings.to_dict(),
            "size": settings.size,
            "micro_batch": settings.micro_batch,
        }

    def row(self, number: int, file: str) -> dict[str, Any]:
        """Return what is noted about a picture, by `COLUMNS`."""
        label = self.label(number)
        own = {"file": file, "label": label, "label_name": self.class_names[label]}
        values = {**self.note(), **own, "index": self.index(number)}
        return {name: values[name] for name in COLUMNS}


def plan_pool(
    flow: MedSymmFlow, labels: Sequence[int], per_class: int, settings: GenerateSettings, *, seed: int
) -> PoolPlan:
    """Return the plan of a pool, with numbers in the place of defaults.

    Args:
        flow: Makes the pictures.
        labels: The classes, each once.
        per_class: Pictures of each.
        settings: How they are made.
        seed: Of the noise.

    Raises:
        ValueError: A number out of range, or settings that the network cannot serve.
    """
    require_trained_for(settings, flow.config)
    chosen = settings.micro_batch or _MICRO_BATCH.get(flow.device.type, _MICRO_BATCH_ELSEWHERE)
    size = settings.size or flow.config.data.image_size
    return PoolPlan(
        labels=tuple(labels),
        per_class=per_class,
        class_names=flow.task.class_names or tuple(map(str, range(flow.task.n_classes))),
        channels=flow.task.image_channels,
        settings=dataclasses.replace(settings, micro_batch=chosen, size=size),
        seed=seed,
        checkpoint=digest_of(flow.network.state_dict()),
    )


def parts_of(plan: PoolPlan, numbers: Sequence[int]) -> list[Sequence[int]]:
    """Return pictures in the parts that are made and kept at once, of one micro-batch each: all that a kill costs."""
    n = plan.settings.micro_batch
    assert n is not None
    return [numbers[first : first + n] for first in range(0, len(numbers), n)]


def make_part(flow: MedSymmFlow, plan: PoolPlan, numbers: Sequence[int]) -> Tensor:
    """Make some pictures of a pool.

    Args:
        flow: Makes them.
        plan: Of the pool.
        numbers: Which pictures, at least one.

    Returns:
        uint8 [len(numbers), H, W, C].

    Raises:
        ValueError: Outputs that are not finite.

    Numerics:
        The noise of a picture follows from the plan's seed, its class and its index. Every micro-batch is filled up to
        the plan's size, so that bits do not depend on which pictures are made together.
    """
    assert plan.settings.micro_batch is not None
    labels = torch.tensor([plan.label(number) for number in numbers])
    index = torch.tensor([plan.index(number) for number in numbers])
    n_more = -len(numbers) % plan.settings.micro_batch
    labels, key = (torch.cat([each, each[-1:].expand(n_more)]) for each in (labels, labels * MOST_PER_CLASS + index))
    pictures = flow.generate(labels, plan.settings, seed=plan.seed, key=key)[: len(numbers)]
    return torch.from_numpy(as_pixels(pictures))
