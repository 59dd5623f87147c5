from msf_kernels.symmetric_path.api import symmetric_path

__all__ = ["symmetric_path"]
