from msf_kernels.class_distance.api import class_distance

__all__ = ["class_distance"]
