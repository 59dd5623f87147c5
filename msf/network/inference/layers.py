"""The layers of the inference form, each made from a layer of the trained network."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from msf.network.inference.rewrites import Rewrite
from msf.network.layers import AttentionBlock, Downsample, NormConv, ResBlock, Upsample
from msf_kernels import attention_block, group_norm_silu, prepared_convolution, spatial_attention
from msf_kernels.prepared import OutputNorm, PreparedConvolution
from msf_kernels.shapes import FeatureMap

# What has to apply where convolutions take everything around them along.
_WHOLE_LAUNCHES = frozenset(
    (Rewrite.FOLDED_TIME, Rewrite.FUSED_NORM, Rewrite.FUSED_RESIDUAL, Rewrite.NO_CONCATENATION, Rewrite.CHANNELS_LAST)
)


@dataclass(frozen=True)
class Plan:
    """How the layers are built: the same for all of them.

    Args:
        dtype: Dtype of maps and weights.
        rewrites: Which rewrites apply.
        device: Where the network is.
        is_native: Take the native backends by name: what an item becomes is then summed in one order in every batch.
        convolutions: Those that were made.
    """

    dtype: torch.dtype
    rewrites: frozenset[Rewrite]
    device: torch.device
    is_native: bool = False
    convolutions: list[PreparedConvolution] = field(default_factory=list)

    @property
    def backend(self) -> str:
        """Backend of the operators."""
        return "native" if self.is_native else "auto"

    @property
    def statistics_dtype(self) -> torch.dtype:
        """Dtype of the norms' parameters and of the time's offsets: float32 or better."""
        return torch.promote_types(self.dtype, torch.float32)

    def has(self, rewrite: Rewrite) -> bool:
        """Return whether a rewrite applies."""
        return rewrite in self.rewrites

    @property
    def is_whole(self) -> bool:
        """Whether a convolution adds shortcuts and normalises its result: on a GPU, where every launch costs."""
        return self.device.type == "cuda" and self.rewrites >= _WHOLE_LAUNCHES

    def convolution(self, layer: nn.Conv2d) -> PreparedConvolution:
        """Return a convolution of the network in its inference form."""
        return self.weights(layer.weight, layer.bias, stride=layer.stride[0], padding=cast(int, layer.padding[0]))

    def upsampling(self, layer: nn.Conv2d) -> PreparedConvolution | DoubledConvolution:
        """Return nearest-neighbour doubling with the 3x3 convolution that follows it."""
        if not self.has(Rewrite.SUBPIXEL_UPSAMPLING):
            return DoubledConvolution(self.convolution(layer))
        return self.weights(layer.weight, layer.bias, padding=1, upsample=True)

    def weights(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: int = 1,
        padding: int = 0,
        upsample: bool = False,
        shortcut_weight: Tensor | None = None,
    ) -> PreparedConvolution:
        """Return a convolution with the given weights."""
        is_left_plain = self.device.type == "cpu" and not self.has(Rewrite.PACKED_WEIGHTS)
        made = prepared_convolution(
            weight,
            bias,
            stride=stride,
            padding=padding,
            upsample=upsample,
            dtype=self.dtype,
            channels_last=self.has(Rewrite.CHANNELS_LAST),
            shortcut_weight=shortcut_weight,
            backend="aten" if is_left_plain else self.backend,
        )
        self.convolutions.append(made)
        return made

    def kept(self, tensor: Tensor) -> Tensor:
        """Return a copy of a norm's parameter."""
        return tensor.detach().to(self.statistics_dtype, copy=True)


class DoubledConvolution:
    """Doubling by nearest neighbours, and a convolution of the large map."""

    def __init__(self, convolution: PreparedConvolution) -> None:
        """Keep the convolution."""
        self._convolution = convolution

    def __call__(self, x: FeatureMap, *, bias: Tensor | None = None, norm: OutputNorm | None = None) -> FeatureMap:
        """Return [N, C_out, 2 H, 2 W]."""
        return self._convolution(doubled(x), bias=bias, norm=norm)


class Norm:
    """Group norm, with SiLU or without, over one map or two that stand side by side.

    Args:
        layer: The norm of the network.
        silu: Whether SiLU follows.
        plan: How to build it.
    """

    def __init__(self, layer: nn.GroupNorm, plan: Plan, *, silu: bool) -> None:
        """Take over the parameters."""
        self.n_groups = layer.num_groups
        self.eps = layer.eps
        self.silu = silu
        self.weight, self.bias = plan.kept(layer.weight), plan.kept(layer.bias)
        self.backend = plan.backend if plan.has(Rewrite.FUSED_NORM) else "reference"

    def of_output(self, affine: tuple[Tensor, Tensor] | None) -> OutputNorm:
        """Return the norm as a convolution applies it to its result."""
        weight, bias = affine or (self.weight, self.bias)
        return OutputNorm(self.n_groups, weight, bias, self.eps, self.silu)

    def __call__(
        self,
        x: FeatureMap,
        *,
        skip: FeatureMap | None = None,
        affine: tuple[Tensor, Tensor] | None = None,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> FeatureMap:
        """Return the normalised map; `affine` takes the place of the norm's own factor and offset."""
        weight, bias = affine or (self.weight, self.bias)
        return group_norm_silu(
            x,
            self.n_groups,
            weight,
            bias,
            skip=skip,
            add=add,
            scale=scale,
            shift=shift,
            eps=self.eps,
            silu=self.silu,
            backend=self.backend,
        )


@dataclass(frozen=True)
class FoldedTime:
    """What one evaluation time means for one residual block.

    Args:
        bias: Bias of the first convolution, with the time's offset in it; None: the convolution's own.
        affine: Factor and offset of the second norm, with the time's in them; None: the norm's own.
        add: Offset before the second norm, where the time is not folded; [1, C].
        scale: Factor after the second norm, where the time is not folded; [1, C].
        shift: Offset after the second norm, where the time is not folded; [1, C].
    """

    bias: Tensor | None = None
    affine: tuple[Tensor, Tensor] | None = None
    add: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


class ResidualBlock:
    """The inference form of `msf.network.layers.ResBlock`.

    Args:
        block: The block of the network.
        plan: How to build it.
        skip_channels: How many of the input channels come from a skip connection.
    """

    def __init__(self, block: ResBlock, plan: Plan, *, skip_channels: int = 0) -> None:
        """Prepare norms, convolutions and the shortcut."""
        self._plan = plan
        self._project_time = copy.deepcopy(block.emb_layers).requires_grad_(False)
        self._use_scale_shift_norm = block.use_scale_shift_norm
        self.resample = block.resample
        self.norm_in = Norm(block.in_layers.norm, plan, silu=True)
        self.norm_out = Norm(block.out_layers.norm, plan, silu=True)
        self.conv_in: PreparedConvolution | DoubledConvolution
        if block.resample == "up":
            self.conv_in = plan.upsampling(block.in_layers.conv)
        else:
            self.conv_in = plan.convolution(block.in_layers.conv)
        bias = block.in_layers.conv.bias
        self._bias = None if bias is None else bias.detach().clone()
        self.conv_out = plan.convolution(block.out_layers.conv)
        self.is_split = skip_channels > 0 and plan.has(Rewrite.NO_CONCATENATION)
        self.shortcut: list[PreparedConvolution] = []  # of the input, then of the skip if split
        self.adds_shortcut = plan.is_whole and isinstance(block.skip_connection, nn.Conv2d)
        if isinstance(block.skip_connection, nn.Conv2d):
            layer = block.skip_connection
            if self.adds_shortcut:
                self.conv_out = plan.weights(
                    block.out_layers.conv.weight,
                    _sum_of_biases(block.out_layers.conv, layer),
                    padding=1,
                    shortcut_weight=layer.weight.flatten(1),
                )
            elif self.is_split:
                n_own = layer.in_channels - skip_channels
                self.shortcut = [
                    plan.weights(layer.weight[:, :n_own], layer.bias),
                    plan.weights(layer.weight[:, n_own:], None),
                ]
            else:
                self.shortcut = [plan.convolution(layer)]
        else:
            # The input itself is the shortcut, and needs both of its parts in one place.
            self.is_split = False

    def fold(self, embedding: Tensor) -> FoldedTime:
        """Return what the embedding of one time, [1, E], means for this block."""
        projected = self._project_time(embedding).to(self._plan.statistics_dtype)  # [1, C], or [1, 2C]
        is_folded = self._plan.has(Rewrite.FOLDED_TIME)
        if self._use_scale_shift_norm:
            scale, shift = projected.chunk(2, dim=1)
            if not is_folded:
                return FoldedTime(scale=scale, shift=shift)
            factor = 1 + scale[0]
            return FoldedTime(affine=(self.norm_out.weight * factor, self.norm_out.bias * factor + shift[0]))
        if not is_folded:
            return FoldedTime(add=projected)
        offset = projected[0] if self._bias is None else self._bias + projected[0]
        return FoldedTime(bias=offset.to(self._plan.dtype))

    def __call__(self, x: FeatureMap, skip: FeatureMap | None, time: FoldedTime) -> FeatureMap:
        """Return the block's output for the input [x ; skip]."""
        if skip is not None and not self.is_split:
            x, skip = torch.cat([x, skip], dim=1), None
        h = self.norm_in(x, skip=skip)
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self._plan.is_whole:
            h = self.conv_in(h, bias=time.bias, norm=self.norm_out.of_output(time.affine))
        else:
            h = self.conv_in(h, bias=time.bias)
            h = self.norm_out(h, affine=time.affine, add=time.add, scale=time.scale, shift=time.shift)
        if self.resample == "up":
            x = doubled(x)
        if self.adds_shortcut:
            return self.conv_out(h, shortcut=(x,) if skip is None else (x, skip))
        is_fresh = bool(self.shortcut) or self.resample is not None
        if self.shortcut:
            x = self.shortcut[0](x)
            if skip is not None:
                x = self.shortcut[1](skip, residual=x, consume_residual=True)
        if self._plan.has(Rewrite.FUSED_RESIDUAL):
            return self.conv_out(h, residual=x, consume_residual=is_fresh)
        return x + self.conv_out(h)


class Attention:
    """The inference form of `msf.network.layers.AttentionBlock`: both projections are convolutions over one pixel.

    On a GPU it is `msf_kernels.attention_block`, which chooses by what was measured there.
    """

    def __init__(self, block: AttentionBlock, plan: Plan) -> None:
        """Prepare the norm and both projections."""
        self.is_fused = plan.has(Rewrite.FUSED_ATTENTION)
        self.n_heads = block.n_heads
        self.order = block.order
        self.backend = plan.backend
        self.norm = Norm(block.norm, plan, silu=False)
        self.projections: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        if self.is_fused and plan.has(Rewrite.FUSED_NORM) and plan.device.type == "cuda":
            qkv, qkv_bias, proj, proj_bias = (
                tensor.detach().to(plan.dtype, copy=True)
                for layer in (block.qkv, block.proj_out)
                for tensor in (layer.weight.squeeze(-1), cast(Tensor, layer.bias))
            )
            self.projections = qkv, qkv_bias, proj, proj_bias
            return
        self.qkv = plan.weights(block.qkv.weight[..., None], block.qkv.bias)
        self.proj = plan.weights(block.proj_out.weight[..., None], block.proj_out.bias)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Return x plus the attention's output; [N, C, H, W]."""
        if self.projections is not None:
            norm = self.norm
            return attention_block(
                x, norm.weight, norm.bias, *self.projections, norm.n_groups, self.n_heads,
                order=self.order, eps=norm.eps,
            )  # fmt: skip
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(n, height * width, 3 * channels)
        mixed = spatial_attention(qkv, self.n_heads, order=self.order, backend=self.backend)
        h = mixed.view(n, height, width, channels).permute(0, 3, 1, 2)
        return self.proj(h, residual=x) if self.is_fused else x + self.proj(h)


class Resampling:
    """The inference form of `Downsample` and `Upsample`."""

    def __init__(self, layer: Downsample | Upsample, plan: Plan) -> None:
        """Prepare the convolution."""
        self._convolution = plan.convolution(layer.op) if isinstance(layer, Downsample) else plan.upsampling(layer.conv)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Return the map at half or twice the height and width."""
        return self._convolution(x)


class Output:
    """The last norm and convolution, for all channels or some of them."""

    def __init__(self, layer: NormConv, plan: Plan) -> None:
        """Prepare the layers for all channels."""
        self._plan = plan
        self._norm = Norm(layer.norm, plan, silu=True)
        self._conv = copy.deepcopy(layer.conv).requires_grad_(False)
        self._all = plan.convolution(layer.conv)
        self._parts: dict[tuple[int, int], PreparedConvolution] = {}

    def __call__(self, x: FeatureMap, channels: slice | None) -> FeatureMap:
        """Return the velocity of the wanted channels."""
        h = self._norm(x)
        if channels is None:
            return self._all(h)
        if not self._plan.has(Rewrite.ONLY_WHAT_IS_READ):
            return self._all(h)[:, channels]
        first, end, _ = channels.indices(self._conv.out_channels)
        if (first, end) not in self._parts:
            conv = self._conv
            bias = None if conv.bias is None else conv.bias[first:end]
            self._parts[first, end] = self._plan.weights(conv.weight[first:end], bias, padding=1)
        return self._parts[first, end](h)


def _sum_of_biases(*layers: nn.Conv2d) -> Tensor | None:
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return sum(biases[1:], biases[0]) if biases else None


def doubled(x: FeatureMap) -> FeatureMap:
    """Return every pixel four times; [N, C, 2 H, 2 W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
