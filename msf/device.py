"""Choosing where to compute."""

from __future__ import annotations

import torch


def choose_device(name: str | torch.device | None) -> torch.device:
    """Return the named device, or CUDA if there is any and else the CPU.

    Args:
        name: Such as `cpu`, `cuda` or `cuda:1`; None chooses.

    Raises:
        ValueError: Not the name of a device, or of one that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one of this machine, such as cpu; got {str(name)!r} ({reason})") from error
    return device
