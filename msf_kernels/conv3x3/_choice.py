"""The order in which `auto` tries convolution backends, from what was measured."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels._derivatives import any_requires_grad
from msf_kernels._tracing import constant_while_tracing
from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._forms import ConvSizes, Form, choose_form
from msf_kernels.conv3x3._measured import TABLE

# On a GPU without measurements. In half precision the kernel that adds bias, residual and shortcut where the products
# are, for what that saves (docs/gpu-model.md); it has not been timed on any GPU. In float32, which it multiplies as
# such, the library is hard to beat.
UNMEASURED_ORDER = ("aten", "triton", "reference")
UNMEASURED_HALF_ORDER = ("triton", "aten", "reference")
HALF = (torch.bfloat16, torch.float16)

# On a CPU in float32, one thread, torch 2.13.0, AMD EPYC (Zen 4), oneDNN's time over the native convolution's, whose
# weight was transformed once: 1.3 to 3.0 for stride 1 and doubled maps, with AVX-512 and with AVX2; all figures are in
# docs/results/conv3x3-cpu.md. Below 32 channels, and where nothing is transformed (single pixels, stride 2, 1x1 taps,
# small doubled maps) oneDNN is level or ahead. The baseline level has no multiply-add and was not measured.
FASTER_FORMS = {
    torch.float32: (Form.TWO, Form.FOUR, Form.DOUBLING),
    torch.bfloat16: (Form.TWO, Form.DOUBLING_TWO),
}
FEWEST_NATIVE_CHANNELS = 32
AVX2 = 1
# A call that transforms the weight itself pays as much as some 250 pixels of a map cost (the number of items may be 1),
# and more where the fresh memory exceeds the caches: 512 -> 512 channels lost by 1.3, 512 -> 256 won by 1.6.
FEWEST_PIXELS_OF_A_CALL = 512
LARGEST_WEIGHT_OF_A_CALL = 2**17


def auto_order(call: ConvCall) -> tuple[str, ...]:
    """Return the names of the backends that `auto` tries, best first.

    The number of items plays no part in it, but for a weight that learns, whose gradient is a sum over them anyway.
    """
    x = call.x
    if not x.is_cuda:
        height, width = x.shape[2:]
        n_items = x.shape[0] if any_requires_grad([call.weight]) else 1
        side, channels = call.weight.shape[-1], call.in_channels
        is_native_first = (
            x.device.type == "cpu"
            and x.dtype in FASTER_FORMS
            and n_items * height * width >= FEWEST_PIXELS_OF_A_CALL
            and call.weight.shape[-4] * channels <= LARGEST_WEIGHT_OF_A_CALL
            and not _ext.machine_reasons()
            and is_native_measured_faster(
                ConvSizes(side, channels, call.weight.shape[-4], height, width, call.stride, call.upsample, x.dtype)
            )
        )
        return ("native", *UNMEASURED_ORDER) if is_native_first else UNMEASURED_ORDER
    return _cuda_order(
        x.device.index,
        x.dtype,
        call.in_channels,
        call.weight.shape[-4],
        call.stride,
        call.upsample,
        x.shape[2] * x.shape[3],
    )


def library_order(x: Tensor, out_channels: int, *, stride: int = 1, upsample: bool = False) -> tuple[str, ...]:
    """Return in which order the backends of a convolution of a map on a GPU are tried, by what was measured.

    Args:
        x: The map; [N, C, H, W].
        out_channels: Channels of the result.
        stride: Step of the output.
        upsample: Whether the map is doubled first.
    """
    return _cuda_order(x.device.index, x.dtype, x.shape[1], out_channels, stride, upsample, x.shape[2] * x.shape[3])


def is_native_measured_faster(sizes: ConvSizes) -> bool:
    """Return what was measured, for a weight that is transformed already."""
    is_faster = choose_form(sizes) in FASTER_FORMS[sizes.dtype] and sizes.in_channels >= FEWEST_NATIVE_CHANNELS
    return is_faster and has_fast_instructions(sizes.dtype)


def has_fast_instructions(dtype: torch.dtype) -> bool:
    """Return whether the processor has the instructions that the native convolution was measured with.

    In bfloat16 not where oneDNN multiplies whole tiles (AMX), sixteen times as many numbers at once.

    Args:
        dtype: float32 or bfloat16.
    """
    if dtype == torch.bfloat16:
        return _ext.has_pair_dots() and not torch.cpu._is_amx_tile_supported()
    return _ext.cpu_level() >= AVX2


@constant_while_tracing
def _cuda_order(
    device_index: int | None,
    dtype: torch.dtype,
    in_channels: int,
    out_channels: int,
    stride: int,
    upsample: bool,
    n_pixels: int,
) -> tuple[str, ...]:
    return TABLE.order(
        torch.cuda.get_device_name(device_index),
        UNMEASURED_HALF_ORDER if dtype in HALF else UNMEASURED_ORDER,
        dtype=str(dtype).removeprefix("torch."),
        in_channels=in_channels,
        out_channels=out_channels,
        stride=stride,
        upsample=upsample,
        n_pixels=n_pixels,
    )
