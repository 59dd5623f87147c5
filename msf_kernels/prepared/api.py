"""A convolution with fixed weights, laid out once for the backend that serves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels._derivatives import any_transformed, is_transforming
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import triton_backend
from msf_kernels._triton.output_norm import OutputNorm
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    FLOATING,
    require_bool,
    require_int,
    require_positive,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.conv3x3 import library_order
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.prepared._aten import AtenForm
from msf_kernels.prepared._fixed import FixedConvolution, PreparedForm
from msf_kernels.prepared._native import NativeForm, is_native_first, native_input_reasons
from msf_kernels.prepared._onednn import OnednnForm, onednn_input_reasons, onednn_machine_reasons
from msf_kernels.prepared._ops import TritonForm, triton_input_reasons
from msf_kernels.prepared._reference import ReferenceForm
from msf_kernels.shapes import FeatureMap


def _auto_order(convolution: FixedConvolution, x: Tensor) -> tuple[str, ...]:
    if x.device.type != "cpu":
        return library_order(x, convolution.weight.shape[0], stride=convolution.stride, upsample=convolution.upsample)
    first = ("native",) if is_native_first(convolution, x) else ()
    return (*first, "onednn", "aten", "reference")


# A backend's `run(convolution, x)` makes a `PreparedForm` for the first map x; the reasons are called likewise, and may
# depend on the map's size only where every other size is served too.
_operator = Operator(
    "prepared_convolution",
    [
        native_backend(NativeForm, native_input_reasons, device_type="cpu"),
        Backend("onednn", OnednnForm, onednn_machine_reasons, onednn_input_reasons, device_type="cpu"),
        triton_backend(TritonForm, triton_input_reasons),
        Backend("aten", AtenForm),
        Backend("reference", ReferenceForm),
    ],
    _auto_order,
)


class PreparedConvolution:
    """What `prepared_convolution` returns: `convolution(x, bias=..., residual=...)`. It has no gradients.

    Attributes:
        bias: Bias of calls that bring none; [K] in the dtype of the maps, or None.
        dtype: Dtype of maps and results.
        in_channels: Channels C of a map.
        out_channels: Channels K of a result.
        n_weights: Elements of the weights as the convolution of the small map has them: 16 per pair of channels where
            the map is doubled.
        backend: Name of the backend that serves it; None before the first map.
    """

    def __init__(self, convolution: FixedConvolution, bias: Tensor | None, backend: str) -> None:
        """Keep the weights until the first map comes; `prepared_convolution` has checked them."""
        self.bias = bias
        self.dtype = convolution.dtype
        self.stride = convolution.stride
        self.upsample = convolution.upsample
        self.out_channels, self.in_channels, size, _ = convolution.weight.shape
        self.n_taps = 16 if convolution.upsample else size * size
        self.n_weights = self.out_channels * self.in_channels * self.n_taps
        self.backend: str | None = None
        self._wanted = backend
        self._convolution = convolution
        self._shortcut_weight = convolution.shortcut_weight
        self._n_shortcut = 0 if self._shortcut_weight is None else self._shortcut_weight.shape[1]
        self._shortcuts: dict[tuple[int, int], PreparedConvolution] = {}
        self._form: PreparedForm | None = None

    def __call__(
        self,
        x: FeatureMap,
        *,
        bias: Tensor | None = None,
        residual: FeatureMap | None = None,
        consume_residual: bool = False,
        shortcut: Sequence[FeatureMap] = (),
        norm: OutputNorm | None = None,
    ) -> FeatureMap:
        """Return conv(x) + bias + residual + shortcut, normalised if wanted, in the memory format of the backend.

        Args:
            x: [N, C, H, W], in the dtype and on the device of the convolution.
            bias: Bias to use instead of the convolution's own; [K], in the dtype of the maps.
            residual: Added to the result; [N, K, H', W'], in the dtype of the maps.
            consume_residual: Permit the result to take the residual's memory.
            shortcut: One or two maps [N, Cs, H', W']; their product with the prepared `shortcut_weight` is added.
            norm: Group norm of the sum, with SiLU or without.

        Returns:
            [N, K, H', W'].

        Raises:
            TypeError: Another dtype.
            ValueError: Another shape or device.
            NotImplementedError: A gradient is asked for.
            BackendUnavailableError: The first map, where the named backend cannot serve.
        """
        if x.dtype != self.dtype or x.dim() != 4 or x.shape[1] != self.in_channels:
            self._refuse(x)
        if _is_differentiated(x) or (residual is not None and _is_differentiated(residual)):
            raise NotImplementedError(
                "prepared_convolution has no gradient and no derivative; call it under torch.no_grad(), or use "
                "torch.nn.functional.conv2d where one is wanted"
            )
        if bias is not None and (bias.dtype != self.dtype or bias.shape != (self.out_channels,)):
            require_same_dtype("bias", bias, "x", x)
            require_shape("bias", bias, "[K]", (self.out_channels,))
        if residual is not None and (residual.dtype != self.dtype or residual.shape != self._convolution.out_shape(x)):
            require_same_dtype("residual", residual, "x", x)
            require_shape("residual", residual, "[N, K, H', W']", self._convolution.out_shape(x))
        form = self._form or self._prepare(x)
        bias = self.bias if bias is None else bias
        if not shortcut and norm is None and self._n_shortcut == 0:
            return form(x, bias, residual, consume_residual)
        self._check_epilogue(x, shortcut, norm)
        if getattr(form, "is_whole", False):
            return form(x, bias, residual, consume_residual, shortcut, norm)  # type: ignore[call-arg]
        return self._step_by_step(form, x, bias, residual, consume_residual, shortcut, norm)

    def _step_by_step(
        self,
        form: PreparedForm,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        consume_residual: bool,
        shortcut: Sequence[Tensor],
        norm: OutputNorm | None,
    ) -> Tensor:
        """Return the same by a form that knows neither shortcuts nor norms."""
        first = 0
        for each in shortcut:
            last = first + each.shape[1]
            if (first, last) not in self._shortcuts:
                assert self._shortcut_weight is not None
                weight = self._shortcut_weight.narrow(1, first, each.shape[1]).unsqueeze(2).unsqueeze(3)
                self._shortcuts[first, last] = prepared_convolution(weight, dtype=self.dtype, backend=self._wanted)
            residual = self._shortcuts[first, last](each, residual=residual, consume_residual=consume_residual)
            first, consume_residual = last, True
        out = form(x, bias, residual, consume_residual)
        if norm is None:
            return out
        return group_norm_silu(out, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=norm.silu)

    def _check_epilogue(self, x: Tensor, shortcut: Sequence[Tensor], norm: OutputNorm | None) -> None:
        n, _, height, width = self._convolution.out_shape(x)
        if len(shortcut) > 2 or sum(each.shape[1] for each in shortcut) != self._n_shortcut:
            got = [list(each.shape) for each in shortcut]
            raise ValueError(
                f"shortcut must be one or two maps of {self._n_shortcut} channels together, those of shortcut_weight; "
                f"got {got}"
            )
        for each in shortcut:
            require_same_dtype("shortcut", each, "x", x)
            require_same_device("shortcut", each, "x", x)
            require_shape("shortcut", each, "[N, Cs, H', W']", (n, each.shape[1], height, width))
        if norm is not None:
            if not isinstance(norm, OutputNorm):
                raise TypeError(f"norm must be an OutputNorm; got {type(norm).__name__}")
            require_int("norm.num_groups", norm.num_groups, minimum=1)
            if self.out_channels % norm.num_groups:
                raise ValueError(
                    f"norm.num_groups must divide the output channels, {self.out_channels}; got {norm.num_groups}"
                )
            for name, vector in (("norm.weight", norm.weight), ("norm.bias", norm.bias)):
                require_tensor(name, vector, "[K]")
                require_shape(name, vector, "[K]", (self.out_channels,))
                require_same_device(name, vector, "x", x)
            require_positive("norm.eps", norm.eps)

    def _prepare(self, x: Tensor) -> PreparedForm:
        """Lay the weights out for the backend that serves now; it stays the one."""
        weight = self._convolution.weight
        require_same_device("x", x, "weight", weight)
        chosen = _operator.choose(self._wanted, self._convolution, x)
        form: PreparedForm = chosen.run(self._convolution, x)
        if x.numel():  # an empty map tells nothing about those to come
            self._form, self.backend = form, chosen.name
            self._convolution = self._convolution.without_weights()
        return form

    def _refuse(self, x: Tensor) -> None:
        require_tensor("x", x, "[N, C, H, W]", (self.dtype,))
        require_shape("x", x, "[N, C, H, W]", (x.shape[0], self.in_channels, *x.shape[2:]))


def _is_differentiated(x: Tensor) -> bool:
    return (x.requires_grad and torch.is_grad_enabled()) or (is_transforming() and any_transformed((x,)))


def prepared_convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    upsample: bool = False,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    shortcut_weight: Tensor | None = None,
    backend: str = "auto",
) -> PreparedConvolution:
    """Prepare a convolution whose weights stay as they are, for many calls.

        conv(x, bias, residual) = conv2d(x, weight, bias, stride, padding) + residual;   upsample: of the doubled map

    A call may add the 1x1 convolution of a residual block's shortcut, and normalise the sum; `triton` does so in the
    same launch (the norm for results of up to 64 pixels), the other backends step by step.

    The backend is chosen, and the weights are laid out, for the first map that comes; maps of other sizes are served by
    the same form. Later changes of `weight` and `bias` have no effect.

    Args:
        weight: [K, C, k, k]; float16, bfloat16, float32 or float64; copied.
        bias: [K]; any floating dtype; copied. A call may bring another. None: no offset.
        stride: Step of the output along both axes, >= 1.
        padding: Zeros on each side, in [0, k / 2).
        upsample: Whether the map is doubled by repeating every pixel, before the convolution; needs 3x3 taps with
            `stride` and `padding` 1. Computed on the small map with summed taps: 4/9 of the arithmetic.
        dtype: Dtype of maps and results; default: that of `weight`.
        channels_last: Memory format that the maps will come in; any is right.
        shortcut_weight: [K, Cs], the shortcut's; every call then brings `shortcut` maps of Cs channels together.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        A callable `(x, *, bias, residual, consume_residual, shortcut, norm)`; see `PreparedConvolution`.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes, sizes or devices that do not fit; a backend of another name (at the first map).

    Numerics:
        `reference`: float32 (float64 for maps in float64), one rounding at the end. `onednn` and `aten`: products
        accumulated in float32, in an order that the library chooses for the size of the batch; `aten` rounds before the
        residual is added. `native` (float32 on a CPU) and `triton`: as the operator `conv3x3`, with everything up to
        the norm in float32 and one rounding at the end; `auto` takes `native` where it was measured to be faster, by
        processor and sizes alone. Summed taps are rounded once, to `dtype`. No gradients.

    Source:
        Upsampling as convolutions per output parity: Shi et al., arXiv 1609.05158.
    """
    require_tensor("weight", weight, "[K, C, k, k]")
    n_out, n_in, size, _ = weight.shape
    require_shape("weight", weight, "[K, C, k, k]", (n_out, n_in, size, size))
    if not weight.numel():
        raise ValueError(f"weight must be [K, C, k, k] with K, C and k >= 1; got shape {list(weight.shape)}")
    require_int("stride", stride, minimum=1)
    require_int("padding", padding, minimum=0, below=(size + 1) // 2)
    require_bool("upsample", upsample)
    require_bool("channels_last", channels_last)
    if upsample and (size, stride, padding) != (3, 1, 1):
        raise ValueError(
            "upsample must come with 3x3 taps, stride 1 and padding 1; "
            f"got {size}x{size}, stride {stride} and padding {padding}"
        )
    dtype = weight.dtype if dtype is None else dtype
    if dtype not in FLOATING:
        raise TypeError(f"dtype must be one of {', '.join(map(str, FLOATING))}; got {dtype}")
    if bias is not None:
        require_tensor("bias", bias, "[K]")
        require_shape("bias", bias, "[K]", (n_out,))
        require_same_device("bias", bias, "weight", weight)
        bias = bias.detach().to(dtype, copy=True)
    if shortcut_weight is not None:
        require_tensor("shortcut_weight", shortcut_weight, "[K, Cs]")
        require_shape("shortcut_weight", shortcut_weight, "[K, Cs]", (n_out, shortcut_weight.shape[1]))
        require_same_device("shortcut_weight", shortcut_weight, "weight", weight)
        shortcut_weight = shortcut_weight.detach().clone(memory_format=torch.contiguous_format)
    kept = weight.detach().clone(memory_format=torch.contiguous_format)
    fixed = FixedConvolution(kept, stride, padding, upsample, dtype, channels_last, shortcut_weight)
    return PreparedConvolution(fixed, bias, backend)
