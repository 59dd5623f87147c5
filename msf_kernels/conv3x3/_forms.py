"""The forms in which the native convolution computes, and which of them serves a convolution of maps of one size."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch


class Form(IntEnum):
    """How tiles are transformed; the numbers are those of the library.

    `DIRECT` transforms nothing. The others are Winograd's F(outputs, taps) in both axes: `TWO` is F(2, 3), `FOUR` is
    F(4, 3); `DOUBLING` is F(4, 2) and `DOUBLING_TWO` F(2, 2), once per parity of a doubled map's row and column (which
    `DIRECT` serves too).
    """

    DIRECT = 0
    TWO = 1
    FOUR = 2
    DOUBLING = 3
    DOUBLING_TWO = 4


TILE_OUTPUTS = {Form.DIRECT: 1, Form.TWO: 2, Form.FOUR: 4, Form.DOUBLING: 4, Form.DOUBLING_TWO: 2}
TILE_INPUTS = {Form.DIRECT: 1, Form.TWO: 4, Form.FOUR: 6, Form.DOUBLING: 5, Form.DOUBLING_TWO: 3}
TAPS = {Form.TWO: 9, Form.FOUR: 9, Form.DOUBLING: 4, Form.DOUBLING_TWO: 4}

# With fewer channels, or tiles that are mostly the zeros around the map, what tiles of four outputs lose in their
# transforms would be more than the plain sum loses: their root mean square error would be above twice that one's.
# F(2, 3) loses less than the plain sum at any size. In bfloat16 the transformed inputs are rounded: what tiles of four
# outputs lose by that is seven times the rounding of a plain sum's weights, what those of two lose 2.5 times (128
# channels).
FEWEST_CHANNELS = {Form.FOUR: 64, Form.DOUBLING: 32}
SHORTEST_SIDE = 4
# In bfloat16, at the ends of a network, there is nothing to gain for that loss.
FEWEST_CHANNELS_OF_PAIRS = 32


class ConvSizes(NamedTuple):
    """What decides on the form of a convolution; the number of items plays no part.

    Args:
        side: Taps per axis of the weight, 1 or 3 (2 when summed for doubled maps).
        in_channels: Channels of the map.
        out_channels: Channels of the result.
        height: Rows of the map.
        width: Columns of the map.
        stride: Step of the output.
        upsample: Whether the map is doubled.
        dtype: Of the maps, float32 or bfloat16.
    """

    side: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    stride: int
    upsample: bool
    dtype: torch.dtype


def choose_form(sizes: ConvSizes) -> Form:
    """Return the form with the fewest products per item, the more accurate one where two have as many."""
    side, in_channels, out_channels, height, width, stride, upsample, dtype = sizes
    tiles_of_four = Form.DOUBLING if upsample else Form.FOUR
    is_four_accurate = (
        dtype == torch.float32 and in_channels >= FEWEST_CHANNELS[tiles_of_four] and min(height, width) >= SHORTEST_SIDE
    )
    is_thin = dtype == torch.bfloat16 and min(in_channels, out_channels) < FEWEST_CHANNELS_OF_PAIRS
    if side == 1 or stride != 1 or is_thin:
        return Form.DIRECT
    tiles_of_two = Form.DOUBLING_TWO if upsample else Form.TWO
    forms = [Form.DIRECT, tiles_of_two, *([tiles_of_four] if is_four_accurate else [])]
    return min(forms, key=lambda form: _products(form, TAPS[tiles_of_two], height, width))


def _products(form: Form, n_taps: int, height: int, width: int) -> int:
    per_tile = n_taps if form == Form.DIRECT else TILE_INPUTS[form] ** 2
    return per_tile * math.prod(-(-length // TILE_OUTPUTS[form]) for length in (height, width))
