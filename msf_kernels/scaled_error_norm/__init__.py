from msf_kernels.scaled_error_norm.api import scaled_error_norm

__all__ = ["scaled_error_norm"]
