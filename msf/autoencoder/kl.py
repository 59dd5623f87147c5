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

from msf.atomic import write_atomically
from msf.autoencoder.protocol import LatentPosterior, require_divisible
from msf.checkpoint import read_safetensors, require_matching_tensors
from msf.hub import find_folder
from msf_kernels.checks import require_tensor
from msf_kernels.shapes import ImageBatch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_FINGERPRINT_FIELD = "_fingerprint"  # diffusers leaves fields that start with an underscore alone
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
        ValueError: A model of other channels, or one with per-channel statistics of its latents, which are not
            supported.
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
        self.model: nn.Module = model.eval().requires_grad_(False)
        self._config: Mapping[str, Any] = config
        self.latent_channels: int = config.latent_channels
        self.down_factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor: float = config.scaling_factor

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
                together.
        """
        autoencoder_class = require_diffusers()
        folder = find_folder(source, [CONFIG_FILE, WEIGHTS_FILE], name="autoencoder", revision=revision)
        _require_files(folder)
        config = _read_config(folder / CONFIG_FILE)
        stored = config.pop(_FINGERPRINT_FIELD, None)
        with torch.device("meta"):
            model = autoencoder_class.from_config(config)
        tensors, _ = read_safetensors(folder / WEIGHTS_FILE)
        tensors = {_current_name(name): tensor.float() for name, tensor in tensors.items()}
        require_matching_tensors(model.state_dict(), tensors, str(folder / WEIGHTS_FILE))
        model.load_state_dict(tensors, assign=True)
        autoencoder = cls(model)
        if stored is not None and stored != autoencoder.fingerprint:
            raise ValueError(
                f"{str(folder / CONFIG_FILE)!r} and {WEIGHTS_FILE} must belong together; got files of two "
                "autoencoders, as an interrupted save leaves"
            )
        return autoencoder

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
        text = json.dumps({**config, _FINGERPRINT_FIELD: self.fingerprint}, indent=2, sort_keys=True) + "\n"
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
                of `down_factor`.

        Returns:
            mean and std, float32 [N, L, h, w], on the device of the images.

        Raises:
            TypeError: Not a floating-point tensor.
            ValueError: Another shape.
        """
        require_tensor("images", images, "[N, C, H, W]")
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 3 channels, or 1 that is repeated; got shape {list(images.shape)}")
        self.latent_shape(*images.shape[2:])
        posterior = self.model.encode(images.expand(-1, 3, -1, -1).to(self._dtype)).latent_dist  # type: ignore[operator]
        mean, std = posterior.mean.float(), posterior.std.float()
        return LatentPosterior((mean - self._shift) * self.scaling_factor, std * self.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> ImageBatch:
        """Return the pictures of scaled latents.

        Args:
            latents: float [N, L, h, w], of any h and w.

        Returns:
            float32 [N, 3, H, W] with H = h * down_factor; about in [-1, 1], not clamped.

        Raises:
            TypeError: Not a floating-point tensor.
            ValueError: Another shape.
        """
        require_tensor("latents", latents, "[N, L, h, w]")
        if latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents must have {self.latent_channels} channels; got shape {list(latents.shape)}")
        unscaled = latents.float() / self.scaling_factor + self._shift
        pictures: Tensor = self.model.decode(unscaled.to(self._dtype)).sample  # type: ignore[operator]
        return pictures.float()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights, change the dtype that they compute in, or both; return the same object."""
        _ = self.fingerprint  # before rounding
        self.model.to(device=device, dtype=dtype)
        return self

    @property
    def _shift(self) -> float:
        return self._config.get("shift_factor") or 0.0

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _float32_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.model.state_dict().items()}


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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:  # JSON or UTF-8
        raise ValueError(f"{str(path)!r} must hold a configuration in JSON; got: {error}") from error
    found = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
    if found != "AutoencoderKL":
        raise ValueError(f"{str(path)!r} must be the configuration of an AutoencoderKL; got {found!r}")
    return dict(config)


def _current_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if ".attentions." in name:
            name = name.replace(old, new)
    return name
