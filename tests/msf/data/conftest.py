"""Small archives in MedMNIST layout, sound and broken."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SIZES = {"train": 12, "val": 4, "test": 6}


def sound_arrays(n_classes: int = 3, channels: int = 3, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in SIZES.items():
        shape = (n, size, size) if channels == 1 else (n, size, size, channels)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % n_classes).astype(np.uint8)[:, None]
    return arrays


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Write an archive: `archive(name, train_images=..., n_classes=...)`; an array given as None is left out."""

    def write(name: str = "own", *, n_classes: int = 3, channels: int = 3, size: int = 8, **replaced) -> Path:
        arrays = sound_arrays(n_classes, channels, size) | replaced
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write


@pytest.fixture(autouse=True)
def _no_other_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own data sets out of the tests, except where a test asks for `data_folder`."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("MSF_DATA", raising=False)
