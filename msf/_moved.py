"""Modules that moved: their old names lead to the new ones for one more release, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "msf.atomic": "msf.files.atomic",
    "msf.checkpoint": "msf.checkpoints.folder",
    "msf.classify": "msf.flow.classify",
    "msf.compiled": "msf.network.inference",
    "msf.data.latent_cache": "msf.autoencoder.latent_cache",
    "msf.data.latent_store": "msf.autoencoder.latent_store",
    "msf.ema": "msf.training.ema",
    "msf.generate": "msf.flow.generate",
    "msf.hub": "msf.files.hub",
    "msf.joint_space": "msf.flow.joint_space",
    "msf.latent_codes": "msf.codes.latent",
    "msf.losses": "msf.training.losses",
    "msf.official": "msf.checkpoints.official",
    "msf.path": "msf.flow.path",
    "msf.selective": "msf.judge.selective",
    "msf.train": "msf.training.train",
    "msf.training_images": "msf.training.images",
    "msf.uncertainty": "msf.judge.uncertainty",
    "msf.unet": "msf.network.unet",
    "msf.velocity": "msf.flow.solver",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds modules by the names that they had."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification for a module that moved, else None."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the old one."""
        old = module.__name__
        warnings.warn(
            f"{old} is now {MOVED[old]}; the old name goes with the next release", DeprecationWarning, stacklevel=2
        )
        sys.modules[old] = importlib.import_module(MOVED[old])
