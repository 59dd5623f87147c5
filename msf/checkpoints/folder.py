"""Checkpoints: a folder with `config.json` and `model.safetensors`, read and written as a whole.

The folder may hold other files; they are left alone. A flow on latents has its autoencoder in a folder inside, unless
it comes from the hub; `config.json` names the autoencoder's fingerprint. Two files cannot be replaced in one step, so
one of them decides: `model.safetensors` is written last, and repeats in its header the configuration that it was saved
with. A kill between the two leaves a new `config.json` beside old weights; both carry a digest of the saved
configuration, so the reader sees that they do not belong together and takes the configuration beside the weights. Where
they do belong together `config.json` counts, so that it can be edited by hand.

The configuration holds a digest of the tensors and is covered by its own: nothing in `model.safetensors` can change
without being noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from msf.config import ExperimentConfig, TaskConfig
from msf.files.atomic import write_atomically
from msf.files.hub import find_folder
from msf.files.json_text import parse_json
from msf.files.tensors import (
    digest_of,
    read_safetensors,
    require_matching_tensors,
    require_sound_weights,
    require_stages,
)
from msf.network.unet import UNet

if TYPE_CHECKING:
    from msf.autoencoder import Autoencoder

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
AUTOENCODER_FOLDER = "autoencoder"
TENSORS_FIELD = "tensors_sha256"

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Args:
        task: What the data decided.
        experiment: Configuration of the run.
        state_dict: Tensors of the velocity network, on the CPU.
        autoencoder_fingerprint: Of the autoencoder that the flow was made with; None for a flow on pixels.
    """

    task: TaskConfig
    experiment: ExperimentConfig
    state_dict: dict[str, Tensor]
    autoencoder_fingerprint: str | None


def save_checkpoint(
    folder: str | os.PathLike[str],
    task: TaskConfig,
    experiment: ExperimentConfig,
    state_dict: Mapping[str, Tensor],
    *,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write a checkpoint, or replace one; a kill at any moment leaves the old one or the new one.

    Args:
        folder: Created if missing, with its parents. Other files in it stay.
        task: What the data decided.
        experiment: Configuration of the run.
        state_dict: Tensors of the velocity network, on any device, as `UNet.state_dict()` names them.
        autoencoder: The flow's autoencoder; needed where the configuration has one that is not the identity. It is
            written too, once, unless it came from the hub.

    Raises:
        ValueError: The tensors do not fit the network of `experiment`; the autoencoder is missing; or the folder holds
            a checkpoint with another autoencoder. Nothing is written then.
        OSError: The disk is full or not writable; the old checkpoint then stays.
    """
    require_matching_tensors(_expected_tensors(experiment, state_dict, "state_dict"), state_dict, "state_dict")
    folder = Path(folder)
    content = {"format": FORMAT, "task": task.to_dict(), "experiment": experiment.to_dict()}
    if experiment.autoencoder.name != "identity":
        if autoencoder is None:
            raise ValueError(f"autoencoder must be given for a flow on latents ({experiment.autoencoder.name})")
        content["autoencoder_fingerprint"] = autoencoder.fingerprint
        # Before the configuration that needs it.
        _save_autoencoder(folder, autoencoder, experiment.autoencoder.source)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    content[TENSORS_FIELD] = digest_of(tensors)
    content["digest"] = _digest(content)
    text = json.dumps(content, indent=2) + "\n"
    # Serialised in memory, since `save_file` makes a temporary file of its own, which a kill would leave behind. One
    # entry of metadata only: several come out in a random order, and equal checkpoints should be equal files.
    weights = safetensors.torch.save(tensors, metadata={"config": text})
    write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    write_atomically(folder / WEIGHTS_FILE, lambda path: path.write_bytes(weights))


def load_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: What `save_checkpoint` wrote.

    Returns:
        Its parts. The autoencoder itself is not read.

    Raises:
        FileNotFoundError: The folder or one of its two files is missing.
        ValueError: Not a checkpoint, an unknown format, corrupt files, tensors that do not fit the network of the
            configuration (the text lists some of each kind) or differ from those that were saved, or weights that are
            NaN, infinite or absurdly large.
        TypeError: A configuration value of the wrong type, or weights that are not floating point.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"a checkpoint is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}; got {str(folder)!r}")
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{str(folder)!r} is not a checkpoint: {' and '.join(missing)} missing")
    weights = folder / WEIGHTS_FILE
    state_dict, metadata = read_safetensors(weights)
    content = _read_config((folder / CONFIG_FILE).read_bytes(), folder / CONFIG_FILE)
    if "config" in metadata:
        beside_weights = _read_config(metadata["config"], weights)
        _require_saved_tensors(beside_weights, state_dict, weights)
        if "digest" in content and content["digest"] != beside_weights.get("digest"):
            content = beside_weights
    elif TENSORS_FIELD in content:
        raise ValueError(f"{str(weights)!r} must be the weights that were saved with {CONFIG_FILE}; they name none")
    else:
        _log.info("%s has no digest of its tensors, as files of other programs and of earlier versions", weights)
    try:
        task = TaskConfig.from_dict(content["task"])
        experiment = ExperimentConfig.from_dict(content["experiment"])
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{str(folder / CONFIG_FILE)!r} must hold a valid configuration: {error}") from error
    fingerprint = content.get("autoencoder_fingerprint")
    if not isinstance(fingerprint, str | None):
        raise TypeError(
            f"{str(folder / CONFIG_FILE)!r} must have a text as autoencoder_fingerprint; got {fingerprint!r:.80}"
        )
    where = repr(str(weights))
    require_matching_tensors(_expected_tensors(experiment, state_dict, where), state_dict, where)
    require_sound_weights(state_dict, where)
    return Checkpoint(task, experiment, state_dict, fingerprint)


def find_checkpoint(folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint, fetching it from the Hugging Face hub if it is not one already.

    Args:
        folder_or_hub_id: Existing folder, or `owner/name` of a model repository that holds the two files, and perhaps
            an autoencoder.
        revision: Branch, tag or commit of the repository; default: its main branch.

    Raises:
        FileNotFoundError: Neither a folder nor the form of a hub id; or a hub id that cannot be fetched, because
            huggingface_hub is missing, the network is down, or there is no such repository. A repository that was
            fetched before is found without network.
    """
    files = [CONFIG_FILE, WEIGHTS_FILE, f"{AUTOENCODER_FOLDER}/*"]
    return find_folder(folder_or_hub_id, files, name="checkpoint", revision=revision)


def _save_autoencoder(folder: Path, autoencoder: Autoencoder, source: str | None) -> None:
    """Write the autoencoder beside the checkpoint, unless it is there, and never in the place of another one."""
    from msf.autoencoder.kl import saved_fingerprint

    path = folder / AUTOENCODER_FOLDER
    saved = saved_fingerprint(path)
    if (folder / CONFIG_FILE).is_file():
        config = _read_config((folder / CONFIG_FILE).read_bytes(), folder / CONFIG_FILE)
        saved = config.get("autoencoder_fingerprint") or saved
    if saved not in (None, autoencoder.fingerprint):
        raise ValueError(
            f"{str(folder)!r} holds another autoencoder, whose fingerprint is {saved}; got one with "
            f"{autoencoder.fingerprint}: choose another folder"
        )
    is_from_hub = autoencoder.hub_id is not None and autoencoder.hub_id == source
    if not is_from_hub and saved_fingerprint(path) is None:
        autoencoder.save_pretrained(path)


def _digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a configuration without the field that holds it."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _require_saved_tensors(content: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check the configuration that was saved with tensors, and the tensors, against their digests."""
    if "digest" in content and content["digest"] != _digest(content):
        raise ValueError(f"{str(path)!r} must be as it was saved; the configuration in its header was changed")
    if TENSORS_FIELD not in content:
        _log.info("%s has no digest of its tensors, as files of earlier versions", path)
    elif "digest" not in content or content[TENSORS_FIELD] != digest_of(tensors):
        raise ValueError(f"{str(path)!r} must be as it was saved; its tensors were changed, or the file is damaged")


def _expected_tensors(experiment: ExperimentConfig, found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    n_stages = len(experiment.network.channel_multipliers) * (experiment.network.n_res_blocks + 1)
    require_stages({"input_blocks": n_stages, "output_blocks": n_stages}, found, where)
    # Input and output widths are no part of the configuration (they follow from data, code and autoencoder).
    first, last = found.get("input_blocks.0.0.weight"), found.get("out.2.bias")
    with torch.device("meta"):
        network = UNet(
            experiment.network,
            in_channels=1 if first is None or first.ndim != 4 else first.shape[1],
            out_channels=1 if last is None or last.ndim != 1 else last.shape[0],
            n_times=2 if experiment.path.time_coupling == "independent" else 1,
        )
    return network.state_dict()


def _read_config(text: str | bytes, path: Path) -> dict[str, Any]:
    content = parse_json(text, repr(str(path)), "a configuration in JSON")
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{str(path)!r} is not the configuration of a checkpoint: it has no field 'format'")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} must have format {FORMAT}; got {content['format']!r:.80}, written by another version"
        )
    missing = [name for name in ("task", "experiment") if name not in content]
    if missing:
        raise ValueError(f"{str(path)!r} must have the fields task and experiment; missing: {', '.join(missing)}")
    return content
