"""Read the authors' checkpoints: a bare U-Net state dict, whose architecture is inferred from names and shapes.

What shapes cannot tell (attention heads, order of queries, keys and values, dropout, code, data) is assumed, or said by
the caller; the report lists it. Pickled files are read with PyTorch's weights-only unpickler and never otherwise.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf.codes.label_codes import make_code
from msf.config import (
    AutoencoderConfig,
    CodeConfig,
    CodeName,
    DataConfig,
    ExperimentConfig,
    InferenceConfig,
    QkvOrder,
    TaskConfig,
    UNetConfig,
)
from msf.files.tensors import read_safetensors, require_matching_tensors, require_sound_weights
from msf.files.torch_file import read_torch_file
from msf.network.unet import UNet
from msf.plain_values import shown

PUBLISHED_HEAD_CHANNELS = 64
PIXEL_SIZE = 32
LATENT_PICTURE_SIZE = 256
LATENT_CHANNELS = 4
PUBLISHED_AUTOENCODER = AutoencoderConfig(name="kl", source="stabilityai/sd-vae-ft-mse")

_FIRST_TENSOR = "input_blocks.0.0.weight"


@dataclass(frozen=True)
class OfficialReport:
    """Where each part of an imported configuration comes from; `str` gives one line per part.

    Args:
        inferred: Read from names and shapes of the tensors; `{what: value}`.
        assumed: Not in the file: said by the caller, or the published value.
        ignored: Names of tensors in the file that belong to no velocity network.
    """

    inferred: Mapping[str, Any]
    assumed: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the report as text."""
        lines = [f"inferred: {what} = {value}" for what, value in self.inferred.items()]
        lines += [f"assumed (not in the file): {what} = {value}" for what, value in self.assumed.items()]
        if self.ignored:
            lines.append(f"ignored: {len(self.ignored)} other tensors, such as {self.ignored[0]}")
        return "\n".join(lines)


def load_official(
    path: str | os.PathLike[str],
    *,
    n_classes: int,
    code: CodeName = "rgb",
    head_channels: int | None = PUBLISHED_HEAD_CHANNELS,
    num_heads: int | None = None,
    qkv_order: QkvOrder = "legacy",
    beta: float = 4.0,
    image_channels: int | None = None,
    image_size: int | None = None,
    autoencoder_source: str | None = None,
    prefix: str | None = None,
) -> tuple[TaskConfig, ExperimentConfig, dict[str, Tensor], OfficialReport]:
    """Read an authors' checkpoint.

    Args:
        path: File of `torch.save` (.pt, .pth, ...) or .safetensors. The state dict may lie inside other dictionaries
            or behind a prefix such as `model.`.
        n_classes: Classes that the model was trained on.
        code: Label code that it was trained with: `rgb` or `grey`.
        head_channels: Channels per attention head.
        num_heads: Attention heads, instead of `head_channels`, which must then be None.
        qkv_order: Packing of queries, keys and values.
        beta: Dequantisation width (rgb) or label scale (grey) in training.
        image_channels: Channels of the pictures, 1 or 3. For pixel models it follows from the file, and is checked;
            for latent ones it is 3 unless given.
        image_size: Working size; 32 for pixel models and 256 for latent ones unless given.
        autoencoder_source: Local folder or hub id of the autoencoder of a latent model; the published one unless
            given.
        prefix: What stands before `input_blocks` in the names; needed only where the file holds several networks.

    Returns:
        Task, experiment, the network's tensors (float32, on the CPU, without prefix) and the report.

    Raises:
        FileNotFoundError: No such file.
        TypeError: Tensors that are sparse, quantised, complex or whole numbers.
        ValueError: No such checkpoint; a pickle that holds more than tensors; weights that are NaN, infinite or
            absurdly large; a layout that no configuration explains; widths that contradict `code`, `image_channels` or
            `autoencoder_source`; `n_classes` that the code does not have; heads that do not divide the channels under
            attention.
    """
    if code not in ("rgb", "grey"):
        raise ValueError(f"code must be rgb or grey, the codes of the authors' checkpoints; got {code!r}")
    if (head_channels is None) == (num_heads is None):
        raise ValueError(
            "exactly one of head_channels and num_heads must be given (head_channels=None with num_heads); got "
            f"head_channels={head_channels!r}, num_heads={num_heads!r}"
        )
    tensors, where = _read_tensors(Path(path)), repr(str(path))
    prefix = _choose_prefix(tensors, prefix, where)
    state_dict = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    inferred, channels = _infer_architecture(state_dict, where)
    assumed: dict[str, Any] = {
        "head_channels": head_channels,
        "n_heads": num_heads,
        "qkv_order": qkv_order,
        "dropout": 0.0,
    }
    network = UNetConfig(**inferred, **assumed)
    with torch.device("meta"):
        expected = UNet(network, channels, channels).state_dict()
    require_matching_tensors(expected, state_dict, where)
    require_sound_weights(state_dict, where)
    # Copies, since what was read may be mapped from a file that goes away.
    state_dict = {name: tensor.to(torch.float32, copy=True) for name, tensor in state_dict.items()}

    code_config = CodeConfig(name=code, beta=beta)
    semantic_channels = make_code(code_config, n_classes).n_channels
    is_latent, picture_channels = _split_channels(channels, code, semantic_channels, where)
    if not is_latent and image_channels not in (None, picture_channels):
        raise ValueError(
            f"image_channels must be {picture_channels} for {channels} channels with code {code!r}; "
            f"got {image_channels}"
        )
    if autoencoder_source is not None and not is_latent:
        raise ValueError(
            f"autoencoder_source must be None for a model on pixels, as {channels} channels with code {code!r} are; "
            f"got {autoencoder_source!r}"
        )
    autoencoder = dataclasses.replace(PUBLISHED_AUTOENCODER, source=autoencoder_source or PUBLISHED_AUTOENCODER.source)
    task = TaskConfig(n_classes=n_classes, image_channels=image_channels or picture_channels)
    experiment = ExperimentConfig(
        data=DataConfig(image_size=image_size or (LATENT_PICTURE_SIZE if is_latent else PIXEL_SIZE)),
        code=code_config,
        network=network,
        autoencoder=autoencoder if is_latent else AutoencoderConfig(),
        inference=InferenceConfig(classify_grid="uniform"),
    )

    inferred |= {"channels": channels, "space": "latent" if is_latent else "pixel"}
    assumed |= {"n_classes": n_classes, "code": code, "beta": beta, "image_size": experiment.data.image_size}
    (assumed if is_latent else inferred)["image_channels"] = task.image_channels
    assumed["autoencoder"] = experiment.autoencoder.source
    ignored = tuple(name for name in tensors if not name.startswith(prefix))
    return task, experiment, state_dict, OfficialReport(inferred, _without_none(assumed), ignored)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"path must be an existing checkpoint file; got {str(path)!r}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return dict(_named_tensors(read_torch_file(path), ""))


def _named_tensors(content: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _named_tensors(value, f"{name}.{key}" if name else str(key))


def _choose_prefix(tensors: Mapping[str, Tensor], wanted: str | None, where: str) -> str:
    found = [name.removesuffix(_FIRST_TENSOR) for name in tensors if name.endswith(_FIRST_TENSOR)]
    if not found:
        raise ValueError(f"{where} must hold a U-Net of the ADM layout; it has no tensor {_FIRST_TENSOR}")
    if wanted is None and len(found) > 1:
        raise ValueError(f"prefix must be given, since {where} holds several networks; one of {shown(found)}")
    if wanted is None:
        return found[0]
    if wanted not in found:
        raise ValueError(f"prefix must be one of {shown(found)} in {where}; got {wanted!r}")
    return wanted


def _infer_architecture(state_dict: Mapping[str, Tensor], where: str) -> tuple[dict[str, Any], int]:
    """Return the fields of `UNetConfig` that shapes tell, and the channels; other tensors are checked afterwards."""

    def size(name: str, axis: int = 0) -> int:
        if name not in state_dict or state_dict[name].ndim <= axis:
            raise ValueError(
                f"{where} must hold a U-Net of the ADM layout; its tensor {name} is missing or has no axis"
            )
        return state_dict[name].shape[axis]

    base = size("time_embed.0.weight", axis=1)
    n_stages = len({name.split(".")[1] for name in state_dict if name.startswith("output_blocks.")})
    # The last stage of every level but the finest doubles the resolution, by a convolution or by a residual block
    # that is not the stage's first layer.
    n_conv_ups = sum(name.startswith("output_blocks.") and name.endswith(".conv.weight") for name in state_dict)
    n_residual_ups = sum(
        name.startswith("output_blocks.") and name.endswith(".in_layers.0.weight") and name.split(".")[2] != "0"
        for name in state_dict
    )
    n_levels = n_conv_ups + n_residual_ups + 1
    stages_per_level = n_stages // n_levels
    if n_stages != stages_per_level * n_levels or stages_per_level < 2 or (n_conv_ups and n_residual_ups):
        raise ValueError(
            f"{where} must hold a U-Net of the ADM layout; {n_stages} output stages with {n_conv_ups} convolutional "
            f"and {n_residual_ups} residual up-samplings are none"
        )
    first_stages = [f"input_blocks.{1 + level * stages_per_level}" for level in range(n_levels)]
    widths = [size(f"{stage}.0.out_layers.3.weight") for stage in first_stages]
    if any(width % base for width in widths):
        raise ValueError(f"{where} must have level widths that are multiples of the base {base}; got {widths}")
    fields = {
        "base_channels": base,
        "channel_multipliers": tuple(width // base for width in widths),
        "n_res_blocks": stages_per_level - 1,
        "attention_down_rates": tuple(
            2**level for level, stage in enumerate(first_stages) if f"{stage}.1.qkv.weight" in state_dict
        ),
        "use_scale_shift_norm": size(f"{first_stages[0]}.0.emb_layers.1.weight") == 2 * widths[0],
        "use_residual_updown": n_residual_ups > 0,
    }
    return fields, size(_FIRST_TENSOR, axis=1)


def _split_channels(channels: int, code: CodeName, semantic_channels: int, where: str) -> tuple[bool, int]:
    """Return whether the model is latent, and the channels of its pictures."""
    layouts = {semantic_channels + 1: (False, 1), semantic_channels + 3: (False, 3)}
    if code == "rgb":  # a grey map has no latents
        layouts[2 * LATENT_CHANNELS] = (True, 3)
    if channels not in layouts:
        described = ", ".join(
            f"{count} ({'latents' if is_latent else f'pictures of {picture_channels}'})"
            for count, (is_latent, picture_channels) in layouts.items()
        )
        raise ValueError(
            f"{where} must have one of these channel counts for code {code!r}: {described}; got {channels}"
        )
    return layouts[channels]


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
