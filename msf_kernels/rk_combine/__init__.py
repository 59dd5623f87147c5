from msf_kernels.rk_combine.api import rk_combine

__all__ = ["rk_combine"]
