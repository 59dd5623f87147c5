from msf_kernels.conv3x3.api import conv3x3, norm_affine, pack_weight

__all__ = ["conv3x3", "norm_affine", "pack_weight"]
