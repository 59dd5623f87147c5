"""The latent space of a diffusers `AutoencoderKL`, loaded from safetensors only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from msf.autoencoder.batches import fixed_batches
from msf.autoencoder.folded import fold_convolutions
from msf.autoencoder.fused import fuse_blocks
from msf.autoencoder.kl_config import FINGERPRINT_FIELD, read_kl_config
from msf.autoencoder.protocol import LatentPosterior, require_divisible
from msf.autoencoder.tiles import decode_in_tiles
from msf.files.atomic import write_atomically
from msf.files.damage import DAMAGE, first_line
from msf.files.hub import find_folder
from msf.files.tensors import read_safetensors, require_matching_tensors, require_sound_weights, require_stages
from msf_kernels.checks import require_int, require_positive, require_tensor
from msf_kernels.shapes import ImageBatch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DEFAULT_MEMORY_BYTES = 2**30
MIN_TILE = 8  # latents along a tile's side; smaller ones see too little of their neighbourhood
# Feature maps of the widest layer that are alive at once, the convolution's own buffers included: measured 3.4 to 5.
_LIVE_MAPS = 5
# What the shapes of the weights do not tell. Only these, so that a field that a new diffusers adds changes no digest.
_FINGERPRINTED = ("act_fn", "norm_num_groups", "down_block_types", "up_block_types", "scaling_factor", "shift_factor")
# How files from before diffusers 0.12, such as sd-vae-ft-mse, name the layers of the attention.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class KLAutoencoder:
    """Latents of a convolutional variational autoencoder, times its scaling factor.

    The model is put into evaluation mode and its weights take no gradients from here on.

    Args:
        model: A diffusers `AutoencoderKL` with three input and output channels.

    Raises:
        TypeError: A scaling factor that is no number.
        ValueError: A model of other channels, a scaling factor that is not finite and positive, or per-channel
            statistics of the latents, which are not supported.
    """

    def __init__(self, model: Any) -> None:
        """Check the model's configuration and take the model over."""
        config = model.config
        if config.in_channels != 3 or config.out_channels != 3:
            raise ValueError(
                f"autoencoder must take and give 3 channels; got {config.in_channels} and {config.out_channels}"
            )
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise ValueError("autoencoder must scale its latents by one factor; got latents_mean or latents_std")
        require_positive("scaling_factor", config.scaling_factor)
        # Channels-last is the layout that convolutions are fastest in, on the CPU and on tensor cores.
        self.model: nn.Module = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._config: Mapping[str, Any] = config
        self.latent_channels: int = config.latent_channels
        self.down_factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor: float = config.scaling_factor
        self.hub_id: str | None = None
        """Repository of the hub that it came from; None: from files here, or from code."""

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Read an autoencoder in diffusers' layout: `config.json` and `diffusion_pytorch_model.safetensors`.

        Args:
            source: Local folder, or hub id such as `stabilityai/sd-vae-ft-mse`.
            revision: Branch, tag or commit of a hub repository.

        Raises:
            FileNotFoundError: No such folder or repository, or a file is missing. Weights in a pickle (`.bin`) are
                refused: loading one can run code.
            ValueError: diffusers is not installed; or the files are corrupt, of another class, or do not belong
                together; or weights that are NaN, infinite or absurdly large.
            TypeError: A configuration value of the wrong type, or weights that are not floating point.
        """
        autoencoder_class = require_diffusers()
        folder = find_folder(source, [CONFIG_FILE, WEIGHTS_FILE], name="autoencoder", revision=revision)
        _require_files(folder)
        config = read_kl_config(folder / CONFIG_FILE)
        stored = config.pop(FINGERPRINT_FIELD, None)
        weights = repr(str(folder / WEIGHTS_FILE))
        tensors, _ = read_safetensors(folder / WEIGHTS_FILE)
        tensors = {_current_name(name): tensor for name, tensor in tensors.items()}
        model = _build(autoencoder_class, config, tensors, folder)
        require_matching_tensors(model.state_dict(), tensors, weights)
        require_sound_weights(tensors, weights)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        autoencoder = cls(model)
        if stored is not None and stored != autoencoder.fingerprint:
            raise ValueError(
                f"{str(folder / CONFIG_FILE)!r} and {WEIGHTS_FILE} must belong together; got files of two "
                "autoencoders, as an interrupted save leaves"
            )
        autoencoder.hub_id = None if Path(source).is_dir() else os.fspath(source)
        return autoencoder.fold()

    def fold(self) -> Self:
        """Put the layers into the form that runs fastest, and return the same object.

        Convolutions lay their weights out at the first picture (`prepared_convolution`; on a CPU in float32 by
        Winograd's forms, which take four times the memory of the weights, and eleven times in the decoder's upsampling,
        which is done on the small map); norms are fused with their activations, sums with the last convolution.
        Results are the same up to rounding; the state dict and the fingerprint do not change. Folding again changes
        nothing. `from_pretrained` has done it.
        """
        fuse_blocks(self.model)
        fold_convolutions(self.model)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the two files that `from_pretrained`, here and in diffusers, reads.

        A kill leaves the old files, the new ones, or a pair that `from_pretrained` recognises as mixed and refuses.

        Args:
            folder: Created if missing, with its parents.

        Raises:
            OSError: The disk is full or not writable.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads(self.model.to_json_string())  # type: ignore[operator]
        text = json.dumps({**config, FINGERPRINT_FIELD: self.fingerprint}, indent=2, sort_keys=True) + "\n"
        weights = safetensors.torch.save(self._float32_weights(), metadata={"format": "pt"})
        write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
        write_atomically(folder / WEIGHTS_FILE, lambda path: path.write_bytes(weights))

    def __repr__(self) -> str:
        """Return the figures that matter to a caller."""
        return (
            f"KLAutoencoder(latent_channels={self.latent_channels}, down_factor={self.down_factor}, "
            f"scaling_factor={self.scaling_factor:.5g}, fingerprint={self.fingerprint[:12]}...)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of architecture, float32 weights, scaling and shift."""
        fields = {name: self._config.get(name) for name in _FINGERPRINTED}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        for name, tensor in sorted(self._float32_weights().items()):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (L, height / down_factor, width / down_factor).

        Raises:
            ValueError: A height or width that is no multiple of the factor.
        """
        require_divisible(height, width, self.down_factor)
        return self.latent_channels, height // self.down_factor, width // self.down_factor

    @torch.no_grad()
    def encode(self, images: ImageBatch) -> LatentPosterior:
        """Return the posterior of pictures, scaled.

        Args:
            images: float [N, 3, H, W] or [N, 1, H, W] in [-1, 1]; one grey channel is repeated. H and W are multiples
                of `down_factor`. Many are encoded in parts that need about 1 GiB.

        Returns:
            mean and std, float32 [N, L, h, w], on the device of the images.

        Raises:
            TypeError: Not a floating-point tensor.
            ValueError: Another shape.
        """
        require_tensor("images", images, "[N, C, H, W]")
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 3 channels, or 1 that is repeated; got shape {list(images.shape)}")
        _, height, width = self.latent_shape(*images.shape[2:])
        if not len(images):  # which attention refuses
            none = images.new_empty(0, self.latent_channels, height, width, dtype=torch.float32)
            return LatentPosterior(none, none.clone())
        n_per_part = max(1, DEFAULT_MEMORY_BYTES // self.decode_bytes(height, width))
        means, stds = [], []
        for part, n_rows in fixed_batches(images, min(n_per_part, len(images))):
            posterior = self.model.encode(self._as_input(part.expand(-1, 3, -1, -1))).latent_dist  # type: ignore[operator]
            means.append((posterior.mean.float() - self._shift)[:n_rows] * self.scaling_factor)
            stds.append(posterior.std.float()[:n_rows] * self.scaling_factor)
        return LatentPosterior(torch.cat(means).contiguous(), torch.cat(stds).contiguous())

    @torch.no_grad()
    def decode(self, latents: Tensor, *, memory_bytes: int | None = None) -> ImageBatch:
        """Return the pictures of scaled latents.

        Many pictures are decoded in parts. A picture that does not fit `memory_bytes` on its own is decoded in
        overlapping tiles, which is close to decoding it whole, not equal: norms and attention then see a tile.

        Args:
            latents: float [N, L, h, w], of any h and w >= 1.
            memory_bytes: What the feature maps of a part may need, estimated; default: 1 GiB, and never tiles.

        Returns:
            float32 [N, 3, H, W] with H = h * down_factor; about in [-1, 1], not clamped.

        Raises:
            TypeError: Not a floating-point tensor, or a limit that is no integer.
            ValueError: Another shape, or a limit that the smallest tile does not fit.
        """
        require_tensor("latents", latents, "[N, L, h, w]")
        if latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents must have {self.latent_channels} channels; got shape {list(latents.shape)}")
        height, width = latents.shape[2:]
        if not len(latents):
            return latents.new_empty(0, 3, height * self.down_factor, width * self.down_factor, dtype=torch.float32)
        limit = DEFAULT_MEMORY_BYTES if memory_bytes is None else memory_bytes
        require_int("memory_bytes", limit, 1)
        n_per_part = limit // self.decode_bytes(height, width)
        if n_per_part or memory_bytes is None:
            batch_size = min(max(1, n_per_part), len(latents))
            parts = [self._decode(part)[:n_rows] for part, n_rows in fixed_batches(latents, batch_size)]
        else:
            tile = self._largest_tile(limit, height, width)
            parts = [
                decode_in_tiles(self._decode, latents[k : k + 1], tile, self.down_factor) for k in range(len(latents))
            ]
        return torch.cat(parts).contiguous()

    def decode_bytes(self, height: int, width: int) -> int:
        """Estimate the bytes that the feature maps need while one picture is decoded; encoding it needs no more.

        Args:
            height: Of the latents.
            width: Of the latents.
        """
        channels = self._config["block_out_channels"]
        # A level of the decoder starts with the channels of the coarser one, already at its own resolution.
        widest = max(max(channels[k : k + 2]) / 4**k for k in range(len(channels)))
        values = _LIVE_MAPS * widest * height * width * self.down_factor**2
        if self._config["mid_block_add_attention"]:
            values += (height * width) ** 2
        return int(values * self._dtype.itemsize)

    def _decode(self, latents: Tensor) -> Tensor:
        unscaled = latents.float() / self.scaling_factor + self._shift
        pictures: Tensor = self.model.decode(self._as_input(unscaled)).sample  # type: ignore[operator]
        return pictures.float()

    def _largest_tile(self, memory_bytes: int, height: int, width: int) -> int:
        """Return the side of the largest tile that fits the memory."""
        for side in range(max(height, width) - 1, MIN_TILE - 1, -1):
            if self.decode_bytes(min(side, height), min(side, width)) <= memory_bytes:
                return side
        smallest = self.decode_bytes(min(MIN_TILE, height), min(MIN_TILE, width))
        raise ValueError(f"memory_bytes must be at least {smallest}, for a tile of the decoder; got {memory_bytes}")

    def _as_input(self, values: Tensor) -> Tensor:
        return values.to(self._dtype).contiguous(memory_format=torch.channels_last)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights, change the dtype that they compute in, or both; return the same object."""
        _ = self.fingerprint  # before rounding
        nn.Module.to(self.model, device=device, dtype=dtype)  # diffusers' own warns about layers that these have not
        return self

    @property
    def _shift(self) -> float:
        return self._config.get("shift_factor") or 0.0

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _float32_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.model.state_dict().items()}


def saved_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the autoencoder in a folder; None where there is none, or half of one."""
    if not all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        return None
    stored: str | None = read_kl_config(folder / CONFIG_FILE).get(FINGERPRINT_FIELD)
    return KLAutoencoder.from_pretrained(folder).fingerprint if stored is None else stored


def require_diffusers() -> Any:
    """Return diffusers' class `AutoencoderKL`.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError("autoencoder 'kl' needs the package diffusers: pip install 'medsymmflow[latent]'") from error
    return AutoencoderKL


def _require_files(folder: Path) -> None:
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if not missing:
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if WEIGHTS_FILE in missing and pickles:
        raise FileNotFoundError(
            f"weights of an autoencoder must be in safetensors; got only {', '.join(pickles)} in {str(folder)!r}, "
            "a pickle, which is refused since loading one can run code"
        )
    raise FileNotFoundError(f"{str(folder)!r} is no autoencoder: {' and '.join(missing)} missing")


def _build(autoencoder_class: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> Any:
    """Return the model of a configuration, without weights, if the tensors can be its."""
    n_levels = len(config.get("block_out_channels", (1,)))
    n_layers = config.get("layers_per_block", 1)
    layers = {f"encoder.down_blocks.{level}.resnets": n_layers for level in range(n_levels)}
    require_stages({"encoder.down_blocks": n_levels, **layers}, tensors, repr(str(folder / WEIGHTS_FILE)))
    try:
        with torch.device("meta"):
            return autoencoder_class.from_config(config)
    except DAMAGE as error:
        raise ValueError(
            f"{str(folder / CONFIG_FILE)!r} must hold the configuration of a model that diffusers can build; got: "
            f"{first_line(error)}"
        ) from error


def _current_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if ".attentions." in name:
            name = name.replace(old, new)
    return name
