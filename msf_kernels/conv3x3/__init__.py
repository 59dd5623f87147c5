from msf_kernels.conv3x3._choice import library_order
from msf_kernels.conv3x3.api import conv3x3, pack_weight
from msf_kernels.conv3x3.transformed import (
    TransformedWeight,
    convolve_transformed,
    is_native_convolution_fast,
    is_native_convolution_faster,
    native_convolution_reasons,
    transform_weight,
)

__all__ = [
    "TransformedWeight",
    "conv3x3",
    "convolve_transformed",
    "is_native_convolution_fast",
    "is_native_convolution_faster",
    "library_order",
    "native_convolution_reasons",
    "pack_weight",
    "transform_weight",
]
