"""Kernels and ODE solvers that draw many samples of a learned flow fast; torch is the only hard dependency."""

from msf_kernels.backend import backends, explain, use_backend
from msf_kernels.errors import BackendUnavailableError
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.spatial_attention import spatial_attention

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "backends",
    "explain",
    "group_norm_silu",
    "spatial_attention",
    "use_backend",
]
