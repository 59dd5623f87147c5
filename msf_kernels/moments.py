"""The old name of `msf_kernels.partial_moments`, for one more release."""

import warnings

from msf_kernels.partial_moments import CHUNK_PIXELS, empty_moments, map_moments, n_chunks_of

__all__ = ["CHUNK_PIXELS", "empty_moments", "map_moments", "n_chunks_of"]

warnings.warn(
    "msf_kernels.moments is now msf_kernels.partial_moments; the old name goes with the next release",
    DeprecationWarning,
    stacklevel=2,
)
