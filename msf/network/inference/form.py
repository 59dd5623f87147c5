"""The inference form of a velocity network: the same function without what one shared time and one dtype spare."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from msf.network.inference.layers import Attention, FoldedTime, Output, Plan, Resampling, ResidualBlock
from msf.network.inference.rewrites import ALL_REWRITES, Rewrite, check_rewrites
from msf.network.inference.structure import reason_against
from msf.network.layers import AttentionBlock, Downsample, ResBlock, Stage, Upsample
from msf.network.unet import UNet
from msf.network.velocity import Times, Velocity
from msf.precision import micro_batch_of_bf16
from msf_kernels import use_backend
from msf_kernels.backend import forced_backend
from msf_kernels.conv3x3 import is_native_convolution_fast
from msf_kernels.shapes import JointState

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Folded times that are kept; one costs a few kilobytes per residual block. An adaptive solver asks for ever new ones.
MAX_FOLDED_TIMES = 1024

_Layer = ResidualBlock | Attention | Resampling
_TimeKey = tuple[float, ...]
# Without these the layers in question run on PyTorch's own operators.
_NATIVE_REWRITES = frozenset((Rewrite.PACKED_WEIGHTS, Rewrite.FUSED_NORM, Rewrite.CHANNELS_LAST))


class InferenceForm(Velocity):
    """A velocity field v(z, t) for samples that share their time; `inference_form` makes it.

    It holds copies: later changes of the network do not reach it. It has no gradients.

    Attributes:
        dtype: Dtype of the arithmetic and of the result, under autocast too.
        device: Where it runs.
        rewrites: The rewrites that apply.
        is_batch_invariant: Whether it promises an item the same bits in every batch: on a CPU in float32, and in
            bfloat16 where the processor has dot products of its pairs, when native backends serve every layer.
        micro_batch: Items that it wants at once: on a CPU in bfloat16 without that promise as many as were measured to
            be worth it.
    """

    def __init__(self, network: UNet, *, dtype: torch.dtype, backend: str, rewrites: frozenset[Rewrite]) -> None:
        """Build the layers; no time is folded yet."""
        self._time = _without_stages(network)
        self.dtype = dtype
        self.device = network.out.conv.weight.device
        self.rewrites = rewrites
        self._backend = backend
        self.is_batch_invariant = _can_be_native(dtype, self.device, backend, rewrites)
        is_padded_bf16 = dtype == torch.bfloat16 and self.device.type == "cpu" and not self.is_batch_invariant
        self.micro_batch = micro_batch_of_bf16(network.config.base_channels) if is_padded_bf16 else None
        self._plan = plan = Plan(dtype, rewrites, self.device, self.is_batch_invariant)
        self._is_channels_last = plan.has(Rewrite.CHANNELS_LAST)
        self._times: dict[_TimeKey, list[FoldedTime]] = {}
        self._residual_blocks: list[ResidualBlock] = []

        input_stages, output_stages = (
            cast(list[Stage], list(stages)) for stages in (network.input_blocks, network.output_blocks)
        )
        first = cast(nn.Conv2d, input_stages[0][0])
        self._first = plan.convolution(first)
        skip_channels = [first.out_channels]
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
                raise TypeError(
                    f"network must be made of layers that have an inference form; got {type(layer).__name__}"
                )
        return layers

    @property
    def convolution(self) -> str:
        """Backends of the convolutions that ran, the most frequent first, such as `native`; empty before the first."""
        counts = Counter(each.backend for each in self._plan.convolutions if each.backend is not None)
        return "+".join(name for name, _ in counts.most_common())

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
        with self._computing():
            for t in times:
                self._folded(self._key(t))

    @torch.no_grad()
    def __call__(self, z: JointState, t: Times, *, channels: slice | None = None) -> JointState:
        """Return the velocity at the state z and the time t.

        Args:
            z: [N, in_channels, H, W], H and W multiples of 2^(levels - 1), float.
            t: One time for the whole batch, a number (or a tensor with one value, which costs a synchronisation on a
                GPU); with a network that takes two times also a pair (t_image, t_semantic), or a tensor [1, 2].
            channels: Which channels of the velocity are wanted; default: all.

        Returns:
            [N, out_channels, H, W], or the wanted channels of it, in `dtype`.

        Raises:
            TypeError: z is no floating tensor; t is neither a number, a pair of numbers nor a tensor.
            ValueError: A shape; a time per item; a time that is not finite.
        """
        with self._computing():
            return self._evaluate(z, self._folded(self._key(t)), channels)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        device = self.device.type
        no_autocast = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        # `auto` would hide what the environment or the caller has chosen.
        with no_autocast, nullcontext() if self._backend == "auto" else use_backend(self._backend):
            yield

    def _evaluate(self, z: Tensor, folded: list[FoldedTime], channels: slice | None) -> Tensor:
        times = iter(folded)
        self._time.check_state(z)
        h = self._first(self._as_input(z))
        skips = [h]
        for stage in self._input_stages:
            h = _run(stage, h, None, times)
            skips.append(h)
        h = _run(self._middle, h, None, times)
        for stage in self._output_stages:
            h = _run(stage, h, skips.pop(), times)
        return self._output(h, channels)

    def _as_input(self, z: Tensor) -> Tensor:
        memory_format = torch.channels_last if self._is_channels_last else torch.contiguous_format
        # One copy for both; the second call takes what the first one may leave as it is.
        return z.to(self.dtype, memory_format=memory_format).contiguous(memory_format=memory_format)

    def _key(self, t: Times) -> _TimeKey:
        n_times = self._time.n_times
        values = tuple(value for one in (t if isinstance(t, tuple) else (t,)) for value in _values(one))
        if len(values) not in (1, n_times) or not all(map(math.isfinite, values)):
            pair = " or a pair of them" if n_times == 2 else ""
            raise ValueError(f"t must be a finite number{pair}; got {t!r}")
        return values if len(values) == n_times else values * n_times

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
        embedding = self._time.embed_time(t if len(key) == 2 else t[0], 1)
        return [block.fold(embedding) for block in self._residual_blocks]


def inference_form(
    network: nn.Module,
    time_grid: Iterable[Times] = (),
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    rewrites: Collection[Rewrite | str] = ALL_REWRITES,
) -> InferenceForm:
    """Derive a faster form of a velocity network for samples that share their time.

    The result computes the network's own function up to rounding; `Rewrite` lists what was changed. It is a copy.

    Args:
        network: A `msf.network.unet.UNet`, as its configuration builds it, with any numbers in its parameters; where it
            runs is where its weights are.
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
        ValueError: A network whose function the form would not compute: with hooks, patched methods, parametrisations,
            buffers, other layers or other settings than its configuration builds, or dropout at work; an unknown
            rewrite or backend; or a time that is not finite or not shared.

    Example:
        >>> velocity = inference_form(flow.network, (1.0,), dtype=torch.bfloat16)
        >>> velocity(z, 1.0).shape == z.shape
        True
    """
    if not isinstance(network, UNet):
        raise TypeError(f"network must be a msf.network.unet.UNet; got {type(network).__name__}")
    dropping = [name for name, layer in network.named_modules() if type(layer) is nn.Dropout and layer.training]
    reason = reason_against(network)
    if reason is None and dropping and network.config.dropout > 0:
        reason = f"{dropping[0]} drops values in training mode; call network.eval() first"
    if reason is not None:
        raise ValueError(f"network must be as its configuration builds it, or be called itself; got: {reason}")
    form = build_form(network, dtype=dtype, backend=backend, rewrites=rewrites)
    form.prepare(time_grid)
    return form


@torch.no_grad()
def build_form(
    network: UNet,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    rewrites: Collection[Rewrite | str] = ALL_REWRITES,
) -> InferenceForm:
    """Return the inference form of a network that has one, as `reason_against` tells; see `inference_form`."""
    dtype = network.out.conv.weight.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    with use_backend(backend):  # an unknown name is refused here
        pass
    return InferenceForm(network, dtype=dtype, backend=backend, rewrites=check_rewrites(rewrites))


def _can_be_native(dtype: torch.dtype, device: torch.device, backend: str, rewrites: frozenset[Rewrite]) -> bool:
    is_free = backend == "auto" and forced_backend() == "auto"
    return is_free and rewrites >= _NATIVE_REWRITES and is_native_convolution_fast(device, dtype)


def _without_stages(network: UNet) -> UNet:
    """Return a copy of what turns a time into its embedding and checks a state; the layers are not in it."""
    light = copy.copy(network)
    names = ("time_embed", "time_embed_semantic", "out")  # the last tells dtype and device
    light._modules = {name: copy.deepcopy(layer) for name, layer in network.named_children() if name in names}
    return light.requires_grad_(False)


def _values(t: Any) -> list[float]:
    """Return what a time holds for the whole batch: one number, or a pair from a tensor [1, 2]."""
    if isinstance(t, Tensor):
        if t.ndim > 0 and t.shape[0] != 1:
            raise ValueError(f"t must be one time for the whole batch; got a tensor {list(t.shape)}")
        return [float(value) for value in t.flatten().tolist()]
    if isinstance(t, bool) or not isinstance(t, Real):
        raise TypeError(f"t must be a number, a pair of numbers or a tensor; got {t!r}")
    return [float(t)]


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
