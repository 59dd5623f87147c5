"""What others would use for the same job, built from public packages.

A peer that cannot run here raises `Unavailable`; it then appears in the results with that reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


class Unavailable(Exception):
    """A variant cannot run on this machine; the text says why."""


def require(module: str, package: str | None = None) -> ModuleType:
    """Import a peer's module.

    Raises:
        Unavailable: It is not installed, or fails on import.
    """
    name = package or module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{name} cannot be imported: {error}") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise Unavailable(f"{name} fails on import: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def module_from_file(top: str, path: str, package: str | None = None) -> ModuleType:
    """Import one file of an installed package, or one sub-package, without running the package's own `__init__`.

    For packages whose top level imports what the wanted part does not need.

    Args:
        top: Name under which the package is imported.
        path: The file inside it; `.../__init__.py` for a sub-package.
        package: Name under which it is installed, where another.

    Raises:
        Unavailable: The package is not installed, has no such file, or the file fails on import.
    """
    name = package or top
    found = importlib.util.find_spec(top)
    if found is None or not found.submodule_search_locations:
        raise Unavailable(f"{name} is not installed")
    file = Path(next(iter(found.submodule_search_locations))) / path
    if not file.exists():
        raise Unavailable(f"this version of {name} has no {path}")
    alias = f"{top}_{'_'.join(Path(path).with_suffix('').parts)}"
    if alias in sys.modules:
        return sys.modules[alias]
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(alias, file, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise Unavailable(f"{name}: {path} is not a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[alias]
        raise Unavailable(f"{name} fails on import: {error}") from error
    return module


def require_gpu(what: str, device_type: str) -> None:
    """Refuse a peer that runs on CUDA only.

    Raises:
        Unavailable: The device is another.
    """
    if device_type != "cuda":
        raise Unavailable(f"{what} runs on a CUDA GPU only")
