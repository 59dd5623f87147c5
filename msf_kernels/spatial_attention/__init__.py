from msf_kernels.spatial_attention.api import spatial_attention

__all__ = ["spatial_attention"]
