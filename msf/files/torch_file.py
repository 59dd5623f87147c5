"""Files of `torch.save`: plain values and dense tensors that the file really holds, and nothing that could run code.

PyTorch's weights-only unpickler refuses code. It believes sizes, though, so a small file can hold tensors of terabytes
(views whose strides are 0, compressed records); and it takes tensors that no network computes with.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msf.files.damage import DAMAGE, first_line
from msf.plain_values import shown, shown_names

_PLAIN = (type(None), bool, int, float, str)
_MAX_DEPTH = 32
_PICKLE = b"\x80"  # its first byte, since protocol 2
_MAX_VALUES = 10**6
_REFUSED_CLASS = re.compile(r"GLOBAL ([\w.]+)")


def read_torch_file(path: Path, wanted: str = "a file of torch.save") -> Any:
    """Return what a file of `torch.save` holds, on the CPU.

    Only zip archives are read, the format since PyTorch 1.6. Records are verified by their checksums and mapped, so
    that no more is read than the file holds.

    Args:
        path: The file.
        wanted: What it must be, for the message.

    Returns:
        Dictionaries, lists, tuples and plain values with dense tensors, without gradients, among them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, damaged, compressed, or with anything else inside.
        TypeError: Tensors that are sparse, quantised, complex or without values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} must be {wanted}; there is none")
    where = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
                raise ValueError("compressed or encrypted records")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"a damaged record {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on formats that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            found = _REFUSED_CLASS.search(str(error))
            raise ValueError(
                f"{where} must hold tensors, dictionaries and plain values only: anything else could run code when it "
                f"is unpickled, and is refused{'; got ' + found[1] if found else ''}. If you trust the file, save its "
                "state dict alone"
            ) from None
        raise ValueError(f"{where} must be {wanted}; got: {_told(path, error)}") from error
    return _Checked(where, path.stat().st_size).value(content, "")


def _told(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that is no archive, or damaged."""
    if isinstance(error, zipfile.BadZipFile):
        with path.open("rb") as file:
            if file.read(1) == _PICKLE:
                return "a pickle, such as torch.save wrote before PyTorch 1.6: save the tensors again with a newer one"
    return first_line(error)


class _Checked:
    """Walks through what was read; every tensor is checked where it is met."""

    def __init__(self, where: str, file_bytes: int) -> None:
        self.where = where
        self.bytes_left = 4 * file_bytes  # one storage may serve several tensors, such as weights and their average
        self.values_left = _MAX_VALUES

    def value(self, value: Any, name: str, depth: int = 0) -> Any:
        self.values_left -= 1
        if depth > _MAX_DEPTH or self.values_left < 0:
            raise ValueError(
                f"{self.where} must hold a state dict; got values nested deeper than {_MAX_DEPTH}, or too many"
            )
        if isinstance(value, Tensor):
            return self.tensor(value, name)
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, _PLAIN) or (isinstance(key, int) and abs(key) >= 2**63):
                    raise ValueError(f"{self.where} must have plain keys; got {type(key).__name__} in {shown(name)}")
            return {
                key: self.value(part, f"{name}.{key}" if name else str(key), depth + 1) for key, part in value.items()
            }
        if isinstance(value, (list, tuple)):
            parts = [self.value(part, f"{name}.{k}", depth + 1) for k, part in enumerate(value)]
            return tuple(parts) if isinstance(value, tuple) else parts
        if isinstance(value, _PLAIN):
            return value
        return None  # such as a dtype or a device: of no use here

    def tensor(self, tensor: Tensor, name: str) -> Tensor:
        shown_as = shown_names([name or "a tensor"], 1)
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        is_dense = is_dense and not tensor.is_nested
        if not is_dense or tensor.is_complex() or type(tensor) not in (Tensor, nn.Parameter):
            kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
            raise TypeError(f"{self.where} must hold dense tensors of real numbers; got {shown_as} ({kind})")
        n_bytes = tensor.numel() * tensor.element_size()
        self.bytes_left -= n_bytes
        if n_bytes > tensor.untyped_storage().nbytes() or self.bytes_left < 0:
            raise ValueError(
                f"{self.where} must hold every value of its tensors; got {shown_as} {list(tensor.shape)}, "
                "which is larger than what the file has for it"
            )
        return tensor.detach()
