"""Residual blocks of a finished autoencoder with fewer passes over their feature maps.

Group norm and the SiLU after it are one operator, and the sum at the end is written by the last convolution.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from msf.autoencoder.folded import FoldedConvolution, is_foldable
from msf_kernels import backends, group_norm_silu
from msf_kernels.shapes import FeatureMap


class GroupNormSiLU(nn.GroupNorm):
    """`silu(norm(x))`, with the parameters of an existing norm.

    Args:
        norm: Affine; its parameters are taken over, not copied, so that the state dict does not change.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Take over sizes and parameters."""
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, affine=False)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like `x`, [N, C, H, W]."""
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, eps=self.eps)


class ResidualBlock(nn.Module):
    """A diffusers `ResnetBlock2D` without time embedding, resampling and dropout; its parameters under their names.

    Args:
        block: Of the kind that `fuse_blocks` replaces.
    """

    def __init__(self, block: Any) -> None:
        """Take over the layers."""
        super().__init__()
        self.norm1, self.conv1 = GroupNormSiLU(block.norm1), FoldedConvolution(block.conv1)
        self.norm2, self.conv2 = GroupNormSiLU(block.norm2), FoldedConvolution(block.conv2)
        shortcut = block.conv_shortcut
        self.conv_shortcut = None if shortcut is None else FoldedConvolution(shortcut)

    def forward(self, x: FeatureMap, temb: None = None) -> FeatureMap:
        """Return [N, out, H, W] from [N, in, H, W]; `temb` is diffusers' name for the time, which is None here."""
        h = self.conv1(self.norm1(x))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self.conv2(self.norm2(h), residual)  # type: ignore[no-any-return]


def fuse_blocks(module: nn.Module) -> int:
    """Fuse the residual blocks of a diffusers encoder or decoder, and its last norm and activation; return how many.

    Nothing changes where this machine has only the reference of the norm's operator, which is no faster than two
    operators; nor in blocks that take a time embedding, resample, rescale, or have another activation. For networks
    that are not trained any more: dropout is left out.

    Args:
        module: Searched with all its submodules; changed in place.
    """
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import ResnetBlock2D

    if not any(not reasons for name, reasons in backends()["group_norm_silu"].items() if name != "reference"):
        return 0
    n_fused = 0
    for parent in list(module.modules()):
        if isinstance(parent, (Encoder, Decoder)) and _are_fusable(parent.conv_act, parent.conv_norm_out):
            setattr(parent, "conv_norm_out", GroupNormSiLU(cast(nn.GroupNorm, parent.conv_norm_out)))  # noqa: B010
            setattr(parent, "conv_act", nn.Identity())  # noqa: B010
            n_fused += 1
        for name, child in list(parent.named_children()):
            if isinstance(child, ResnetBlock2D) and _is_plain(child):
                setattr(parent, name, ResidualBlock(child))
                n_fused += 1
    return n_fused


def _is_plain(block: Any) -> bool:
    convolutions = [conv for conv in (block.conv1, block.conv2, block.conv_shortcut) if conv is not None]
    return (
        block.time_emb_proj is None
        and not (block.up or block.down)
        and block.output_scale_factor == 1.0
        and _are_fusable(block.nonlinearity, block.norm1, block.norm2)
        and all(map(is_foldable, convolutions))
    )


def _are_fusable(activation: object, *norms: object) -> bool:
    return isinstance(activation, nn.SiLU) and all(type(norm) is nn.GroupNorm for norm in norms)
