"""Kernels and ODE solvers that draw many samples of a learned flow fast; torch is the only hard dependency."""

from msf_kernels.backend import backends, explain, use_backend
from msf_kernels.errors import BackendUnavailableError

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "backends",
    "explain",
    "use_backend",
]
