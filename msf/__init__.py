"""MedSymmFlow: one velocity field that generates medical images and classifies them, with uncertainty."""

import sys
from typing import TYPE_CHECKING, Any

from msf._moved import MovedModules

if TYPE_CHECKING:
    from msf.medsymmflow import MedSymmFlow

__version__ = "0.1.0"

__all__ = ["MedSymmFlow"]

sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    """Import the method when it is first used, so that `import msf` stays light."""
    if name == "MedSymmFlow":
        from msf.medsymmflow import MedSymmFlow

        return MedSymmFlow
    raise AttributeError(f"module 'msf' has no attribute {name!r}")
