"""What a result was made with, as every output carries it: the network, the settings, the programs."""

from __future__ import annotations

from typing import Any

from msf.config import ClassifySettings
from msf.files.tensors import digest_of
from msf.medsymmflow import MedSymmFlow
from msf.network.inference import precision_of
from msf.versions import versions


def provenance(flow: MedSymmFlow, settings: ClassifySettings, *, seed: int, micro_batch: int | None) -> dict[str, Any]:
    """Return what decides the numbers of a classification, JSON-ready.

    Args:
        flow: The network; its digest is that of its tensors, as `config.json` of its checkpoint holds it.
        settings: How pictures were classified.
        seed: Seed of the noise.
        micro_batch: Draws that were evaluated at once; None: not known yet.

    Returns:
        `checkpoint_sha256`, `autoencoder_sha256` (None for a flow on pixels), `seed`, the stored fields of
        `ClassifySettings` (with the precision that `auto` came to), `micro_batch`, `device`, and `versions` by name.
    """
    return {
        "checkpoint_sha256": digest_of(flow.network.state_dict()),
        "autoencoder_sha256": flow.autoencoder.fingerprint if flow.space.is_latent else None,
        "seed": seed,
        **settings.to_dict(),
        "precision": precision_of(flow.velocity(settings.precision, settings.n_samples).dtype),
        "micro_batch": micro_batch,
        "device": str(flow.device),
        "versions": versions(),
    }


def flat_provenance(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same as columns of a table: versions become `version_<name>`, decisions their digest."""
    flat = {name: value for name, value in values.items() if name not in ("versions", "decisions")}
    if "decisions" in values:
        flat["calibration_sha256"] = values["decisions"]["calibration_sha256"]
    return flat | {f"version_{name}": version for name, version in values["versions"].items()}
