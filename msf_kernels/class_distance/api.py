"""The public class read-out: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import tensor_reasons, triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import require_same_device, require_shape, require_tensor
from msf_kernels.class_distance._native import class_distance_native, native_reasons
from msf_kernels.class_distance._ops import class_distance_triton
from msf_kernels.class_distance._reference import class_distance_reference
from msf_kernels.shapes import ClassDistances, Codes, SemanticBatch

# A Triton program holds all classes of a few pixels.
_MAX_TRITON_CLASSES = 512


def _triton_reasons(semantic: Tensor, codes: Tensor) -> list[str]:
    reasons = tensor_reasons((semantic, codes))
    if codes.shape[0] > _MAX_TRITON_CLASSES:
        reasons.append(f"codes have {codes.shape[0]} classes; the kernel takes at most {_MAX_TRITON_CLASSES}")
    return reasons


_operator = Operator(
    "class_distance",
    [
        triton_backend(class_distance_triton, _triton_reasons, derivatives=Derivatives.REVERSE),
        native_backend(class_distance_native, native_reasons, derivatives=Derivatives.REVERSE),
        Backend("reference", class_distance_reference, derivatives=Derivatives.ALL),
    ],
)


def class_distance(
    semantic: SemanticBatch, codes: Codes, *, backend: str = "auto"
) -> tuple[ClassDistances, ClassDistances]:
    """Compare every pixel of a semantic map with every class code, in one pass over the map.

        d[n, c, p] = sqrt(sum_k (semantic[n, k, p] - codes[c, k])^2)
        distance[n, c] = mean over pixels p of d[n, c, p]
        votes[n, c] = share of pixels p whose smallest d[n, :, p] is that of c; ties go to the lowest class

    `distance.argmin(1)` is the published mean rule, `votes.argmax(1)` the mode rule.

    Args:
        semantic: Recovered semantic map; [N, K, H, W]; float16, bfloat16, float32 or float64; any strides; at least
            one pixel. N may be 0.
        codes: Code of each class; [n_classes, K], n_classes >= 1; any floating dtype.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        `(distance, votes)`: [N, n_classes] each, contiguous, on the device of `semantic`; float64 when `semantic` is
        float64, else float32. Votes of an item add up to 1.

    Raises:
        TypeError: An argument that is not a floating tensor.
        ValueError: Axes, sizes or devices that do not fit; no class; a map without pixels.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Arithmetic in float32 (float64 when `semantic` is float64). The distances are differentiable with respect to
        `semantic` and `codes` (a pixel exactly on a code contributes zero); the votes are not. Backward recomputes the
        distances. Differentiable to any order, all derivatives of such a pixel being zero; forward mode and the
        transforms of `torch.func` on the reference only, which `auto` then takes. Deterministic; an item's result does
        not depend on the other items of the batch.

    Source:
        MedSymmFlow, arXiv 2507.19098 (classification by the nearest class colour).
    """
    require_tensor("semantic", semantic, "[N, K, H, W]")
    require_tensor("codes", codes, "[n_classes, K]")
    require_shape("codes", codes, "[n_classes, K of semantic]", (codes.shape[0], semantic.shape[1]))
    require_same_device("codes", codes, "semantic", semantic)
    if codes.shape[0] == 0:
        raise ValueError(f"codes must have at least one class; got shape {list(codes.shape)}")
    if semantic.shape[2] == 0 or semantic.shape[3] == 0:
        raise ValueError(f"semantic must have at least one pixel; got shape {list(semantic.shape)}")
    result: tuple[Tensor, Tensor] = _operator(backend, semantic, codes)
    return result
