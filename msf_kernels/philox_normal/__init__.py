from msf_kernels.philox_normal.api import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal, philox_words

__all__ = ["IMAGE_STREAM", "SEMANTIC_STREAM", "philox_normal", "philox_words"]
