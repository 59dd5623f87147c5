"""Label codes: how a class becomes a semantic map, at the resolution of pictures or of latents."""

from msf.codes.label_codes import LabelCode, make_code

__all__ = ["LabelCode", "make_code"]
