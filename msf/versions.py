"""What a result was made with: versions of the programs that decide its numbers."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("torch", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Return names and versions: of this package, Python and the libraries that decide numbers."""
    import msf_kernels

    found = {"msf": msf_kernels.__version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}
