from msf_kernels.attention_block.api import attention_block

__all__ = ["attention_block"]
