"""Operators on a GPU against what one would write in PyTorch: layers of the latent network, and the suite of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import msf_kernels
from benchmarks.agreement import close_in_rms
from benchmarks.context import Context
from benchmarks.registry import Build, Comparison, Job, Work, jobs
from benchmarks.rows import OURS
from benchmarks.timing import Plan

# Of the suite of operators, those that a network in bf16 runs on a GPU.
FROM_SUITE = (
    "group-norm-silu-bfloat16",
    "spatial-attention-bfloat16",
    "class-distance",
    "rk-combine-heun",
    "philox-normal",
)
DTYPE = torch.bfloat16
_PLAN = Plan(n_rounds=21, warm_up_seconds=0.2)
_GROUPS = 32


def pytorch_group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """The norm as one writes it; the arguments of `msf_kernels.group_norm_silu`."""
    h = x if add is None else x + add[:, :, None, None]
    h = functional.group_norm(h, num_groups, weight, bias)
    if scale is not None and shift is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return functional.silu(h) if silu else h


def pytorch_attention(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """The attention through PyTorch's fused one; the arguments of `msf_kernels.spatial_attention`."""
    return msf_kernels.spatial_attention(qkv, num_heads, order=order, backend="sdpa")


@dataclass(frozen=True)
class Layer:
    """A residual block's convolution: norm, SiLU, 3x3 convolution, residual, on channels-last bf16."""

    n: int
    channels: int
    side: int
    upsample: bool = False
    compiles: bool = False


_LAYERS = (
    Layer(256, 256, 16, compiles=True),
    Layer(256, 128, 32),
    Layer(256, 256, 8),
    Layer(256, 256, 4),
    Layer(256, 256, 16, upsample=True),
)
_DRY_LAYERS = (Layer(2, 32, 4, compiles=False), Layer(2, 32, 4, upsample=True))
# Items, channels, height = width.
_BLOCKS = ((256, 256, 16), (256, 256, 4))
_DRY_BLOCKS = ((2, 32, 4),)


def operator_jobs(is_dry: bool) -> Iterator[Job]:
    """Yield the jobs, the network's heaviest first."""
    for layer in _DRY_LAYERS if is_dry else _LAYERS:
        yield _upsampling(layer) if layer.upsample else _residual_convolution(layer)
    for n, channels, side in _DRY_BLOCKS if is_dry else _BLOCKS:
        yield _attention_block(n, channels, side)
    of_suite = {job.name: job for job in jobs(("ops",))}
    for name in FROM_SUITE[:1] if is_dry else FROM_SUITE:
        yield of_suite[name]


def _backend(context: Context) -> str:
    """Ours is the kernel, not what `auto` would take before it was measured; without a GPU there is none."""
    return "triton" if context.device.type == "cuda" else "auto"


def _normal(context: Context, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device, dtype)


def _map(context: Context, layer: Layer) -> Tensor:
    x = _normal(context, layer.n, layer.channels, layer.side, layer.side)
    return x.to(memory_format=torch.channels_last)


def _weights(context: Context, channels: int) -> tuple[Tensor, Tensor]:
    weight = _normal(context, channels, channels, 3, 3) / (9 * channels) ** 0.5
    return msf_kernels.pack_weight(weight), _normal(context, channels)


def _residual_convolution(layer: Layer) -> Job:
    channels = layer.channels

    def inputs(context: Context) -> dict[str, Tensor]:
        weight, bias = _weights(context, channels)
        x = _map(context, layer)
        return {"x": x, "residual": x.flip(0), "weight": weight, "bias": bias, "gain": 1 + 0.1 * bias}

    def norm_then(convolution: str) -> Build:
        """Our fused norm in a pass of its own, then a convolution."""

        def build(context: Context) -> Callable[[], Tensor]:
            t = inputs(context)
            backend = "aten" if convolution == "aten" else _backend(context)

            def call() -> Tensor:
                h = msf_kernels.group_norm_silu(t["x"], _GROUPS, t["gain"], t["bias"])
                return msf_kernels.conv3x3(h, t["weight"], t["bias"], residual=t["residual"], backend=backend)

            return call

        return build

    def eager(context: Context) -> Callable[[], Tensor]:
        t = inputs(context)
        return lambda: _eager_residual(t)

    def compiled(context: Context) -> Callable[[], Tensor]:
        t = inputs(context)
        run = torch.compile(_eager_residual, dynamic=False)
        return lambda: run(t)

    variants: dict[str, Build] = {
        OURS: norm_then("triton"),
        "ours-norm-then-cudnn": norm_then("aten"),
        "eager": eager,
    }
    if layer.compiles:
        variants["compile"] = compiled
    flops = 2.0 * layer.n * channels * channels * 9 * layer.side**2
    return _comparison("conv3x3", layer, "norm + SiLU + 3x3 convolution + residual", variants, flops, 3)


def _eager_residual(t: Mapping[str, Tensor]) -> Tensor:
    h = functional.silu(functional.group_norm(t["x"], _GROUPS, t["gain"], t["bias"]))
    return functional.conv2d(h, t["weight"], t["bias"], padding=1) + t["residual"]


def _upsampling(layer: Layer) -> Job:
    def ours(context: Context) -> Callable[[], Tensor]:
        weight, bias = _weights(context, layer.channels)
        packed = msf_kernels.pack_weight(weight, upsample=True)
        x, backend = _map(context, layer), _backend(context)
        return lambda: msf_kernels.conv3x3(x, packed, bias, upsample=True, backend=backend)

    def eager(context: Context) -> Callable[[], Tensor]:
        weight, bias = _weights(context, layer.channels)
        x = _map(context, layer)
        return lambda: functional.conv2d(functional.interpolate(x, scale_factor=2.0), weight, bias, padding=1)

    flops = 2.0 * layer.n * layer.channels**2 * 16 * layer.side**2
    return _comparison("upsample", layer, "doubling + 3x3 convolution", {OURS: ours, "eager": eager}, flops, 5)


def _comparison(
    kind: str, layer: Layer, what: str, variants: Mapping[str, Build], flops: float, n_maps: int
) -> Comparison:
    """Return the job; `n_maps` maps of the input's size are read and written."""
    numel = layer.n * layer.channels * layer.side**2
    return Comparison(
        suite="gpu",
        name=f"{kind}-{layer.channels}x{layer.side}x{layer.side}",
        note=f"{layer.n} maps, channels-last bfloat16: {what}",
        tests=("tests/msf_kernels/conv3x3/test_conv3x3.py",),
        variants=variants,
        plan=_PLAN,
        agree=close_in_rms(2e-2),
        work=Work(flops, n_maps * numel * DTYPE.itemsize, DTYPE),
    )


def _attention_block(n: int, channels: int, side: int) -> Job:
    heads = max(1, channels // 64)

    def inputs(context: Context) -> tuple[Any, ...]:
        x = _map(context, Layer(n, channels, side))
        vectors = [_normal(context, size) for size in (channels, channels, 3 * channels, channels)]
        weights = [_normal(context, size, channels) / channels**0.5 for size in (3 * channels, channels)]
        return x, vectors[0], vectors[1], weights[0], vectors[2], weights[1], vectors[3], _GROUPS, heads

    def ours(backend: str | None) -> Build:
        def build(context: Context) -> Callable[[], Tensor]:
            arguments, name = inputs(context), backend or _backend(context)
            return lambda: msf_kernels.attention_block(*arguments, backend=name)

        return build

    def eager(context: Context) -> Callable[[], Tensor]:
        arguments = inputs(context)
        return lambda: _eager_block(*arguments)

    n_tokens = side * side
    return Comparison(
        suite="gpu",
        name=f"attention-block-{channels}x{side}x{side}",
        note=f"{n} maps, {heads} heads, channels-last bfloat16: norm, projections, attention, residual",
        tests=("tests/msf_kernels/attention_block/test_attention_block.py",),
        variants={OURS: ours(None), "ours-composed": ours("composed"), "eager": eager},
        plan=_PLAN,
        agree=close_in_rms(2e-2),
        work=Work(
            n * (8.0 * n_tokens * channels**2 + 4.0 * n_tokens**2 * channels),
            2 * n * n_tokens * channels * DTYPE.itemsize,
            DTYPE,
        ),
    )


def _eager_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    num_groups: int,
    num_heads: int,
) -> Tensor:
    n, channels, height, width = x.shape
    tokens = functional.group_norm(x, num_groups, norm_weight, norm_bias).permute(0, 2, 3, 1).flatten(1, 2)
    mixed = pytorch_attention(functional.linear(tokens, qkv_weight, qkv_bias), num_heads)
    h = functional.linear(mixed, proj_weight, proj_bias)
    return x + h.view(n, height, width, channels).permute(0, 3, 1, 2)
