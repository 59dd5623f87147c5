"""First weights from another network: what keeps its meaning is taken over, the rest starts afresh and is named."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from msf.checkpoints.folder import Checkpoint
from msf.checkpoints.pretrained import load_pretrained
from msf.files.tensors import digest_of
from msf.medsymmflow import MedSymmFlow

_FIRST, _LAST = "input_blocks.0.0.weight", ("out.2.weight", "out.2.bias")
_EDGES = (_FIRST, *_LAST)
_N_LISTED = 6


@dataclass(frozen=True)
class TakenOver:
    """What a network got from another one.

    Args:
        source: Where that lies.
        digest: Of its tensors.
        whole: Names of tensors that were taken over.
        image_part: Names of those whose image channels were taken over, while the semantic ones start afresh.
        fresh: Names of those that start afresh.
        reasons: Why not all was taken over, one clause each.
    """

    source: str
    digest: str
    whole: tuple[str, ...]
    image_part: tuple[str, ...]
    fresh: tuple[str, ...]
    reasons: tuple[str, ...]

    def text(self) -> str:
        """Return a sentence for the user."""
        n = len(self.whole) + len(self.image_part) + len(self.fresh)
        parts = [f"{len(self.whole)} of {n} tensors are taken over from {self.source!r}"]
        if self.image_part:
            parts.append(f"of {', '.join(self.image_part)} the image channels only")
        if self.fresh:
            more = ", ..." if len(self.fresh) > _N_LISTED else ""
            parts.append(f"{len(self.fresh)} start afresh: {', '.join(self.fresh[:_N_LISTED])}{more}")
        if self.reasons:
            parts.append(f"since {', '.join(self.reasons)}")
        return "; ".join(parts)


def start_from(flow: MedSymmFlow, source: str) -> TakenOver:
    """Put weights of another network into that of a flow.

    A tensor is taken over where name and shape are the same. The first and the last convolution also depend on what
    their channels mean: image channels are taken over where pictures have as many channels and, on latents, the
    autoencoder is the same; semantic channels where label code and classes are the same.

    Args:
        flow: Freshly made, in place.
        source: Folder or hub id of a checkpoint.

    Returns:
        What was taken over.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: Not a checkpoint, or one with nothing to take over.
    """
    where, checkpoint = load_pretrained(source)
    weights, own = checkpoint.state_dict, flow.network.state_dict()
    keeps_image, keeps_semantic, reasons = _meanings(flow, checkpoint)
    n_image = flow.image_shape[0]
    whole, image_part, fresh = [], [], []
    taken: dict[str, Tensor] = {}
    for name, tensor in own.items():
        other = weights.get(name)
        is_edge = name in _EDGES
        if other is None or (other.shape != tensor.shape and not is_edge):
            fresh.append(name)
        elif not is_edge or (keeps_image and keeps_semantic and other.shape == tensor.shape):
            taken[name] = other
            whole.append(name)
        elif keeps_image and (mixed := _image_part(name, tensor, other, n_image)) is not None:
            taken[name] = mixed
            image_part.append(name)
        else:
            fresh.append(name)
    if set(whole) <= set(_EDGES):
        raise ValueError(
            f"init must name a network like this one; {source!r} has no inner tensor of the same name and shape: "
            f"its network is {checkpoint.experiment.network}"
        )
    if len(own) > len(whole) + len(image_part) and any(name not in weights for name in fresh):
        reasons.append("the other network does not have them")
    if any(name in weights and weights[name].shape != own[name].shape for name in fresh if name not in _LAST):
        reasons.append("widths differ")
    flow.network.load_state_dict({**own, **taken})
    return TakenOver(where, digest_of(weights), tuple(whole), tuple(image_part), tuple(fresh), tuple(reasons))


def _meanings(flow: MedSymmFlow, checkpoint: Checkpoint) -> tuple[bool, bool, list[str]]:
    """Return whether image and semantic channels mean the same to both networks, and why not."""
    reasons = []
    mine, theirs = flow.config, checkpoint.experiment
    fingerprint = flow.autoencoder.fingerprint if flow.space.is_latent else None
    is_same_space = fingerprint == checkpoint.autoencoder_fingerprint
    if not is_same_space:
        reasons.append("image channels are of another autoencoder")
    # Latents of grey pictures and of colour pictures have equally many channels, and the same meaning.
    keeps_image = is_same_space
    if not flow.space.is_latent and flow.task.image_channels != checkpoint.task.image_channels:
        keeps_image = False
        reasons.append(f"pictures have {flow.task.image_channels} channels, not {checkpoint.task.image_channels}")
    codes = [(mine.code, flow.task.n_classes), (theirs.code, checkpoint.task.n_classes)]
    keeps_semantic = is_same_space and codes[0] == codes[1]
    if codes[0] != codes[1]:
        now, before = (f"{code.name} of {n} classes" for code, n in codes)
        reasons.append(f"the code is {now}, not {before}")
    return keeps_image, keeps_semantic, reasons


def _image_part(name: str, own: Tensor, other: Tensor, n_image: int) -> Tensor | None:
    """Return a tensor of the first or last convolution with the other's image channels; None where it cannot be."""
    axis = 1 if name == _FIRST else 0
    rest = [size for place, size in enumerate(own.shape) if place != axis]
    if rest != [size for place, size in enumerate(other.shape) if place != axis] or other.shape[axis] < n_image:
        return None
    mixed = own.clone()
    mixed.narrow(axis, 0, n_image).copy_(other.narrow(axis, 0, n_image))
    return mixed
