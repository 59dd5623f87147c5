"""Files of named tensors: read whole, and checked against the network that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from torch import Tensor

N_LISTED = 4  # tensors named per kind of mismatch


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the metadata of a safetensors file.

    Raises:
        ValueError: The file is corrupt, or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, reader.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{str(path)!r} must be an intact safetensors file; got: {error}") from error


def require_matching_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Check names and shapes of tensors against those of a network.

    Args:
        expected: The network's state dict; values may be on the meta device.
        found: The tensors that came.
        where: Name for the message: an argument or a file.

    Raises:
        ValueError: They differ; the text counts and lists missing, unexpected and differently shaped tensors.
    """
    different = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:N_LISTED])}{', ...' if len(names) > N_LISTED else ''}"
        for kind, names in different.items()
        if names
    ]
    if parts:
        raise ValueError(f"{where} must hold the tensors of the network; got {'; '.join(parts)}")
