"""The velocity network as fast as the machine allows: an inference form derived from the trained network."""

from __future__ import annotations

import warnings
from typing import Any

from msf.network.inference.form import InferenceForm, inference_form
from msf.network.inference.kept import KeptForm
from msf.network.inference.precision import precision_of
from msf.network.inference.rewrites import ALL_REWRITES, Rewrite
from msf.network.inference.structure import reason_against

__all__ = ["ALL_REWRITES", "InferenceForm", "KeptForm", "Rewrite", "inference_form", "precision_of", "reason_against"]

_RENAMED = {"CompiledVelocity": "InferenceForm", "LatestVelocity": "KeptForm", "compile_velocity": "inference_form"}


def __getattr__(name: str) -> Any:
    """Return what an old name means now, with a warning."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{name} is now {_RENAMED[name]}; the old name goes with the next release", DeprecationWarning, stacklevel=2
    )
    return globals()[_RENAMED[name]]
