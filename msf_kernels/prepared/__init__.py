from msf_kernels.prepared.api import PreparedConvolution, prepared_convolution

__all__ = ["PreparedConvolution", "prepared_convolution"]
