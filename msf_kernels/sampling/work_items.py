"""From work items (input, sample) to the arguments of a trajectory: gathered rows of inputs, and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf_kernels.checks import as_tensor, require_int, require_shape, require_tensor
from msf_kernels.philox_normal import philox_normal
from msf_kernels.sampling.blocks import expand_ranges
from msf_kernels.sampling.schedule import Chunk

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

_KEY_MASK = 0x7FFFFFFF
_SAMPLE_BITS = 32


@dataclass(frozen=True)
class NoiseRule:
    """Noise as a pure function of the sample index: see `draw` for the arguments."""

    shape: tuple[int, ...]
    stream: int
    dtype: torch.dtype
    is_antithetic: bool

    def make(self, sample_index: Tensor, seed: Tensor) -> Tensor:
        """Return the noise [B, *shape] of samples with the given indices [B]; the seed is an int64 tensor []."""
        if not self.is_antithetic:
            return philox_normal(sample_index, self.shape, seed, stream=self.stream, dtype=self.dtype)
        is_second = sample_index & 1
        noise = philox_normal(sample_index - is_second, self.shape, seed, stream=self.stream, dtype=self.dtype)
        sign = (1 - 2 * is_second).to(self.dtype)
        return noise * sign.reshape(-1, *[1] * len(self.shape))


@dataclass(frozen=True)
class Layout:
    """How a flat sequence of tensors becomes the arguments of a trajectory.

    Args:
        names: Names of the inputs in a mapping; their number in a tuple; None for a single tensor.
        noise_rule: How the last two tensors, sample indices and seed, become noise; None if the last one is the noise.
    """

    names: tuple[str, ...] | int | None
    noise_rule: NoiseRule | None

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[Any, Tensor]:
        """Return inputs as the caller gave them, and noise."""
        if self.noise_rule is None:
            *rows, noise = tensors
        else:
            *rows, sample_index, seed = tensors
            noise = self.noise_rule.make(sample_index, seed)
        if self.names is None:
            return rows[0], noise
        return (tuple(rows) if isinstance(self.names, int) else dict(zip(self.names, rows, strict=True))), noise


class WorkItems:
    """All inputs of a draw and where their noise comes from."""

    def __init__(
        self, inputs: Inputs, noise_rule: NoiseRule, seed: int, n_samples: int, input_key: object, noise: object
    ) -> None:
        """Check and flatten the inputs; see `draw` for the arguments."""
        names, self._rows = _flatten(inputs)
        self.layout = Layout(names, noise_rule if noise is None else None)
        self.n_inputs = self._rows[0].shape[0]
        self.device = self._rows[0].device
        if input_key is None:
            input_key = torch.arange(self.n_inputs)
        require_tensor("input_key", input_key, "[N]", (torch.int64,))
        assert isinstance(input_key, Tensor)
        require_shape("input_key", input_key, "[N]", (self.n_inputs,))
        if noise is None:
            require_int("seed", seed, minimum=0, below=2**63)
            # A tensor, so that a CUDA graph serves every seed.
            self._seed = torch.tensor(seed)
        self._key = (input_key.cpu() & _KEY_MASK) << _SAMPLE_BITS
        noise_bytes = noise_rule.dtype.itemsize * torch.Size(noise_rule.shape).numel()
        if noise is not None:
            if not isinstance(noise, Tensor):
                raise TypeError(f"noise must be a tensor; got {type(noise).__name__}")
            wanted = (self.n_inputs, n_samples, *noise_rule.shape)
            require_shape("noise", noise, "[N, n_samples, *noise_shape]", wanted)
            noise_bytes = noise[:1, :1].nbytes
        self._noise = noise
        self.bytes_per_sample = sum(row[:1].nbytes for row in self._rows) + noise_bytes

    def gather(self, chunks: Sequence[Chunk], micro_batch: int, device: torch.device) -> list[Tensor]:
        """Return one micro-batch as tensors for `Layout.arguments`; the last work item is repeated to fill it up."""
        counts = torch.tensor([chunk.count for chunk in chunks])
        row = torch.tensor([chunk.row for chunk in chunks]).repeat_interleave(counts)
        sample = expand_ranges(torch.tensor([chunk.first for chunk in chunks]), counts)
        n_padding = micro_batch - len(row)
        row, sample = (torch.cat([each, each[-1:].expand(n_padding)]) for each in (row, sample))
        rows = [_to(each.index_select(0, _to(row, each.device)), device) for each in self._rows]
        if self._noise is not None:
            return [*rows, _to(self._noise[_to(row, self._noise.device), _to(sample, self._noise.device)], device)]
        self._seed = _to(self._seed, device)
        return [*rows, _to(self._key[row] | sample, device), self._seed]


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Move without waiting for the device."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _flatten(inputs: Inputs) -> tuple[tuple[str, ...] | int | None, list[Tensor]]:
    names: tuple[str, ...] | int | None = None
    inputs = as_tensor(inputs)  # type: ignore[assignment]
    if isinstance(inputs, Tensor):
        rows: list[Any] = [inputs]
    elif isinstance(inputs, Mapping):
        names, rows = tuple(inputs), list(inputs.values())
    elif isinstance(inputs, Sequence):
        rows = list(inputs)
        names = len(rows)
    else:
        raise TypeError(f"inputs must be a tensor, or a tuple or mapping of tensors; got a {type(inputs).__name__}")
    rows = [as_tensor(row) for row in rows]
    if not rows:
        raise ValueError("inputs must hold at least one tensor; got none")
    for row in rows:
        if not isinstance(row, Tensor):
            raise TypeError(f"inputs must be a tensor, or a tuple or mapping of tensors; got a {type(row).__name__}")
        if row.dim() == 0 or row.shape[0] != rows[0].shape[0] or row.shape[0] == 0:
            shapes = ", ".join(str(list(each.shape)) for each in rows)
            raise ValueError(f"inputs must have one first axis N >= 1 in common; got shapes {shapes}")
    return names, rows
