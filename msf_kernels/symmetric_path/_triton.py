"""The symmetric path in Triton: forward with its noise made on the way, and backward.

Forward, elementwise in fp32, with keep = 1 - sigma_min and the times of each stream:

    image part:     z = (1 - keep t) noise + t image         dz = image - keep noise
    semantic part:  z = (1 - keep t) semantic + t noise      dz = noise - keep semantic

Backward:  grad_image = t grad_z + grad_dz;   grad_semantic = (1 - keep t) grad_z - keep grad_dz   (no noise)

A program owns BLOCK counter blocks of one item and stream: 4 BLOCK neighbouring positions in row-major order over
channels and pixels, whatever the memory format, because position decides the noise. Traffic: each input value is read
once, z and dz are written once; noise needs none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.philox import normal_block
from msf_kernels._triton.recording import record_launches
from msf_kernels.philox_normal import IMAGE_STREAM, SEMANTIC_STREAM
from msf_kernels.symmetric_path._allocation import empty_gradients, empty_path

_IMAGE_STREAM = tl.constexpr(IMAGE_STREAM)
_SEMANTIC_STREAM = tl.constexpr(SEMANTIC_STREAM)

# Not measured on any GPU yet; the first is what runs.
CONFIGS = (
    KernelConfig({"BLOCK": 128}, num_warps=4),
    KernelConfig({"BLOCK": 256}, num_warps=4),
    KernelConfig({"BLOCK": 256}, num_warps=8),
)


@triton.jit
def _offsets(positions, n_pixels, stride_c, stride_p):
    """Return the memory offsets of positions counted over channels and pixels; int64, as the strides may be large."""
    channels = positions // n_pixels
    pixels = positions - channels * n_pixels
    return tl.cast(channels, tl.int64) * stride_c + tl.cast(pixels, tl.int64) * stride_p


@triton.jit
def _load(ptr, offsets, in_positions):
    return tl.cast(tl.load(ptr + offsets, mask=in_positions, other=0.0), tl.float32)


@triton.jit
def _store(ptr, offsets, values, in_positions):
    tl.store(ptr + offsets, tl.cast(values, ptr.dtype.element_ty), mask=in_positions)


@triton.jit(do_not_specialize=["seed", "keep"])
def _symmetric_path_fwd_kernel(
    z_ptr,
    dz_ptr,
    image_ptr,
    semantic_ptr,
    t_ptr,
    sample_index_ptr,
    seed,
    keep,
    n_image_channels,
    n_semantic_channels,
    n_pixels,
    stride_zn,
    stride_zc,
    stride_zp,
    stride_in,
    stride_ic,
    stride_ip,
    stride_sn,
    stride_sc,
    stride_sp,
    stride_tn,
    stride_ts,
    stride_index,
    BLOCK: tl.constexpr,
):
    n_image, n_semantic = n_image_channels * n_pixels, n_semantic_channels * n_pixels
    n_image_programs = tl.cdiv(n_image, 4 * BLOCK)
    n_programs = n_image_programs + tl.cdiv(n_semantic, 4 * BLOCK)
    item = tl.cast(tl.program_id(0) // n_programs, tl.int64)
    pid_part = tl.program_id(0) % n_programs
    sample_index = tl.load(sample_index_ptr + item * stride_index)

    if pid_part < n_image_programs:
        positions = pid_part * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
        in_positions = positions < n_image
        t = tl.cast(tl.load(t_ptr + item * stride_tn), tl.float32)
        image = _load(image_ptr + item * stride_in, _offsets(positions, n_pixels, stride_ic, stride_ip), in_positions)

        noise = normal_block(pid_part * BLOCK + tl.arange(0, BLOCK), _IMAGE_STREAM, sample_index, seed)
        z = (1.0 - keep * t) * noise + t * image
        dz = image - keep * noise

        outputs = item * stride_zn + _offsets(positions, n_pixels, stride_zc, stride_zp)
        _store(z_ptr, outputs, z, in_positions)
        _store(dz_ptr, outputs, dz, in_positions)
    else:
        pid_block = pid_part - n_image_programs
        positions = pid_block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
        in_positions = positions < n_semantic
        t = tl.cast(tl.load(t_ptr + item * stride_tn + stride_ts), tl.float32)
        offsets = _offsets(positions, n_pixels, stride_sc, stride_sp)
        semantic = _load(semantic_ptr + item * stride_sn, offsets, in_positions)

        noise = normal_block(pid_block * BLOCK + tl.arange(0, BLOCK), _SEMANTIC_STREAM, sample_index, seed)
        z = (1.0 - keep * t) * semantic + t * noise
        dz = noise - keep * semantic

        outputs = item * stride_zn + _offsets(positions + n_image, n_pixels, stride_zc, stride_zp)
        _store(z_ptr, outputs, z, in_positions)
        _store(dz_ptr, outputs, dz, in_positions)


@triton.jit(do_not_specialize=["keep"])
def _symmetric_path_bwd_kernel(
    grad_image_ptr,
    grad_semantic_ptr,
    grad_z_ptr,
    grad_dz_ptr,
    t_ptr,
    keep,
    n_image_channels,
    n_semantic_channels,
    n_pixels,
    stride_in,
    stride_ic,
    stride_ip,
    stride_sn,
    stride_sc,
    stride_sp,
    stride_zn,
    stride_zc,
    stride_zp,
    stride_dn,
    stride_dc,
    stride_dp,
    stride_tn,
    stride_ts,
    BLOCK: tl.constexpr,
):
    """Recompute nothing but the two factors of each item."""
    n_image, n_semantic = n_image_channels * n_pixels, n_semantic_channels * n_pixels
    n_image_programs = tl.cdiv(n_image, 4 * BLOCK)
    n_programs = n_image_programs + tl.cdiv(n_semantic, 4 * BLOCK)
    item = tl.cast(tl.program_id(0) // n_programs, tl.int64)
    pid_part = tl.program_id(0) % n_programs
    z_ptr = grad_z_ptr + item * stride_zn
    dz_ptr = grad_dz_ptr + item * stride_dn

    if pid_part < n_image_programs:
        positions = pid_part * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
        in_positions = positions < n_image
        t = tl.cast(tl.load(t_ptr + item * stride_tn), tl.float32)
        grad_z = _load(z_ptr, _offsets(positions, n_pixels, stride_zc, stride_zp), in_positions)
        grad_dz = _load(dz_ptr, _offsets(positions, n_pixels, stride_dc, stride_dp), in_positions)
        outputs = item * stride_in + _offsets(positions, n_pixels, stride_ic, stride_ip)
        _store(grad_image_ptr, outputs, t * grad_z + grad_dz, in_positions)
    else:
        positions = (pid_part - n_image_programs) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
        in_positions = positions < n_semantic
        t = tl.cast(tl.load(t_ptr + item * stride_tn + stride_ts), tl.float32)
        grad_z = _load(z_ptr, _offsets(positions + n_image, n_pixels, stride_zc, stride_zp), in_positions)
        grad_dz = _load(dz_ptr, _offsets(positions + n_image, n_pixels, stride_dc, stride_dp), in_positions)
        outputs = item * stride_sn + _offsets(positions, n_pixels, stride_sc, stride_sp)
        _store(grad_semantic_ptr, outputs, (1.0 - keep * t) * grad_z - keep * grad_dz, in_positions)


def _pixel_strides(tensor: Tensor, letter: str) -> tuple[Tensor, dict[str, int]]:
    """Return the tensor as [N, channels, pixels] (copied only if its pixels have no single stride) and its strides."""
    flat = tensor.flatten(2)
    return flat, {f"stride_{letter}{axis}": stride for axis, stride in zip("ncp", flat.stride(), strict=True)}


def _launch(
    kernel: object, dtype: torch.dtype, image: Tensor, semantic: Tensor, t: Tensor, **arguments: object
) -> None:
    n, n_pixels = image.shape[0], image.shape[2]
    n_channels = (image.shape[1], semantic.shape[1])

    def grid(blocks: dict[str, int]) -> tuple[int]:
        return (n * sum(triton.cdiv(channels * n_pixels, 4 * blocks["BLOCK"]) for channels in n_channels),)

    launch(
        kernel,
        CONFIGS,
        grid,
        configuration_key=(n, *n_channels, n_pixels, dtype),
        t_ptr=t,
        n_image_channels=n_channels[0],
        n_semantic_channels=n_channels[1],
        n_pixels=n_pixels,
        stride_tn=t.stride(0),
        stride_ts=t.stride(1) if t.dim() == 2 else 0,
        **arguments,
    )


def launch_symmetric_path_fwd(
    image: Tensor, semantic: Tensor, t: Tensor, sample_index: Tensor, seed: int, sigma_min: float
) -> tuple[Tensor, Tensor]:
    """Return the joint state and its velocity; [N, C + K, H, W] each."""
    z_t, dz_t = empty_path(image, semantic)
    flat_image, image_strides = _pixel_strides(image, "i")
    flat_semantic, semantic_strides = _pixel_strides(semantic, "s")
    _launch(
        _symmetric_path_fwd_kernel,
        image.dtype,
        flat_image,
        flat_semantic,
        t,
        z_ptr=z_t,
        dz_ptr=dz_t,
        image_ptr=flat_image,
        semantic_ptr=flat_semantic,
        sample_index_ptr=sample_index,
        seed=seed,
        keep=1 - sigma_min,
        stride_index=sample_index.stride(0),
        **_pixel_strides(z_t, "z")[1],
        **image_strides,
        **semantic_strides,
    )
    return z_t, dz_t


def launch_symmetric_path_bwd(
    grad_z: Tensor, grad_dz: Tensor, t: Tensor, sigma_min: float, n_image_channels: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and semantic."""
    grad_image, grad_semantic = empty_gradients(grad_z, n_image_channels)
    flat_image, image_strides = _pixel_strides(grad_image, "i")
    flat_semantic, semantic_strides = _pixel_strides(grad_semantic, "s")
    flat_z, z_strides = _pixel_strides(grad_z, "z")
    flat_dz, dz_strides = _pixel_strides(grad_dz, "d")
    _launch(
        _symmetric_path_bwd_kernel,
        grad_z.dtype,
        flat_image,
        flat_semantic,
        t,
        grad_image_ptr=grad_image,
        grad_semantic_ptr=grad_semantic,
        grad_z_ptr=flat_z,
        grad_dz_ptr=flat_dz,
        keep=1 - sigma_min,
        **image_strides,
        **semantic_strides,
        **z_strides,
        **dz_strides,
    )
    return grad_image, grad_semantic


def aot_cases(arch: int) -> list[AotCase]:
    """Return the compilations that training needs: every dtype, both memory formats, one time or two."""
    cases: list[AotCase] = []
    index = torch.empty(64, dtype=torch.int64, device="meta")
    one_time, two_times = torch.empty(64, device="meta"), torch.empty((64, 2), device="meta")
    for dtype, memory_format, t in (
        (torch.float32, torch.contiguous_format, one_time),
        (torch.float32, torch.contiguous_format, two_times),
        (torch.float32, torch.channels_last, one_time),
        (torch.bfloat16, torch.contiguous_format, one_time),
        (torch.float16, torch.contiguous_format, one_time),
    ):
        maps = torch.empty((64, 3, 32, 32), dtype=dtype, device="meta", memory_format=memory_format)
        joint = torch.empty((64, 6, 32, 32), dtype=dtype, device="meta", memory_format=memory_format)
        label = f"symmetric_path {dtype} {memory_format} t{list(t.shape)}".replace("torch.", "")
        with record_launches(label) as recorded:
            launch_symmetric_path_fwd(maps, maps, t, index, 7, 1e-4)
            launch_symmetric_path_bwd(joint, joint, t, 1e-4, 3)
        cases += recorded
    return cases
