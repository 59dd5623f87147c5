"""A checkpoint by folder or hub id, with the autoencoder that it is to be used with."""

from __future__ import annotations

import dataclasses
import os

from msf.autoencoder import Autoencoder
from msf.checkpoints.folder import AUTOENCODER_FOLDER, Checkpoint, find_checkpoint, load_checkpoint


def load_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    autoencoder_source: str | os.PathLike[str] | None = None,
) -> tuple[str, Checkpoint]:
    """Find a checkpoint and read it.

    Args:
        folder_or_hub_id: A folder, or `owner/name` of a model repository on the Hugging Face hub.
        revision: Branch, tag or commit of the repository.
        autoencoder_source: Folder or hub id of the autoencoder; default: the checkpoint's own copy, else where its
            configuration says.

    Returns:
        The local folder, and its parts; `experiment.autoencoder.source` is the autoencoder to load.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: Not a checkpoint, or tensors that do not fit its configuration.
        TypeError: A configuration value of the wrong type.
    """
    folder = find_checkpoint(folder_or_hub_id, revision=revision)
    checkpoint = load_checkpoint(folder)
    source = autoencoder_source
    if source is None and (folder / AUTOENCODER_FOLDER).is_dir():
        source = folder / AUTOENCODER_FOLDER
    experiment = checkpoint.experiment
    if source is not None and experiment.autoencoder.name != "identity":
        autoencoder = dataclasses.replace(experiment.autoencoder, source=os.fspath(source))
        experiment = dataclasses.replace(experiment, autoencoder=autoencoder)
    return str(folder), checkpoint._replace(experiment=experiment)


def require_same_autoencoder(checkpoint: Checkpoint, autoencoder: Autoencoder, where: str) -> None:
    """Refuse another autoencoder than the one that the checkpoint was made with.

    Raises:
        ValueError: The text gives both fingerprints.
    """
    if autoencoder.fingerprint != checkpoint.autoencoder_fingerprint:
        raise ValueError(
            f"{where!r} must be used with the autoencoder that it was made with, whose fingerprint is "
            f"{checkpoint.autoencoder_fingerprint}; got {checkpoint.experiment.autoencoder.source!r} with "
            f"{autoencoder.fingerprint}"
        )
