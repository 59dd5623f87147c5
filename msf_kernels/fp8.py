"""E4M3 in networks: scales, products, an emulation on any device, and the gate that decides whether it may be used.

Weights have one scale per output channel, activations one per tensor, calibrated on the user's own data. What is here
answers whether a network may run its convolutions and linear layers in FP8: `emulate_fp8` rounds their operands as FP8
would, on any device, and `fp8_gate` compares the predictions. Of kernels there is the matrix product of PyTorch
(`linear_fp8`); a convolution in FP8 is not built, and no speed has been measured yet.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from msf_kernels.checks import require_same_device, require_shape, require_tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = float(torch.finfo(E4M3).max)
LEAST_AGREEMENT = 0.995
LEAST_RANK_CORRELATION = 0.99

Network = TypeVar("Network", bound=nn.Module)


class Predictions(Protocol):
    """What the gate compares; `msf`'s predictions are of this form."""

    @property
    def label(self) -> Tensor:
        """Predicted class; [N]."""

    @property
    def nearest_distance(self) -> Tensor:
        """Distance to the predicted class; [N]."""


class Fp8RefusedError(RuntimeError):
    """The predictions in FP8 are not those of the network; the text gives the figures, which `figures` keeps."""

    def __init__(self, figures: Fp8Figures) -> None:
        """Keep the figures."""
        self.figures = figures
        super().__init__(
            f"FP8 is refused: {figures}; wanted at least {LEAST_AGREEMENT:.1%} and {LEAST_RANK_CORRELATION}"
        )


@dataclass(frozen=True)
class Fp8Figures:
    """How far predictions in FP8 are from those of the network.

    Args:
        n_predictions: Predictions compared.
        agreement: Share of equal labels.
        rank_correlation: Spearman's, of the nearest distances.
    """

    n_predictions: int
    agreement: float
    rank_correlation: float

    @property
    def passes(self) -> bool:
        """Whether FP8 may be used."""
        return self.agreement >= LEAST_AGREEMENT and self.rank_correlation >= LEAST_RANK_CORRELATION

    def __str__(self) -> str:
        """Return the figures in a line."""
        return (
            f"{self.agreement:.2%} of {self.n_predictions} labels agree, "
            f"rank correlation of the nearest distance {self.rank_correlation:.4f}"
        )


def weight_scale(weight: Tensor) -> Tensor:
    """Return the scale per output channel that maps the largest weight to the largest e4m3 number.

    Args:
        weight: [K, ...]; any floating dtype.

    Returns:
        [K], float32; 1 where a channel is zero.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: No channels, or channels without elements.
    """
    require_tensor("weight", weight, None)
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(f"weight must be [K, ...] with elements in every channel; got shape {list(weight.shape)}")
    largest = weight.detach().float().abs().flatten(1).amax(dim=1)
    return torch.where(largest > 0, largest / E4M3_MAX, 1.0)


def activation_scale(maps: Iterable[Tensor]) -> Tensor:
    """Return the scale that maps the largest activation seen to the largest e4m3 number.

    Args:
        maps: Activations of one layer on calibration data; any shapes and floating dtypes.

    Returns:
        [], float32; 1 where nothing but zeros was seen.

    Raises:
        ValueError: There are no maps, or one holds a NaN or an infinity.
    """
    largest = [values.detach().float().abs().amax() for values in maps if values.numel()]
    if not largest:
        raise ValueError("maps must hold activations to calibrate on; got none")
    peak = torch.stack(largest).amax()
    if not math.isfinite(float(peak)):
        raise ValueError(f"maps must be finite; got {float(peak)}")
    return torch.where(peak > 0, peak / E4M3_MAX, 1.0)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale in e4m3, saturated: the cast alone would turn what lies beyond its range into NaN.

    Args:
        x: Any shape and floating dtype.
        scale: Broadcasts against x; float32.
    """
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def rounded_to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return what e4m3 with this scale makes of x, in the dtype of x."""
    return (to_e4m3(x, scale).float() * scale).to(x.dtype)


def linear_fp8(x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply in e4m3 with PyTorch's scaled matrix product.

        out = (e4m3(x / x_scale) weight^T) * x_scale * weight_scale + bias

    Args:
        x: Rows; [M, C]; bfloat16 or float32; C a multiple of 16.
        weight: [K, C], e4m3, as `to_e4m3(weight, weight_scale[:, None])` makes it; K a multiple of 16.
        weight_scale: [K], float32.
        x_scale: [], float32, from `activation_scale`.
        bias: [K]; any floating dtype.

    Returns:
        [M, K], bfloat16.

    Raises:
        TypeError: An argument of another dtype.
        ValueError: Shapes that do not fit.

    Numerics:
        Products of e4m3 numbers accumulated as the device's units do: GPUs may keep fewer bits than float32. The result
        is rounded to bfloat16 before the bias is added. A GPU needs compute capability 8.9 or more.
    """
    require_tensor("x", x, "[M, C]", (torch.bfloat16, torch.float32))
    require_tensor("weight", weight, "[K, C]", (E4M3,))
    k, channels = weight.shape
    require_shape("x", x, "[M, C]", (x.shape[0], channels))
    if k % 16 or channels % 16:
        raise ValueError(f"weight must be [K, C], both multiples of 16; got shape {list(weight.shape)}")
    require_tensor("weight_scale", weight_scale, "[K]", (torch.float32,))
    require_shape("weight_scale", weight_scale, "[K]", (k,))
    require_tensor("x_scale", x_scale, None, (torch.float32,))
    require_shape("x_scale", x_scale, "[]", ())
    if bias is not None:
        require_tensor("bias", bias, "[K]")
        require_shape("bias", bias, "[K]", (k,))
    for name, tensor in (("weight", weight), ("weight_scale", weight_scale), ("x_scale", x_scale), ("bias", bias)):
        if tensor is not None:
            require_same_device(name, tensor, "x", x)
    rows = to_e4m3(x, x_scale).contiguous()
    out: Tensor = torch._scaled_mm(
        rows,
        weight.contiguous().t(),
        scale_a=x_scale.reshape(1, 1).expand(x.shape[0], 1).contiguous(),
        scale_b=weight_scale[None].contiguous(),
        out_dtype=torch.bfloat16,
    )
    return out if bias is None else out + bias.to(torch.bfloat16)


def emulate_fp8(network: Network, run: Callable[[Network], object]) -> Network:
    """Return a copy of a network whose convolutions and linear layers see operands rounded to e4m3.

    Args:
        network: Any module. Layers that are called as `nn.Conv2d` or `nn.Linear` are treated; it is not changed.
        run: Runs the network that it is given on calibration data: the largest input of every layer sets its scale.

    Returns:
        The copy, in the network's dtype and on its device, for inference. Layers that `run` did not reach stay as they
        are.

    Numerics:
        Sums are those of the network's own dtype, so the copy shows what rounding of the operands does, and not what
        the accumulators of a GPU may add to it.
    """
    emulated = copy.deepcopy(network)
    layers = [module for module in emulated.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    peaks: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        peak = inputs[0].detach().float().abs().amax() if inputs[0].numel() else inputs[0].new_zeros(()).float()
        peaks[layer] = torch.maximum(peaks[layer], peak) if layer in peaks else peak

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    with torch.no_grad():
        run(emulated)
    for hook in hooks:
        hook.remove()
    for layer, peak in peaks.items():
        scale = activation_scale([peak])
        layer.register_forward_pre_hook(
            lambda _layer, inputs, scale=scale: (rounded_to_e4m3(inputs[0], scale), *inputs[1:])
        )
        weight: Tensor = layer.weight  # type: ignore[assignment]
        per_channel = weight_scale(weight).reshape(-1, *[1] * (weight.dim() - 1))
        weight.data = rounded_to_e4m3(weight.data, per_channel)
    return emulated


def fp8_gate(reference: Predictions, candidate: Predictions) -> Fp8Figures:
    """Let FP8 pass only where it predicts what the network predicts.

    Args:
        reference: Predictions of the network: `label` [N] and `nearest_distance` [N].
        candidate: Predictions in FP8 for the same pictures and noise.

    Returns:
        The figures, if at least 99.5 % of the labels agree and Spearman's rank correlation of the nearest distances is
        at least 0.99.

    Raises:
        Fp8RefusedError: They are lower, or not a number.
        ValueError: Other numbers of predictions, or fewer than two.
    """
    n = reference.label.shape[0]
    for name, values in (
        ("reference.nearest_distance", reference.nearest_distance),
        ("candidate.label", candidate.label),
        ("candidate.nearest_distance", candidate.nearest_distance),
    ):
        require_shape(name, values, "[N]", (n,))
    if n < 2:
        raise ValueError(f"reference must hold at least two predictions; got {n}")
    figures = Fp8Figures(
        n,
        float((reference.label.cpu() == candidate.label.cpu()).double().mean()),
        rank_correlation(reference.nearest_distance, candidate.nearest_distance),
    )
    if not figures.passes:
        raise Fp8RefusedError(figures)
    return figures


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two samples [N]; equal values share their mean rank.

    NaN where a sample is constant or holds a NaN.
    """
    if a.isnan().any() or b.isnan().any():
        return math.nan
    ranks = [values - values.mean() for values in (_mean_ranks(a), _mean_ranks(b))]
    norms = [float(values.norm()) for values in ranks]
    return float(ranks[0] @ ranks[1]) / (norms[0] * norms[1]) if all(norms) else math.nan


def _mean_ranks(values: Tensor) -> Tensor:
    _, group, counts = torch.unique(values.detach().cpu().double(), return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean_rank = last - (counts.double() - 1) / 2
    return functional.embedding(group, mean_rank[:, None]).squeeze(1)
