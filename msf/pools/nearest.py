"""Memorisation: the nearest training picture of a picture, and whether it is nearer than training pictures are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msf.data import apply_flips

LEVEL = 0.01
# Of pictures as levels in [0, 1]: half a step of 8 bits. What is nearer is the same picture, rounded otherwise.
COPY_DISTANCE = 0.5 / 255
_ROWS = 256
_MIRRORS = ((False, False), (True, False), (False, True), (True, True))


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training picture in one space, per picture.

    Args:
        index: Its number; int64 [N].
        mirror: In which orientation, as a number of `mirrored`; int64 [N].
        distance: float64 [N].
        p: Probability that a new picture of the same kind is as near, float64 [N]; see `Neighbours`.
    """

    index: Tensor
    mirror: Tensor
    distance: Tensor
    p: Tensor


class Neighbours:
    """Finds the nearest training picture, and holds its distance against those between training pictures.

    `p = (1 + number of training pictures whose nearest other training picture is at most as near) / (1 + N)`. A new
    picture that is independent of the training set and distributed like it has p <= a with a probability of about a:
    its distance and theirs are exchangeable but for one picture.

    Args:
        points: Training pictures in some space, in every orientation that training shows; float [M, N, D].

    Raises:
        ValueError: Fewer than two pictures.
    """

    def __init__(self, points: Tensor) -> None:
        """Measure the distances among the training pictures."""
        if points.shape[1] < 2:
            raise ValueError(f"the training set must hold two pictures or more; got {points.shape[1]}")
        self._n = points.shape[1]
        self._points = points.flatten(0, 1).float()
        self._among = self._search(points[0].float(), without_own=True)[2].sort().values

    def of(self, queries: Tensor) -> Nearest:
        """Return the nearest training picture of each query, float [K, D]."""
        index, mirror, distance = self._search(queries.float(), without_own=False)
        n_nearer = torch.searchsorted(self._among, distance, right=True)
        return Nearest(index, mirror, distance, (1 + n_nearer).double() / (1 + self._n))

    def _search(self, queries: Tensor, *, without_own: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return number, orientation and distance; distances of the winners are computed once more, from differences.

        Squares are expanded to find the winner, which is fast and loses digits where distances are small.
        """
        # Around the mean, so that as few digits as possible are lost.
        centre = self._points.mean(0)
        points = self._points - centre
        squares = points.square().sum(1)
        winners = []
        for rows in torch.split(torch.arange(len(queries)), _ROWS):
            score = squares - 2 * ((queries[rows] - centre) @ points.T)  # [rows, M N]
            if without_own:
                score.view(len(rows), -1, self._n)[torch.arange(len(rows)), :, rows] = torch.inf
            winners.append(score.argmin(1))
        winner = torch.cat(winners)
        parts = zip(torch.split(queries, _ROWS), torch.split(winner, _ROWS), strict=True)
        distance = torch.cat([(part - self._points[chosen]).double().norm(dim=1) for part, chosen in parts])
        return winner % self._n, winner // self._n, distance


def mirrored(images: Tensor, flips: bool) -> list[Tensor]:
    """Return pictures in the orientations that training shows: as they are, and mirrored where it mirrors.

    Args:
        images: [N, H, W, C].
        flips: Whether it does.
    """
    if not flips:
        return [images]
    pictures = images.permute(0, 3, 1, 2)
    n = len(images)
    choices = [torch.tensor(choice).expand(n, 2) for choice in _MIRRORS]
    return [apply_flips(pictures, choice).permute(0, 2, 3, 1) for choice in choices]


def as_points(images: Tensor) -> Tensor:
    """Return pictures, uint8 [N, H, W, C], as points whose distance is the root mean square difference of levels."""
    values = images.flatten(1).float() / 255
    return values.div(values.shape[1] ** 0.5)


def is_memorised(in_features: Nearest, in_pixels: Nearest, level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """Return which pictures are copies, and which are called memorised.

    Memorised is a copy (`COPY_DISTANCE` in pixels), and a picture whose p is at most `level` both in features and in
    pixels. Asking for both makes the share of independent pictures that are called so at most about `level`.

    Returns:
        Two bool [N].
    """
    is_copy: Tensor = in_pixels.distance <= COPY_DISTANCE
    is_near = (in_features.p <= level) & (in_pixels.p <= level)
    return is_copy, is_copy | is_near
