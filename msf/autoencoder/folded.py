"""Nearest-neighbour upsampling followed by a 3x3 convolution, as four 2x2 convolutions on the small map.

Doubling the map repeats every value, so that an output pixel's nine taps meet only four different inputs. For the two
output rows that an input row makes, the three rows of weights (a, b, c) therefore act as

    even row: a * above + (b + c) * here          odd row: (a + b) * here + c * below

and the columns likewise: one 2x2 kernel per (row, column) parity with the weights summed beforehand, 4/9 of the
multiplications. Zero padding stays zero padding.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from msf_kernels import conv3x3, pack_weight


class SubpixelUpsample(nn.Module):
    """What `conv(nearest_upsample(x, 2))` computes, without the large map.

    The convolution stays a submodule of the name that it had, so that the state dict does not change; the summed
    weights are buffers that are not saved, and do not follow later changes of the convolution.

    Args:
        conv: 3x3, stride 1, zero padding 1, one group.

    Raises:
        ValueError: Another convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Sum the weights."""
        super().__init__()
        if not is_foldable(conv):
            raise ValueError(f"conv must be 3x3 with stride 1, zero padding 1 and one group; got {conv}")
        self.conv = conv
        phases = pack_weight(conv.weight.detach(), upsample=True)  # [4, out, in, 2, 2]
        # Four axes, so that a change of the module's memory format can reach it.
        self.register_buffer("weight", phases.flatten(0, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, out, 2H, 2W] from [N, in, H, W], channels-last."""
        phases = cast(Tensor, self.weight).view(4, self.conv.out_channels, self.conv.in_channels, 2, 2)
        return conv3x3(x, phases, self.conv.bias, upsample=True)


def fold_upsampling(module: nn.Module) -> int:
    """Replace every diffusers `Upsample2D` that is nearest upsampling and a 3x3 convolution; return how many.

    Those of another kind (transposed, normed, without convolution) are left as they are.

    Args:
        module: Searched with all its submodules; changed in place.
    """
    from diffusers.models.upsampling import Upsample2D

    n_replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            conv = _conv_after_nearest(child) if isinstance(child, Upsample2D) else None
            if conv is not None and is_foldable(conv):
                setattr(parent, name, SubpixelUpsample(conv))
                n_replaced += 1
    return n_replaced


def is_foldable(conv: object) -> bool:
    """Return whether a layer is a convolution that `SubpixelUpsample` takes."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
    )


def _conv_after_nearest(upsample: Any) -> Any:
    # Outside of autoencoders diffusers gives the convolution another name; such a layer is left alone.
    return getattr(upsample, "conv", None) if upsample.interpolate and upsample.norm is None else None
