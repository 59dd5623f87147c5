"""The rewrites of the inference form: what each one saves, and their names for measurement."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum


class Rewrite(StrEnum):
    """A change of how the velocity is computed that leaves the function as it is, up to rounding."""

    FOLDED_TIME = "folded_time"
    """The time MLP and every block's projection run once per evaluation time; their result becomes part of the bias of
    the convolution before the norm, or of the norm's factor and offset."""
    SUBPIXEL_UPSAMPLING = "subpixel_upsampling"
    """Nearest-neighbour doubling and a 3x3 convolution become one transposed convolution of 4x4 taps: 4/9 of the
    arithmetic, and no doubled map."""
    NO_CONCATENATION = "no_concatenation"
    """The norm reads both of its inputs where they are, and the 1x1 convolution of the shortcut is split in two."""
    ONLY_WHAT_IS_READ = "only_what_is_read"
    """The last convolution computes only the channels that the caller names."""
    FUSED_NORM = "fused_norm"
    """Group norm, affine map and SiLU in one pass, by a kernel; otherwise as a chain of tensor operations."""
    FUSED_ATTENTION = "fused_attention"
    """Queries, keys and values are projected, read in place and projected back without a copy, and the residual is
    added by the last projection."""
    FUSED_RESIDUAL = "fused_residual"
    """The last convolution of a block adds the shortcut while it writes."""
    CHANNELS_LAST = "channels_last"
    """Channels are next to each other in memory, as the fast convolutions and the norm want them."""
    PACKED_WEIGHTS = "packed_weights"
    """Weights are brought into the blocked layout of the convolution library once (CPU)."""


ALL_REWRITES = frozenset(Rewrite)


def check_rewrites(rewrites: Collection[Rewrite | str]) -> frozenset[Rewrite]:
    """Return the rewrites as a set.

    Raises:
        ValueError: An unknown name; the text lists the known ones.
    """
    known = {rewrite.value: rewrite for rewrite in Rewrite}
    unknown = sorted(str(name) for name in rewrites if name not in known)
    if unknown:
        raise ValueError(f"rewrites must be among {', '.join(known)}; got {', '.join(unknown)}")
    return frozenset(known[name] for name in rewrites)
