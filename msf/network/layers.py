"""The layers of the velocity network, at the positions of the authors' key layout (`in_layers.0`, `out.2`, ...)."""

from __future__ import annotations

from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from msf.config import QkvOrder, UNetConfig
from msf_kernels import conv3x3, group_norm_silu, spatial_attention
from msf_kernels.shapes import FeatureMap

Resample = Literal["down", "up"]
Layer = TypeVar("Layer", bound=nn.Module)

_LEARNING = (torch.float32, torch.bfloat16)  # dtypes whose convolutions on a CPU have kernels of ours, with gradients


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that learns by the fastest kernels of the machine, and else is its parent.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1, or 2 for half the height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Build the parent, with one ring of zeros."""
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and weight.requires_grad and x.device.type == "cpu":
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            if dtype in _LEARNING and weight.dtype == torch.float32:
                bias = None if bias is None else bias.to(dtype)
                return conv3x3(x.to(dtype), weight.to(dtype), bias, stride=self.stride[0])
        return cast(Tensor, super()._conv_forward(x, weight, bias))


class NormConv(nn.Sequential):
    """GroupNorm, SiLU and a 3x3 convolution, which a residual block enters between the two.

    Args:
        in_channels: Channels of the input; a multiple of `n_groups`.
        out_channels: Channels of the output.
        n_groups: Groups of the norm.
        dropout: Share of the convolution's inputs zeroed in training; None: no such layer in the key layout.
        starts_at_zero: Whether the convolution's weights and bias start at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_groups: int,
        *,
        dropout: float | None = None,
        starts_at_zero: bool = False,
    ) -> None:
        """Build the layers in the order of the key layout."""
        conv = Conv3x3(in_channels, out_channels)
        drop = [] if dropout is None else [nn.Dropout(dropout)]
        super().__init__(
            nn.GroupNorm(n_groups, in_channels), nn.SiLU(), *drop, _zeroed(conv) if starts_at_zero else conv
        )

    @property
    def norm(self) -> nn.GroupNorm:
        """The normalisation."""
        return cast(nn.GroupNorm, self[0])

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return cast(nn.Conv2d, self[-1])

    def activate(
        self, h: FeatureMap, *, add: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> FeatureMap:
        """Return silu(norm(h + add) * (1 + scale) + shift); `add`, `scale`, `shift` are [1|N, in_channels]."""
        norm = self.norm
        h = group_norm_silu(h, norm.num_groups, norm.weight, norm.bias, add=add, scale=scale, shift=shift)
        return cast(Tensor, self[2](h)) if isinstance(self[2], nn.Dropout) else h

    def forward(self, h: FeatureMap) -> FeatureMap:
        """Return conv(silu(norm(h))); [N, out_channels, H, W]."""
        return cast(Tensor, self.conv(self.activate(h)))


class ResBlock(nn.Module):
    """Residual block that the time embedding enters.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; if they differ, a 1x1 convolution carries the input over.
        embedding_channels: Length of the time embedding.
        n_groups: Groups of both norms.
        dropout: Dropout before the second convolution, in training.
        use_scale_shift_norm: The embedding scales and shifts the second norm's output instead of being added to its
            input.
        resample: Halve or double height and width inside the block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        n_groups: int,
        *,
        dropout: float,
        use_scale_shift_norm: bool,
        resample: Resample | None = None,
    ) -> None:
        """Build the layers; the second convolution starts at zero."""
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resample = resample
        self.in_layers = NormConv(in_channels, out_channels, n_groups)
        projected = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, projected))
        self.out_layers = NormConv(out_channels, out_channels, n_groups, dropout=dropout, starts_at_zero=True)
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: FeatureMap, embedding: Tensor) -> FeatureMap:
        """Return the block's output; `embedding` is [1|N, embedding_channels]."""
        h = self.in_layers.activate(x)
        if self.resample is not None:
            h, x = _resized(h, self.resample), _resized(x, self.resample)
        h = self.in_layers.conv(h)
        projected = self.emb_layers(embedding)  # [1|N, out_channels], or twice as many
        if self.use_scale_shift_norm:
            scale, shift = projected.chunk(2, dim=1)
            h = self.out_layers.activate(h, scale=scale, shift=shift)
        else:
            h = self.out_layers.activate(h, add=projected)
        return cast(Tensor, self.skip_connection(x) + self.out_layers.conv(h))


class AttentionBlock(nn.Module):
    """Residual multi-head self-attention over the pixels.

    Args:
        channels: Channels of input and output.
        config: Gives the heads and the order of queries, keys and values.

    Raises:
        ValueError: The heads do not divide the channels.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        """Build the layers; the output projection starts at zero."""
        super().__init__()
        self.n_heads = _head_count(channels, config)
        self.order: QkvOrder = config.qkv_order
        self.norm = nn.GroupNorm(config.n_groups, channels)
        # Convolutions over one pixel only in the key layout; they are applied as matrix products below.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return x plus the attention's output; [N, channels, H, W]."""
        n, channels, height, width = x.shape
        h = group_norm_silu(x, self.norm.num_groups, self.norm.weight, self.norm.bias, silu=False)
        tokens = h.permute(0, 2, 3, 1).reshape(n, height * width, channels)  # [N, T, C]
        qkv = F.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)  # [N, T, 3C]
        mixed = spatial_attention(qkv, self.n_heads, order=self.order)  # [N, T, C]
        h = F.linear(mixed, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + h.reshape(n, height, width, channels).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        """Build the convolution."""
        super().__init__()
        self.op = Conv3x3(channels, channels, stride=2)

    def forward(self, h: FeatureMap) -> FeatureMap:
        """Return [N, channels, H / 2, W / 2]."""
        return cast(Tensor, self.op(h))


class Upsample(nn.Module):
    """Double height and width by nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Build the convolution."""
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, h: FeatureMap) -> FeatureMap:
        """Return [N, channels, 2 H, 2 W]."""
        return cast(Tensor, self.conv(_resized(h, "up")))


class Stage(nn.ModuleList):
    """Layers between two skip connections; the residual blocks among them get the time embedding."""

    def forward(self, h: FeatureMap, embedding: Tensor) -> FeatureMap:
        """Return the last layer's output."""
        for layer in self:
            h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
        return h


def _head_count(channels: int, config: UNetConfig) -> int:
    if config.n_heads is not None:
        if channels % config.n_heads:
            raise ValueError(f"n_heads must divide the {channels} channels under attention; got {config.n_heads}")
        return config.n_heads
    head_channels = cast(int, config.head_channels)
    if channels % head_channels:
        raise ValueError(f"head_channels must divide the {channels} channels under attention; got {head_channels}")
    return channels // head_channels


def _resized(h: Tensor, resample: Resample) -> Tensor:
    return F.avg_pool2d(h, 2) if resample == "down" else F.interpolate(h, scale_factor=2.0, mode="nearest")


def _zeroed(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
