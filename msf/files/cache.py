"""The user's own folder for what can be made again, or was measured once."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ENV = "MSF_CACHE"


def cache_root() -> Path:
    """Return the folder that the environment variable MSF_CACHE names, else ~/.cache/medsymmflow; it may be missing."""
    named = os.environ.get(CACHE_ENV)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "medsymmflow"
