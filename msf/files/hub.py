"""Folders on this machine, or repositories of the Hugging Face hub that are fetched when they are not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Return whether this names a repository of the hub: `owner/name`, and no folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).is_dir()


def find_folder(
    folder_or_hub_id: str | os.PathLike[str],
    files: Sequence[str],
    *,
    name: str,
    revision: str | None = None,
) -> Path:
    """Return a local folder, fetching it from the Hugging Face hub if it is not one already.

    Args:
        folder_or_hub_id: Existing folder, or `owner/name` of a model repository.
        files: The files that are fetched; a repository may hold others.
        name: What is looked for, for the message.
        revision: Branch, tag or commit of the repository; default: its main branch.

    Raises:
        FileNotFoundError: Neither a folder nor the form of a hub id; or a hub id that cannot be fetched, because
            huggingface_hub is missing, the network is down, or there is no such repository. A repository that was
            fetched before is found without network.
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    text = os.fspath(folder_or_hub_id)
    if not is_hub_id(text):
        raise FileNotFoundError(f"{name} must be an existing folder or a hub id owner/name; got {text!r}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{text!r} is no folder here, and fetching it from the hub needs: pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub client's exceptions have no common base, and differ between its versions
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{text!r} is no folder here, and the hub did not deliver it ({type(error).__name__}: {reason})"
        ) from error
