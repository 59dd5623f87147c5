"""The configuration file of a diffusers `AutoencoderKL`: read, and checked before anything is built from it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msf.files.json_text import parse_json
from msf.plain_values import checked_value, require, shown

FINGERPRINT_FIELD = "_fingerprint"  # diffusers leaves fields that start with an underscore alone
_CLASS_NAME = "AutoencoderKL"
_MOST_CHANNELS = 2**13
_MOST_LEVELS = 8
_MOST_LAYERS = 16
_FACTORS = 1e-4, 1e4  # of latents; beyond, what is decoded leaves the range of float32
_TYPES: Mapping[str, Any] = {
    FINGERPRINT_FIELD: str | None,
    "act_fn": str,
    "block_out_channels": tuple[int, ...],
    "down_block_types": tuple[str, ...],
    "force_upcast": bool,
    "in_channels": int,
    "latent_channels": int,
    "layers_per_block": int,
    "mid_block_add_attention": bool,
    "norm_num_groups": int,
    "out_channels": int,
    "sample_size": int | None,
    "scaling_factor": float,
    "shift_factor": float | None,
    "up_block_types": tuple[str, ...],
    "use_post_quant_conv": bool,
    "use_quant_conv": bool,
}


def read_kl_config(path: Path) -> dict[str, Any]:
    """Return the fields of a configuration file.

    Raises:
        ValueError: No JSON, another class, or values out of range; the text names the file.
        TypeError: A value of another type.
    """
    config = parse_json(path.read_bytes(), repr(str(path)), "a configuration in JSON")
    found = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
    if found != _CLASS_NAME:
        raise ValueError(f"{str(path)!r} must be the configuration of an {_CLASS_NAME}; got {shown(found)}")
    try:
        _check(config)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{str(path)!r} must hold a valid configuration: {error}") from error
    return dict(config)


def _check(config: Mapping[str, Any]) -> None:
    for name, hint in _TYPES.items():
        if name in config:
            value = config[name]
            checked_value(
                name, tuple(value) if typing.get_origin(hint) is tuple and type(value) is list else value, hint
            )
    for name, most in (
        ("in_channels", _MOST_CHANNELS),
        ("latent_channels", _MOST_CHANNELS),
        ("layers_per_block", _MOST_LAYERS),
        ("norm_num_groups", _MOST_CHANNELS),
        ("out_channels", _MOST_CHANNELS),
    ):
        require(1 <= config.get(name, 1) <= most, name, f">= 1 and <= {most}", config.get(name))
    widths = config.get("block_out_channels", [1])
    require(1 <= len(widths) <= _MOST_LEVELS, "block_out_channels", f"of 1 to {_MOST_LEVELS} levels", widths)
    in_range = all(1 <= width <= _MOST_CHANNELS for width in widths)
    require(in_range, "block_out_channels", f">= 1 and <= {_MOST_CHANNELS}", widths)
    for name, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        blocks = config.get(name, [only])
        is_known = 1 <= len(blocks) <= _MOST_LEVELS and all(block == only for block in blocks)
        require(is_known, name, f"{only} for each level", blocks)
    factor, shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    require(_FACTORS[0] <= factor <= _FACTORS[1], "scaling_factor", f"in [{_FACTORS[0]:g}, {_FACTORS[1]:g}]", factor)
    require(abs(shift) <= _FACTORS[1], "shift_factor", f"in [-{_FACTORS[1]:g}, {_FACTORS[1]:g}]", shift)
