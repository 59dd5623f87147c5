"""Class distances in Triton: forward and backward.

Forward, per item n over pixels p, with d[c, p] = sqrt(sum_k (semantic[k, p] - codes[c, k])^2):

    distance[c] = sum_p d[c, p] / P;   votes[c] = (number of p whose smallest d[:, p] is that of c) / P

Backward, with w[c, p] = grad[c] / (P d[c, p]), or 0 where d is 0:

    grad_semantic[k, p] = sum_c w[c, p] (semantic[k, p] - codes[c, k]);   grad_codes[c, k] = -sum_n,p of the same terms

A program owns a stretch of pixels of one item and holds tiles [pixels, classes]; K is a loop. Traffic: forward reads
the map once; backward reads it twice (the second time from cache) and writes its gradient once. Sums over programs go
through partial results that are added in a fixed order. Block sizes follow from the number of classes alone, so that a
result does not depend on the batch or on tuning.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.recording import record_launches
from msf_kernels.class_distance._allocation import empty_distances, empty_gradients

# Values of a tile [pixels, classes]: 16 per thread. Not measured on any GPU yet.
TILE_VALUES = 2048
NUM_WARPS = 4
FWD_PIXELS_PER_PROGRAM = 4096


@triton.jit
def _distances(
    semantic_ptr,
    codes_ptr,
    pixels,
    in_pixels,
    classes,
    in_classes,
    n_channels,
    stride_sc,
    stride_sp,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Return d in fp32; [BLOCK_PIXELS, BLOCK_CLASSES]."""
    squared = tl.zeros((BLOCK_PIXELS, BLOCK_CLASSES), tl.float32)
    for k in range(n_channels):
        difference = _difference(
            semantic_ptr, codes_ptr, pixels, in_pixels, classes, in_classes, k, n_channels, stride_sc, stride_sp
        )
        squared += difference * difference
    return tl.sqrt_rn(squared)


@triton.jit
def _difference(semantic_ptr, codes_ptr, pixels, in_pixels, classes, in_classes, k, n_channels, stride_sc, stride_sp):
    """Return semantic[k, p] - codes[c, k] in fp32; [BLOCK_PIXELS, BLOCK_CLASSES]."""
    offsets = tl.cast(k, tl.int64) * stride_sc + pixels * stride_sp
    semantic = tl.cast(tl.load(semantic_ptr + offsets, mask=in_pixels, other=0.0), tl.float32)
    code = tl.cast(tl.load(codes_ptr + classes * n_channels + k, mask=in_classes, other=0.0), tl.float32)
    return semantic[:, None] - code[None, :]


@triton.jit
def _sum_pixels(values, BLOCK_PIXELS: tl.constexpr, BLOCK_CLASSES: tl.constexpr):
    """Sum [BLOCK_PIXELS, BLOCK_CLASSES] over pixels, eight at a time: the error grows with the levels only."""
    if BLOCK_PIXELS > 8:
        eighth = tl.sum(tl.reshape(values, (8, BLOCK_PIXELS // 8, BLOCK_CLASSES)), axis=0)
        total = _sum_pixels(eighth, BLOCK_PIXELS // 8, BLOCK_CLASSES)
    else:
        total = tl.sum(values, axis=0)
    return total


@triton.jit
def _add_compensated(total, lost, value):
    """Add a value to a running total, carrying what rounding loses (Kahan)."""
    value -= lost
    new_total = total + value
    return new_total, (new_total - total) - value


@triton.jit
def _class_distance_fwd_kernel(
    distance_ptr,
    votes_ptr,
    semantic_ptr,
    codes_ptr,
    n_classes,
    n_channels,
    n_pixels,
    n_programs,
    denominator,
    stride_sn,
    stride_sc,
    stride_sp,
    PIXELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Sum one item's PIXELS pixels; outputs [N * n_programs, n_classes], divided by `denominator`."""
    pid = tl.program_id(0)
    item = tl.cast(pid // n_programs, tl.int64)
    first = tl.cast(pid % n_programs, tl.int64) * PIXELS
    last = tl.minimum(first + PIXELS, n_pixels)
    classes = tl.arange(0, BLOCK_CLASSES)
    in_classes = classes < n_classes

    distance = tl.zeros((BLOCK_PIXELS, BLOCK_CLASSES), tl.float32)
    lost = tl.zeros((BLOCK_PIXELS, BLOCK_CLASSES), tl.float32)
    votes = tl.zeros((BLOCK_PIXELS, BLOCK_CLASSES), tl.float32)
    for start in range(first, last, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        in_pixels = pixels < n_pixels
        d = _distances(
            semantic_ptr + item * stride_sn,
            codes_ptr,
            pixels,
            in_pixels,
            classes,
            in_classes,
            n_channels,
            stride_sc,
            stride_sp,
            BLOCK_PIXELS,
            BLOCK_CLASSES,
        )
        distance, lost = _add_compensated(distance, lost, tl.where(in_pixels[:, None], d, 0.0))
        d = tl.where(in_classes[None, :], d, float("inf"))
        is_nearest = in_classes[None, :] & (d == tl.min(d, axis=1)[:, None])
        nearest = tl.min(tl.where(is_nearest, classes[None, :], BLOCK_CLASSES), axis=1)
        # No class is nearest to a pixel that is NaN; like argmin, give it to the first.
        nearest = tl.where(nearest == BLOCK_CLASSES, 0, nearest)
        votes += tl.where(in_pixels[:, None] & (classes[None, :] == nearest[:, None]), 1.0, 0.0)

    outputs = tl.cast(pid, tl.int64) * n_classes + classes
    denominator = tl.cast(denominator, tl.float32)
    distance = _sum_pixels(distance, BLOCK_PIXELS, BLOCK_CLASSES)
    tl.store(distance_ptr + outputs, tl.div_rn(distance, denominator), mask=in_classes)
    tl.store(votes_ptr + outputs, tl.div_rn(tl.sum(votes, axis=0), denominator), mask=in_classes)


@triton.jit
def _class_distance_fwd_sum_kernel(
    distance_ptr,
    votes_ptr,
    partial_distance_ptr,
    partial_votes_ptr,
    n_classes,
    n_programs,
    denominator,
    BLOCK_CLASSES: tl.constexpr,
):
    """Add up the programs of one item, from the first to the last, and divide."""
    item = tl.cast(tl.program_id(0), tl.int64)
    classes = tl.arange(0, BLOCK_CLASSES)
    in_classes = classes < n_classes
    distance = tl.zeros((BLOCK_CLASSES,), tl.float32)
    lost = tl.zeros((BLOCK_CLASSES,), tl.float32)
    votes = tl.zeros((BLOCK_CLASSES,), tl.float32)
    for program in range(n_programs):
        inputs = (item * n_programs + program) * n_classes + classes
        partial = tl.load(partial_distance_ptr + inputs, mask=in_classes, other=0.0)
        distance, lost = _add_compensated(distance, lost, partial)
        votes += tl.load(partial_votes_ptr + inputs, mask=in_classes, other=0.0)
    outputs = item * n_classes + classes
    denominator = tl.cast(denominator, tl.float32)
    tl.store(distance_ptr + outputs, tl.div_rn(distance, denominator), mask=in_classes)
    tl.store(votes_ptr + outputs, tl.div_rn(votes, denominator), mask=in_classes)


@triton.jit
def _class_distance_bwd_kernel(
    grad_semantic_ptr,
    partial_codes_ptr,
    grad_ptr,
    semantic_ptr,
    codes_ptr,
    n_classes,
    n_channels,
    n_pixels,
    n_programs,
    stride_gn,
    stride_gc,
    stride_gp,
    stride_sn,
    stride_sc,
    stride_sp,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Recompute the distances of one tile; partial_codes, if wanted, is [N * n_programs, n_classes, K]."""
    pid = tl.program_id(0)
    item = tl.cast(pid // n_programs, tl.int64)
    pixels = tl.cast(pid % n_programs, tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    in_pixels = pixels < n_pixels
    classes = tl.arange(0, BLOCK_CLASSES)
    in_classes = classes < n_classes
    semantic_ptr += item * stride_sn
    grad = tl.load(grad_ptr + item * n_classes + classes, mask=in_classes, other=0.0)  # [classes]

    d = _distances(
        semantic_ptr,
        codes_ptr,
        pixels,
        in_pixels,
        classes,
        in_classes,
        n_channels,
        stride_sc,
        stride_sp,
        BLOCK_PIXELS,
        BLOCK_CLASSES,
    )
    is_apart = (d > 0.0) & in_pixels[:, None]
    weight = tl.where(is_apart, (grad / n_pixels)[None, :] / tl.where(is_apart, d, 1.0), 0.0)  # [pixels, classes]

    for k in range(n_channels):
        term = weight * _difference(
            semantic_ptr, codes_ptr, pixels, in_pixels, classes, in_classes, k, n_channels, stride_sc, stride_sp
        )
        outputs = item * stride_gn + tl.cast(k, tl.int64) * stride_gc + pixels * stride_gp
        grad_semantic = tl.cast(tl.sum(term, axis=1), grad_semantic_ptr.dtype.element_ty)
        tl.store(grad_semantic_ptr + outputs, grad_semantic, mask=in_pixels)
        if partial_codes_ptr is not None:
            partials = (tl.cast(pid, tl.int64) * n_classes + classes) * n_channels + k
            tl.store(partial_codes_ptr + partials, -_sum_pixels(term, BLOCK_PIXELS, BLOCK_CLASSES), mask=in_classes)


def _blocks(n_classes: int) -> dict[str, int]:
    block_classes = triton.next_power_of_2(n_classes)
    return {"BLOCK_PIXELS": max(TILE_VALUES // block_classes, 1), "BLOCK_CLASSES": block_classes}


def _map_arguments(semantic: Tensor, codes: Tensor) -> dict[str, object]:
    """Return what both kernels know of the map [N, K, pixels] (copied only if its pixels have no single stride)."""
    flat = semantic.flatten(2)
    return {
        "semantic_ptr": flat,
        "codes_ptr": codes.contiguous(),
        "n_classes": codes.shape[0],
        "n_channels": codes.shape[1],
        "n_pixels": flat.shape[2],
        "stride_sn": flat.stride(0),
        "stride_sc": flat.stride(1),
        "stride_sp": flat.stride(2),
    }


def launch_class_distance_fwd(semantic: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return distance and votes; [N, n_classes] each."""
    distance, votes = empty_distances(semantic, codes)
    n, n_classes, blocks = semantic.shape[0], codes.shape[0], _blocks(codes.shape[0])
    n_pixels = semantic.shape[2] * semantic.shape[3]
    n_programs = triton.cdiv(n_pixels, FWD_PIXELS_PER_PROGRAM)
    sums = (
        (distance, votes)
        if n_programs == 1
        else tuple(distance.new_empty((n * n_programs, n_classes)) for _ in range(2))
    )
    launch(
        _class_distance_fwd_kernel,
        (KernelConfig(blocks, num_warps=NUM_WARPS),),
        lambda _blocks: (n * n_programs,),
        distance_ptr=sums[0],
        votes_ptr=sums[1],
        n_programs=n_programs,
        denominator=n_pixels if n_programs == 1 else 1,
        PIXELS=FWD_PIXELS_PER_PROGRAM,
        **_map_arguments(semantic, codes),
    )
    if n_programs > 1:
        launch(
            _class_distance_fwd_sum_kernel,
            (KernelConfig({"BLOCK_CLASSES": blocks["BLOCK_CLASSES"]}, num_warps=1),),
            lambda _blocks: (n,),
            distance_ptr=distance,
            votes_ptr=votes,
            partial_distance_ptr=sums[0],
            partial_votes_ptr=sums[1],
            n_classes=n_classes,
            n_programs=n_programs,
            denominator=n_pixels,
        )
    return distance, votes


def launch_class_distance_bwd(
    grad: Tensor, semantic: Tensor, codes: Tensor, needs_codes: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of semantic and codes."""
    grad_semantic, grad_codes = empty_gradients(semantic, codes, needs_codes)
    n, n_classes, blocks = semantic.shape[0], codes.shape[0], _blocks(codes.shape[0])
    n_programs = triton.cdiv(semantic.shape[2] * semantic.shape[3], blocks["BLOCK_PIXELS"])
    partial = grad.new_empty((n * n_programs, n_classes, codes.shape[1])) if needs_codes else None
    flat_grad = grad_semantic.flatten(2)
    launch(
        _class_distance_bwd_kernel,
        (KernelConfig(blocks, num_warps=NUM_WARPS),),
        lambda _blocks: (n * n_programs,),
        grad_semantic_ptr=grad_semantic,
        partial_codes_ptr=partial,
        grad_ptr=grad.contiguous(),
        n_programs=n_programs,
        stride_gn=flat_grad.stride(0),
        stride_gc=flat_grad.stride(1),
        stride_gp=flat_grad.stride(2),
        **_map_arguments(semantic, codes),
    )
    if partial is not None:
        grad_codes.copy_(partial.sum(0))
    return grad_semantic, grad_codes


def aot_cases(arch: int) -> list[AotCase]:
    """Return the compilations that classification needs: 2 to 11 classes, every dtype, small maps and large ones."""
    cases: list[AotCase] = []
    for dtype, n_classes, channels, size in (
        (torch.float32, 2, 1, 32),
        (torch.float32, 8, 3, 32),
        (torch.float32, 11, 10, 256),
        (torch.bfloat16, 8, 4, 32),
        (torch.float16, 8, 4, 32),
    ):
        semantic = torch.empty((64, channels, size, size), dtype=dtype, device="meta")
        codes = torch.empty((n_classes, channels), device="meta")
        grad = torch.empty((64, n_classes), device="meta")
        label = f"class_distance {dtype} classes={n_classes} size={size}".replace("torch.", "")
        with record_launches(label) as recorded:
            launch_class_distance_fwd(semantic, codes)
            launch_class_distance_bwd(grad, semantic, codes, False)
        with record_launches(f"{label} codes too") as with_codes:
            launch_class_distance_bwd(grad, semantic, codes, True)
        cases += recorded + with_codes
    return cases
