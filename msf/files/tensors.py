"""Files of named tensors: read whole, and checked against the network that they are for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from msf.files.damage import DAMAGE, first_line
from msf.plain_values import shown_names
from msf_kernels.checks import FLOATING

N_LISTED = 4  # tensors named per kind of mismatch
# Trained weights stay far below. Beyond it products of a few layers leave the range of float32, and what comes out is
# decided by overflow.
LARGEST_WEIGHT = 1e6

_UNREADABLE: tuple[type[Exception], ...] = (safetensors.SafetensorError, *DAMAGE)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the metadata of a safetensors file.

    The header is compared with the file's size before any tensor is made, so that they need no more memory than the
    file has bytes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is corrupt, or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} must be an existing safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, reader.metadata() or {}  # noqa: SIM118
    except _UNREADABLE as error:
        raise ValueError(f"{str(path)!r} must be an intact safetensors file; got: {first_line(error)}") from error


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
            f"{shown_names([name], 1)} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    parts = [f"{len(names)} {kind}: {shown_names(names, N_LISTED)}" for kind, names in different.items() if names]
    if parts:
        raise ValueError(f"{where} must hold the tensors of the network; got {'; '.join(parts)}")


def require_sound_weights(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that a network can compute with tensors.

    Args:
        tensors: Weights by name, dense.
        where: Name for the message: a file.

    Raises:
        TypeError: A tensor that is not floating point (16, 32 or 64 bits); the first one is named.
        ValueError: A tensor with a value that is NaN, infinite or beyond `LARGEST_WEIGHT`; the first one is named.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{where} must hold floating-point weights; got {shown_names([name], 1)} of {tensor.dtype}")
        if not tensor.numel():
            continue
        low, high = (float(value) for value in torch.aminmax(tensor.detach()))  # both NaN if any value is
        if not (low >= -LARGEST_WEIGHT and high <= LARGEST_WEIGHT):
            raise ValueError(
                f"{where} must hold finite weights of at most {LARGEST_WEIGHT:g}; got {shown_names([name], 1)} with "
                f"values from {low:g} to {high:g}"
            )


def require_stages(expected: Mapping[str, int], names: Iterable[str], where: str) -> None:
    """Check that a network of so many stages can be meant, before it is built: building takes time per stage.

    Args:
        expected: Stages by the prefix of their names, such as `input_blocks`.
        names: Names of the tensors that came.
        where: Name for the message.

    Raises:
        ValueError: A configuration of far more stages than there are tensors for.
    """
    stages = {tuple(name.split(".")[: prefix.count(".") + 2]) for name in names for prefix in expected}
    for prefix, n_expected in expected.items():
        parts = tuple(prefix.split("."))
        n_found = sum(stage[:-1] == parts for stage in stages)
        if n_expected > 2 * n_found + 16:
            raise ValueError(
                f"{where} must hold the tensors of the network; its configuration has {n_expected} stages {prefix}, "
                f"the tensors {n_found}"
            )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of names, dtypes, shapes and values, whatever the order and the device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
