from msf_kernels._triton.output_norm import OutputNorm
from msf_kernels.prepared.api import PreparedConvolution, prepared_convolution

__all__ = ["OutputNorm", "PreparedConvolution", "prepared_convolution"]
