"""Named tensor aliases, so that signatures read like the theory.

Axis letters are the same everywhere: N batch items, C image channels, K semantic channels, D = C + K joint channels,
H and W pixels, S steps of a time grid. An alias is a `torch.Tensor` for type checkers and at run time; the text beside
it states dtype, axes and range for readers. Explicit checks live in each operator's `api.py`.
"""

from typing import Annotated

from torch import Tensor

ImageBatch = Annotated[Tensor, "float [N, C, H, W]; in [-1, 1] at t = 1, N(0, I) at t = 0"]
SemanticBatch = Annotated[Tensor, "float [N, K, H, W]; code of the label at t = 0, N(0, I) at t = 1"]
JointState = Annotated[Tensor, "float [N, C + K, H, W]; image channels first"]
FeatureMap = Annotated[Tensor, "float [N, channels, H, W]"]
TimeBatch = Annotated[Tensor, "float [N], or [N, 2] as (t_image, t_semantic); in [0, 1]"]
TimeGrid = Annotated[Tensor, "float [S + 1], strictly monotone, both end points included"]
SampleIndex = Annotated[Tensor, "int64 [N], >= 0; identifies a sample whatever batch it travels in"]
Labels = Annotated[Tensor, "int64 [N], in [0, n_classes)"]
Codes = Annotated[Tensor, "float [n_classes, K]"]
ClassDistances = Annotated[Tensor, "float [N, n_classes], >= 0"]

__all__ = [
    "ClassDistances",
    "Codes",
    "FeatureMap",
    "ImageBatch",
    "JointState",
    "Labels",
    "SampleIndex",
    "SemanticBatch",
    "TimeBatch",
    "TimeGrid",
]
