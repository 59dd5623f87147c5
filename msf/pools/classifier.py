"""A small reference classifier, trained in a minute on two cores: a judge of pools that is not the flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from msf.data import Split, apply_flips, draw_flips, prepare_images, seeded_generator

WIDTHS = (16, 32, 64)
_GROUPS = 8
_WARMUP_SHARE = 0.1
_PART = 512
_STEP_STREAM = 2
# Classical augmentation, drawn per picture: rotation up to 15 degrees, shift and scale by a tenth, levels by a tenth.
_DEGREES, _SHIFT, _SCALE, _LEVELS = 15.0, 0.1, 0.1, 0.1


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """How the reference classifier is trained.

    Args:
        n_steps: Optimiser steps, the same whatever there is to train on.
        batch_size: Pictures per step.
        learning_rate: Largest rate of a one-cycle cosine schedule.
        weight_decay: Of AdamW.
        augment: Whether pictures are turned, shifted, scaled and changed in brightness at random.
        flips: Whether they are mirrored at random, with `augment`.
    """

    n_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    augment: bool = False
    flips: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2)
        self.norms = nn.ModuleList([nn.GroupNorm(_GROUPS, out_channels) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.norms[0](self.first(x)))
        h = self.norms[1](self.second(h)) + self.shortcut(x)
        return functional.silu(h)


class Classifier(nn.Module):
    """A residual network of three widths with group norms; its features are the means of the last maps.

    Args:
        channels: Of the pictures, 1 or 3.
        size: Height and width that pictures are brought to.
        n_classes: Classes.
    """

    def __init__(self, channels: int, size: int, n_classes: int) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.channels = channels
        self.size = size
        self.stem = nn.Conv2d(channels, WIDTHS[0], 3, padding=1)
        pairs = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.blocks = nn.Sequential(*[_Block(before, after) for before, after in pairs])
        self.head = nn.Linear(WIDTHS[-1], n_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [N, n_classes] of prepared pictures [N, C, H, W] in [-1, 1]."""
        logits: Tensor = self.head(self._features(pictures))
        return logits

    def _features(self, pictures: Tensor) -> Tensor:
        return self.blocks(functional.silu(self.stem(pictures))).mean(dim=(2, 3))  # type: ignore[no-any-return]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features of pictures, uint8 [N, H, W, C]: float32 [N, 64]."""
        return torch.cat([self._features(self.prepare(part)) for part in torch.split(images, _PART)])

    @torch.no_grad()
    def probability(self, images: Tensor) -> Tensor:
        """Return class probabilities of pictures, uint8 [N, H, W, C]: float32 [N, n_classes]."""
        return torch.cat([self(self.prepare(part)).softmax(1) for part in torch.split(images, _PART)])

    def prepare(self, images: Tensor) -> Tensor:
        """Return pictures, uint8 [N, H, W, C], as the network sees them."""
        return prepare_images(images, self.size, self.channels)


def train_classifier(
    sources: Sequence[Split],
    n_classes: int,
    settings: ClassifierSettings,
    *,
    seed: int,
    size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train a reference classifier; the test pictures are not seen and no step is chosen.

    Every step takes an equal part of its batch from every source, with replacement, so that a few real pictures are not
    lost among many generated ones.

    Args:
        sources: Pictures with labels; of one number of channels.
        n_classes: Classes.
        settings: Length, rate and augmentation.
        seed: Of weights, batches and augmentation.
        size: Height and width that pictures are brought to; default: those of the first source.
        progress: Called as `progress(n_done, n_total)`, in steps.

    Returns:
        The classifier, in evaluation mode, on the CPU.

    Raises:
        ValueError: No source, or an empty one.
    """
    if not sources or not all(len(source) for source in sources):
        raise ValueError("sources must hold at least one picture each; got an empty one")
    height, channels = sources[0].images.shape[1], sources[0].images.shape[3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(channels, height if size is None else size, n_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    n_each = [len(part) for part in torch.arange(settings.batch_size).tensor_split(len(sources))]
    for step in range(settings.n_steps):
        generator = seeded_generator(seed, _STEP_STREAM, step)
        rows = [torch.randint(len(s), (n,), generator=generator) for s, n in zip(sources, n_each, strict=True)]
        pictures = torch.cat([network.prepare(s.images[r]) for s, r in zip(sources, rows, strict=True) if len(r)])
        labels = torch.cat([s.labels[r] for s, r in zip(sources, rows, strict=True)])
        if settings.augment:
            pictures = augmented(pictures, generator, flips=settings.flips)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step / settings.n_steps)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(network(pictures), labels))
        optimizer.step()
        if progress is not None:
            progress(step + 1, settings.n_steps)
    return network.eval()


def augmented(pictures: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
    """Return pictures [N, C, H, W] in [-1, 1], each turned, shifted, scaled and changed in brightness at random.

    Args:
        pictures: The pictures.
        generator: Source of the choices.
        flips: Whether they are also mirrored, left-right and upside down.
    """
    n = len(pictures)
    if flips:
        pictures = apply_flips(pictures, draw_flips(n, generator))
    angle, scale, right, down, gain, offset = (torch.rand(6, n, generator=generator) * 2 - 1).unbind()
    angle, scale = angle * math.radians(_DEGREES), 1 + _SCALE * scale
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cosine, -sine, 2 * _SHIFT * right], 1), torch.stack([sine, cosine, 2 * _SHIFT * down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    moved = moved * (1 + _LEVELS * gain)[:, None, None, None] + (_LEVELS * offset)[:, None, None, None]
    return moved.clamp(-1, 1)


def _rate(share: float) -> float:
    if share < _WARMUP_SHARE:
        return 0.05 + 0.95 * share / _WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (share - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)))
