"""The velocity network: a residual U-Net with attention in the ADM layout, and nothing about flows or labels.

Modules stand at the positions of the authors' key layout (`input_blocks.i.j`, `in_layers.0`, `out.2`, ...), so that
their state dict loads as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from msf.config import UNetConfig
from msf.network.layers import AttentionBlock, Conv3x3, Downsample, NormConv, Resample, ResBlock, Stage, Upsample
from msf_kernels.shapes import JointState, TimeBatch

EMBEDDING_EXPANSION = 4
# Meant for step counts in the hundreds and used on t in [0, 1]: most frequencies barely move. Kept, because released
# weights depend on it.
MAX_PERIOD = 10_000.0


class UNet(nn.Module):
    """Evaluate the velocity field v(z, t) of a joint state.

    Args:
        config: Widths, depths, attention and normalisation.
        in_channels: Channels of the state z.
        out_channels: Channels of the velocity; equal to `in_channels` for a flow.
        n_times: 1: one time for both streams. 2: one time per stream, each with its own embedding; the embeddings
            are summed.

    Raises:
        ValueError: Channels below 1, another `n_times`, or a width under attention that the heads do not divide.

    Numerics:
        The sinusoid of t is computed in fp32 (fp64 for an fp64 network), whatever dtype the weights have. The last
        convolution, and the last layer of every residual and attention block, start at zero: a fresh network returns
        v = 0. Initial weights follow `torch.manual_seed`.

    Source:
        Dhariwal and Nichol, arXiv 2105.05233 (ADM), as used by MedSymmFlow, arXiv 2507.19098. Two time embeddings:
        the idea of UniDiffuser, arXiv 2303.06555.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, *, n_times: int = 1) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1; got {value}")
        if n_times not in (1, 2):
            raise ValueError(f"n_times must be 1 or 2; got {n_times}")
        self.config = config
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.n_times = n_times

        base = config.base_channels
        embedding = EMBEDDING_EXPANSION * base
        self.time_embed = _time_mlp(base, embedding)
        self.time_embed_semantic = _time_mlp(base, embedding) if n_times == 2 else None

        widths = [multiplier * base for multiplier in config.channel_multipliers]
        last_level = len(widths) - 1
        channels = widths[0]
        self.input_blocks = nn.ModuleList([Stage([Conv3x3(in_channels, channels)])])
        skip_channels = [channels]
        for level, width in enumerate(widths):
            for _ in range(config.n_res_blocks):
                self.input_blocks.append(Stage(self._layers(channels, width, embedding, level)))
                channels = width
                skip_channels.append(channels)
            if level < last_level:
                self.input_blocks.append(Stage([self._resampling(channels, embedding, "down")]))
                skip_channels.append(channels)

        self.middle_block = Stage(
            [
                self._res_block(channels, channels, embedding),
                AttentionBlock(channels, config),
                self._res_block(channels, channels, embedding),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(config.n_res_blocks + 1):
                layers = self._layers(channels + skip_channels.pop(), widths[level], embedding, level)
                channels = widths[level]
                if level > 0 and i == config.n_res_blocks:
                    layers.append(self._resampling(channels, embedding, "up"))
                self.output_blocks.append(Stage(layers))
        self.out = NormConv(channels, out_channels, config.n_groups, starts_at_zero=True)

    def _layers(self, in_channels: int, out_channels: int, embedding: int, level: int) -> list[nn.Module]:
        layers: list[nn.Module] = [self._res_block(in_channels, out_channels, embedding)]
        if 2**level in self.config.attention_down_rates:
            layers.append(AttentionBlock(out_channels, self.config))
        return layers

    def _res_block(
        self, in_channels: int, out_channels: int, embedding: int, resample: Resample | None = None
    ) -> ResBlock:
        return ResBlock(
            in_channels,
            out_channels,
            embedding,
            self.config.n_groups,
            dropout=self.config.dropout,
            use_scale_shift_norm=self.config.use_scale_shift_norm,
            resample=resample,
        )

    def _resampling(self, channels: int, embedding: int, direction: Resample) -> nn.Module:
        if self.config.use_residual_updown:
            return self._res_block(channels, channels, embedding, direction)
        return Downsample(channels) if direction == "down" else Upsample(channels)

    def forward(self, z: JointState, t: float | TimeBatch) -> JointState:
        """Return the velocity at the state z and time t.

        Args:
            z: Joint state; [N, in_channels, H, W], H and W multiples of 2^(levels - 1). Converted to the dtype of the
                weights.
            t: Time in [0, 1]. A number, or a tensor [], is one embedding for the whole batch; [N] is one per item.
                With `n_times=2` these mean both streams at that time, and [1, 2] or [N, 2] is (t_image, t_semantic).

        Returns:
            Velocity; [N, out_channels, H, W], in the dtype of the weights (under autocast: the autocast dtype).

        Raises:
            TypeError: z is no floating tensor; t is neither a number nor a floating tensor.
            ValueError: Shape of z or t.
        """
        self.check_state(z)
        embedding = self.embed_time(t, z.shape[0])
        h = z.to(self.out.conv.weight.dtype)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return cast(Tensor, self.out(h))

    def embed_time(self, t: float | TimeBatch, n_items: int) -> Tensor:
        """Return the time embedding that every residual block projects.

        Args:
            t: As in `forward`.
            n_items: Items N of the batch, which a `t` per item must match.

        Returns:
            Embedding; [1, 4 * base_channels] if all items share the time, else [N, 4 * base_channels].

        Raises:
            TypeError: `t` is neither a number nor a floating tensor.
            ValueError: Shape of t.
        """
        weight = self.out.conv.weight
        times = _time_rows(t, n_items, self.n_times, weight)  # [1|N, n_times]
        rows = sinusoid(times, self.config.base_channels).to(weight.dtype)  # [1|N, n_times, base]
        embedding = self.time_embed(rows[:, 0])
        if self.time_embed_semantic is not None:
            embedding = embedding + self.time_embed_semantic(rows[:, 1])
        return cast(Tensor, embedding)

    def check_state(self, z: Tensor, n_channels: Collection[int] = ()) -> None:
        """Refuse a state that `forward` does not take; its errors are raised here.

        Args:
            z: The state, or some channels of it.
            n_channels: How many it may have; default: all, `in_channels`.
        """
        n_channels = n_channels or (self.in_channels,)
        if not isinstance(z, Tensor) or not z.is_floating_point():
            got = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"z must be a floating tensor; got {got}")
        if z.ndim != 4 or z.shape[1] not in n_channels:
            wanted = " or ".join(map(str, n_channels))
            raise ValueError(f"z must be [N, {wanted}, H, W]; got {list(z.shape)}")
        multiple = self.config.size_multiple
        if z.shape[2] % multiple or z.shape[3] % multiple:
            levels = len(self.config.channel_multipliers)
            raise ValueError(
                f"z must have H and W that are multiples of {multiple} for {levels} levels; got {list(z.shape)}"
            )


def sinusoid(t: Tensor, n_channels: int) -> Tensor:
    """Return cosines, then sines, of t at geometrically spaced frequencies.

    `[cos(t w_0), ..., sin(t w_0), ...]` with `w_i = MAX_PERIOD ** (-i / (n_channels / 2))`.

    Args:
        t: Times; any shape, fp32 or fp64.
        n_channels: Length of the new last axis; even.

    Returns:
        [*t.shape, n_channels], in the dtype of t.

    Source:
        Vaswani et al., arXiv 1706.03762, section 3.5, with all cosines first.
    """
    half = n_channels // 2
    exponents = torch.arange(half, device=t.device, dtype=t.dtype) / half
    angles = t[..., None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def _time_mlp(base_channels: int, embedding_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(base_channels, embedding_channels),
        nn.SiLU(),
        nn.Linear(embedding_channels, embedding_channels),
    )


def _time_rows(t: float | Tensor, n_items: int, n_times: int, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, (int, float)):
            raise TypeError(f"t must be a number or a floating tensor; got {type(t).__name__}")
        return torch.full((1, n_times), float(t), dtype=dtype, device=like.device)
    if not t.is_floating_point():
        raise TypeError(f"t must be a number or a floating tensor; got {t.dtype}")
    rows = (1, n_items)
    if t.ndim == 0 or (t.ndim == 1 and t.shape[0] in rows):
        t = t.reshape(-1, 1).expand(-1, n_times)
    elif not (n_times == 2 and t.ndim == 2 and t.shape[0] in rows and t.shape[1] == 2):
        pairs = ", [1, 2] or [N, 2]" if n_times == 2 else ""
        raise ValueError(f"t must be a number, [], [N]{pairs} for a batch of N = {n_items}; got {list(t.shape)}")
    return t.to(dtype)
