"""The inference form of a velocity network: the same function without what one shared time and one dtype spare."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from msf.network.inference.convolution import ConvBackend, Convolution, choose_conv_backend
from msf.network.inference.layers import Attention, FoldedTime, Output, Plan, Resampling, ResidualBlock
from msf.network.inference.rewrites import ALL_REWRITES, Rewrite, check_rewrites
from msf.network.layers import AttentionBlock, Downsample, ResBlock, Stage, Upsample
from msf.network.unet import UNet
from msf_kernels import use_backend
from msf_kernels.shapes import FeatureMap, JointState, TimeBatch

Times = float | tuple[float, float] | TimeBatch
"""One time for both streams, or one per stream; a tensor must hold one value, or one pair, for the whole batch."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Folded times that are kept; one costs a few kilobytes per residual block. An adaptive solver asks for ever new ones.
MAX_FOLDED_TIMES = 1024

_Layer = ResidualBlock | Attention | Resampling
_TimeKey = tuple[float, ...]


class CompiledVelocity:
    """A velocity field v(z, t) for samples that share their time; `compile_velocity` makes it.

    The weights of the network must not change while it is in use: make a new one then. It has no gradients.

    Attributes:
        dtype: Dtype of the arithmetic and of the result.
        device: Where it runs.
        rewrites: The rewrites that apply.
        times: Evaluation times that are folded already, as tuples of one time or two.
    """

    def __init__(
        self,
        network: UNet,
        *,
        dtype: torch.dtype,
        backend: str,
        rewrites: frozenset[Rewrite],
        conv_backend: ConvBackend,
    ) -> None:
        """Build the layers; no time is folded yet."""
        self._network = network
        self.dtype = dtype
        self.device = network.out.conv.weight.device
        self.rewrites = rewrites
        self._backend = backend
        self._plan = plan = Plan(dtype, rewrites, conv_backend)
        self._is_channels_last = plan.has(Rewrite.CHANNELS_LAST)
        self._times: dict[_TimeKey, list[FoldedTime]] = {}
        self._residual_blocks: list[ResidualBlock] = []

        input_stages, output_stages = (
            cast(list[Stage], list(stages)) for stages in (network.input_blocks, network.output_blocks)
        )
        self._input_conv = cast(nn.Conv2d, input_stages[0][0])
        self._first = plan.convolution(self._input_conv)
        self._first_parts: dict[int, tuple[Convolution, Convolution]] = {}
        skip_channels = [self._input_conv.out_channels]
        self._input_stages = []
        for stage in input_stages[1:]:
            self._input_stages.append(self._stage(stage))
            skip_channels.append(_out_channels(stage, skip_channels[-1]))
        self._middle = self._stage(network.middle_block)
        self._output_stages = [self._stage(stage, skip_channels.pop()) for stage in output_stages]
        self._output = Output(network.out, plan)

    def _stage(self, stage: Stage, skip_channels: int = 0) -> list[_Layer]:
        layers: list[_Layer] = []
        for layer in stage:
            if isinstance(layer, ResBlock):
                block = ResidualBlock(layer, self._plan, skip_channels=skip_channels)
                self._residual_blocks.append(block)
                layers.append(block)
                skip_channels = 0
            elif isinstance(layer, AttentionBlock):
                layers.append(Attention(layer, self._plan))
            elif isinstance(layer, (Downsample, Upsample)):
                layers.append(Resampling(layer, self._plan))
            else:
                raise TypeError(f"network must be made of the layers of msf.network.layers; got {type(layer).__name__}")
        return layers

    @property
    def times(self) -> tuple[_TimeKey, ...]:
        """Evaluation times that are folded already."""
        return tuple(self._times)

    @torch.no_grad()
    def prepare(self, times: Iterable[Times]) -> None:
        """Fold evaluation times ahead of their first use.

        Args:
            times: As `t` of a call.

        Raises:
            ValueError: A time that is not finite, or not shared by the batch.
        """
        for t in times:
            self._folded(self._key(t))

    @torch.no_grad()
    def image_features(self, image: FeatureMap) -> FeatureMap:
        """Return the first convolution of the channels that several samples share, for `image_features=` of a call.

        Args:
            image: The first C channels of the state; [P, C, H, W], float.

        Returns:
            [P, base_channels, H, W]; the picture itself where that rewrite was left out.

        Raises:
            ValueError: As many channels as the state, or more.
        """
        shared, _ = self._first_split(image.shape[1])
        return shared(self._as_input(image)) if self._plan.has(Rewrite.SHARED_FIRST_LAYER) else self._as_input(image)

    @torch.no_grad()
    def __call__(
        self,
        z: JointState,
        t: Times,
        *,
        channels: slice | None = None,
        image_features: FeatureMap | None = None,
    ) -> JointState:
        """Return the velocity at the state z and the time t.

        Args:
            z: [N, in_channels, H, W], H and W multiples of 2^(levels - 1), float. With `image_features`: only the
                channels that are not in it, the last ones.
            t: One time for the whole batch, a number (or a tensor with one value, which costs a synchronisation on a
                GPU); with a network that takes two times also a pair (t_image, t_semantic).
            channels: Which channels of the velocity are wanted; default: all.
            image_features: What `image_features` returned for the picture of each item; [N, base_channels, H, W].

        Returns:
            [N, out_channels, H, W], or the wanted channels of it, in `dtype`.

        Raises:
            TypeError: z is no floating tensor; t is neither a number, a pair of numbers nor a tensor.
            ValueError: A shape; a time per item; a time that is not finite.
        """
        # `auto` would hide what the environment or the caller has chosen.
        with nullcontext() if self._backend == "auto" else use_backend(self._backend):
            return self._evaluate(z, self._folded(self._key(t)), channels, image_features)

    def _evaluate(
        self, z: Tensor, folded: list[FoldedTime], channels: slice | None, image_features: Tensor | None
    ) -> Tensor:
        times = iter(folded)
        h = self._first_layer(z, image_features)
        skips = [h]
        for stage in self._input_stages:
            h = _run(stage, h, None, times)
            skips.append(h)
        h = _run(self._middle, h, None, times)
        for stage in self._output_stages:
            h = _run(stage, h, skips.pop(), times)
        return self._output(h, channels)

    def _first_layer(self, z: Tensor, image_features: Tensor | None) -> Tensor:
        if image_features is None:
            self._network.check_state(z)
            return self._first(self._as_input(z))
        self._check_shared(z, image_features)
        if not self._plan.has(Rewrite.SHARED_FIRST_LAYER):
            return self._first_layer(torch.cat([image_features, z.to(self.dtype)], dim=1), None)
        _, own = self._first_split(self._network.in_channels - z.shape[1])
        return own(self._as_input(z), residual=image_features)

    def _check_shared(self, z: Tensor, image_features: Tensor) -> None:
        is_shared = self._plan.has(Rewrite.SHARED_FIRST_LAYER)
        n_state = self._network.in_channels
        self._network.check_state(z, range(1, n_state) if is_shared else (n_state - image_features.shape[1],))
        channels = self._input_conv.out_channels if is_shared else image_features.shape[1]
        wanted = (z.shape[0], channels, *z.shape[2:])
        if tuple(image_features.shape) != wanted or image_features.dtype != self.dtype:
            raise ValueError(
                f"image_features must be {list(wanted)} in {self.dtype}; "
                f"got {list(image_features.shape)} in {image_features.dtype}"
            )

    def _first_split(self, n_shared: int) -> tuple[Convolution, Convolution]:
        if not 0 < n_shared < self._network.in_channels:
            raise ValueError(
                f"image must have fewer channels than the state, {self._network.in_channels}, and at least one; "
                f"got {n_shared}"
            )
        if n_shared not in self._first_parts:
            weight, bias = self._input_conv.weight, self._input_conv.bias
            self._first_parts[n_shared] = (
                self._plan.weights(weight[:, :n_shared], bias, padding=1),
                self._plan.weights(weight[:, n_shared:], None, padding=1),
            )
        return self._first_parts[n_shared]

    def _as_input(self, z: Tensor) -> Tensor:
        memory_format = torch.channels_last if self._is_channels_last else torch.contiguous_format
        return z.to(self.dtype).contiguous(memory_format=memory_format)

    def _key(self, t: Times) -> _TimeKey:
        if isinstance(t, Tensor):
            if t.numel() not in (1, self._network.n_times) or (t.ndim > 0 and t.shape[0] != 1):
                raise ValueError(f"t must be one time for the whole batch; got a tensor {list(t.shape)}")
            values = tuple(float(value) for value in t.flatten().tolist())
        else:
            numbers = t if isinstance(t, tuple) else (t,)
            if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
                raise TypeError(f"t must be a number, a pair of numbers or a tensor; got {t!r}")
            values = tuple(float(value) for value in numbers)
        if len(values) not in (1, self._network.n_times) or not all(map(math.isfinite, values)):
            pair = " or a pair of them" if self._network.n_times == 2 else ""
            raise ValueError(f"t must be a finite number{pair}; got {t!r}")
        return values if len(values) == self._network.n_times else values * self._network.n_times

    def _folded(self, key: _TimeKey) -> list[FoldedTime]:
        if not self._plan.has(Rewrite.FOLDED_TIME):
            return self._fold(key)
        if key not in self._times:
            if len(self._times) >= MAX_FOLDED_TIMES:
                self._times.pop(next(iter(self._times)))
            self._times[key] = self._fold(key)
        return self._times[key]

    def _fold(self, key: _TimeKey) -> list[FoldedTime]:
        t = torch.tensor([key], dtype=torch.float64, device=self.device)  # [1, n_times]
        embedding = self._network.embed_time(t if len(key) == 2 else t[0], 1)
        return [block.fold(embedding) for block in self._residual_blocks]


def compile_velocity(
    network: nn.Module,
    time_grid: Iterable[Times] = (),
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    rewrites: Collection[Rewrite | str] = ALL_REWRITES,
) -> CompiledVelocity:
    """Derive a faster form of a velocity network for samples that share their time.

    The result computes the network's own function up to rounding; `Rewrite` lists what was changed. Dropout is off.

    Args:
        network: A `msf.network.unet.UNet`; where it runs is where its weights are. They must not change afterwards.
        time_grid: Times at which the velocity will be asked for, such as the nodes of a solver; other times are folded
            when they first occur.
        dtype: Dtype of weights and maps: float32, bfloat16, float16 or float64; default: that of the network. Norms and
            their statistics are float32 or better.
        backend: What `auto` means to the operators inside, as for `msf_kernels.use_backend`.
        rewrites: Which rewrites to apply; fewer than all are of use for measurement.

    Returns:
        A callable `(z, t) -> v`.

    Raises:
        TypeError: `network` is not a `UNet`, or `dtype` is none of those above.
        ValueError: An unknown rewrite or backend, or a time that is not finite or not shared.

    Example:
        >>> velocity = compile_velocity(flow.network, (1.0,), dtype=torch.bfloat16)
        >>> velocity(z, 1.0).shape == z.shape
        True
    """
    if not isinstance(network, UNet):
        raise TypeError(f"network must be a msf.network.unet.UNet; got {type(network).__name__}")
    dtype = network.out.conv.weight.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    with use_backend(backend):  # an unknown name is refused here
        pass
    applied = check_rewrites(rewrites)
    conv_backend = choose_conv_backend(network.out.conv.weight.device, dtype)
    if conv_backend == "packed" and Rewrite.PACKED_WEIGHTS not in applied:
        conv_backend = "plain"
    compiled = CompiledVelocity(
        network,
        dtype=dtype,
        backend=backend,
        rewrites=applied,
        conv_backend=conv_backend,
    )
    compiled.prepare(time_grid)
    return compiled


def _run(stage: list[_Layer], h: Tensor, skip: Tensor | None, times: Iterable[FoldedTime]) -> Tensor:
    for layer in stage:
        if isinstance(layer, ResidualBlock):
            h = layer(h, skip, next(times))  # type: ignore[call-overload]
            skip = None
        else:
            h = layer(h)
    return h


def _out_channels(stage: Stage, in_channels: int) -> int:
    """Return the channels of the skip connection that starts after an input stage."""
    for layer in stage:
        if isinstance(layer, ResBlock):
            in_channels = layer.out_layers.conv.out_channels
    return in_channels
