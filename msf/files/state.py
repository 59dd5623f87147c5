"""The file that an interrupted training goes on from: tensors and plain values, and what they are the state of."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf.files.atomic import write_atomically
from msf.files.torch_file import read_torch_file
from msf.plain_values import shown

STATE_FILE = "training_state.pt"


class StateFile:
    """The training state in a folder.

    Args:
        folder: Exists when something is written.
        kind: What the configuration is of, such as `experiment`: the name that it is stored by.
        configuration: Plain values; the state of another configuration is refused.
        sources: `{name: (fingerprint, difference)}` of what else must be the same, with the words for where it is not:
            `on other data`.
        upgrade: Turns a saved configuration, perhaps of an older version, into one of today; raises ValueError or
            TypeError where it is none.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        configuration: Mapping[str, Any],
        sources: Mapping[str, tuple[str, str]],
        *,
        upgrade: Callable[[Any], Any] = lambda saved: saved,
    ) -> None:
        """Read and write nothing yet."""
        self._upgrade = upgrade
        self.path = folder / STATE_FILE
        self.saved_step: int | None = None
        self._kind = kind
        self._configuration = configuration
        self._sources = sources

    def save(self, content: Mapping[str, Any], step: int) -> None:
        """Replace the state.

        Args:
            content: Tensors, numbers, strings, lists and dictionaries.
            step: How far the training is; what `kept` tells.

        Raises:
            FloatingPointError: A tensor is not finite; the old state stays.
            OSError: The disk is full or not writable; the old state stays.
        """
        identity = {self._kind: self._configuration, **{name: value for name, (value, _) in self._sources.items()}}
        write_state(self.path, {**identity, **content})
        self.saved_step = step

    def restore(self, fields: Sequence[str], *, resume: bool) -> dict[str, Any] | None:
        """Return what was saved; None where there is no state. The caller then sets `saved_step`.

        Args:
            fields: What the state must have.
            resume: Whether the training is to go on.

        Raises:
            ValueError: There is a state and `resume` is false; or it is damaged, or of another kind, configuration or
                source.
        """
        folder = str(self.path.parent)
        if not self.path.exists():
            return None
        state = read_state(self.path)
        missing = [name for name in (self._kind, *fields) if name not in state]
        if missing:
            raise ValueError(
                f"{str(self.path)!r} must be the state of a training of this kind; it has no {', '.join(missing)}: "
                "choose another folder"
            )
        if not resume:
            raise ValueError(
                f"folder {folder!r} holds a training run: resume it with --resume (resume=True), or choose another "
                "folder"
            )
        # Through JSON, which turns the tuples of both into lists.
        try:
            saved, wanted = json.loads(json.dumps([self._upgrade(state[self._kind]), self._configuration]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{str(self.path)!r} must hold a configuration of plain values; got: {error}") from error
        if saved != wanted:
            differences = "; ".join(_differences(saved, wanted))
            raise ValueError(
                f"folder {folder!r} holds a run of another configuration: {differences}. Give these as they were to "
                "resume it, or choose another folder"
            )
        for name, (value, difference) in self._sources.items():
            if state.get(name, value) != value:
                raise ValueError(f"folder {folder!r} holds a run {difference} than now: choose another folder")
        return state

    def kept(self, n_steps: int) -> str:
        """Return a sentence on what of a training of `n_steps` steps is on the disk."""
        if self.saved_step is None or not self.path.exists():
            return "nothing of the training is saved"
        return f"{str(self.path)!r} keeps the training up to step {self.saved_step} of {n_steps}"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, or replace one, in one step.

    Args:
        path: Its folder exists.
        state: Tensors, numbers, strings, lists and dictionaries.

    Raises:
        FloatingPointError: A tensor holds a value that is not finite; the text names it. The old file stays.
        OSError: The disk is full or not writable; the old file stays.
    """
    for name, tensor in _tensors("", state):
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} holds a value that is not finite")
    # In memory, since PyTorch's writer hides what a full disk says, and leaves an archive that it cannot close.
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getbuffer()))


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote, on the CPU.

    Raises:
        ValueError: The file is damaged, or of another kind.
        TypeError: It holds tensors that no training saves.
    """
    state = read_torch_file(path, "an intact training state")
    if not isinstance(state, dict):
        raise ValueError(f"{str(path)!r} must be an intact training state; got {type(state).__name__}")
    return state


def _differences(saved: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted({*saved, *wanted}, key=str):
            yield from _differences(saved.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif saved != wanted:
        yield f"{name} was {shown(saved)}, now {wanted!r}"


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _tensors(f"{name}.{index}", part)
