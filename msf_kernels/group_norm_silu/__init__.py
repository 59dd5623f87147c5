from msf_kernels.group_norm_silu.api import group_norm_silu

__all__ = ["group_norm_silu"]
