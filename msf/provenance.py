"""What a result was made with, as every output carries it: the network, the settings, the programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msf.config import ClassifySettings, GenerateSettings
from msf.files.tensors import digest_of
from msf.medsymmflow import MedSymmFlow
from msf.network.inference import precision_of
from msf.versions import versions


def provenance(
    flow: MedSymmFlow, settings: ClassifySettings | GenerateSettings, *, seed: int, micro_batch: int | None
) -> dict[str, Any]:
    """Return what decides the numbers of a classification, or the pictures of a generation, JSON-ready.

    Args:
        flow: The network; its digest is that of its tensors, as `config.json` of its checkpoint holds it.
        settings: How pictures were classified or made.
        seed: Seed of the noise.
        micro_batch: Draws that were evaluated at once; None: not known.

    Returns:
        `checkpoint_sha256`, `autoencoder_sha256` (None for a flow on pixels), `seed`, the stored fields of the settings
        (with the precision that `auto` came to), `micro_batch`, `device`, and `versions` by name.
    """
    n_draws = getattr(settings, "n_samples", None)
    made_with = {
        **settings.to_dict(),
        "precision": precision_of(flow.velocity(settings.precision, n_draws).dtype),
        "micro_batch": micro_batch,
    }
    return of_network(flow, made_with, seed=seed, device=str(flow.device))


def of_network(flow: MedSymmFlow, made_with: Mapping[str, Any], *, seed: int, device: str) -> dict[str, Any]:
    """Return the same of anything that a network was used in, or came out of.

    Args:
        flow: The network.
        made_with: Settings, as plain values.
        seed: Of all that is random.
        device: What was computed on.
    """
    return {
        "checkpoint_sha256": digest_of(flow.network.state_dict()),
        "autoencoder_sha256": flow.autoencoder.fingerprint if flow.space.is_latent else None,
        "seed": seed,
        **made_with,
        "device": device,
        "versions": versions(),
    }


def flat_provenance(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same as columns of a table: versions become `version_<name>`, decisions their digest."""
    flat = {name: value for name, value in values.items() if name not in ("versions", "decisions")}
    if "decisions" in values:
        flat["calibration_sha256"] = values["decisions"]["calibration_sha256"]
    return flat | {f"version_{name}": version for name, version in values["versions"].items()}
