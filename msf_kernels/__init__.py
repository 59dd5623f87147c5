"""Kernels and ODE solvers that draw many samples of a learned flow fast; torch is the only hard dependency."""

from msf_kernels.attention_block import attention_block
from msf_kernels.backend import backends, explain, use_backend
from msf_kernels.class_distance import class_distance
from msf_kernels.conv3x3 import conv3x3, pack_weight
from msf_kernels.errors import BackendUnavailableError, DerivativeUnavailableError
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.philox_normal import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal, philox_words
from msf_kernels.prepared import prepared_convolution
from msf_kernels.rk_combine import rk_combine
from msf_kernels.scaled_error_norm import scaled_error_norm
from msf_kernels.spatial_attention import spatial_attention
from msf_kernels.symmetric_path import symmetric_path

__version__ = "0.1.0"

__all__ = [
    "IMAGE_STREAM",
    "SEMANTIC_STREAM",
    "BackendUnavailableError",
    "DerivativeUnavailableError",
    "attention_block",
    "backends",
    "class_distance",
    "conv3x3",
    "explain",
    "group_norm_silu",
    "pack_weight",
    "philox_normal",
    "philox_words",
    "prepared_convolution",
    "rk_combine",
    "scaled_error_norm",
    "spatial_attention",
    "symmetric_path",
    "use_backend",
]
