"""Autoencoders that no reader must take."""

import json

import safetensors.torch
import torch

from msf.checkpoints.folder import CONFIG_FILE
from tests.msf.bad_files.case import NESTED, add
from tests.msf.bad_files.sound import AUTOENCODER_WEIGHTS, sound


def autoencoder_field(name, value):
    def make(folder):
        path = sound("autoencoder", folder)
        content = json.loads((path / CONFIG_FILE).read_text())
        (path / CONFIG_FILE).write_text(json.dumps({**content, name: value}))
        return path

    return make


def autoencoder_config(text):
    def make(folder):
        path = sound("autoencoder", folder)
        (path / CONFIG_FILE).write_text(text)
        return path

    return make


def autoencoder_weights(change):
    def make(folder):
        path = sound("autoencoder", folder) / AUTOENCODER_WEIGHTS
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def _autoencoder_nan(folder):
    path = sound("autoencoder", folder)
    tensors = safetensors.torch.load_file(path / AUTOENCODER_WEIGHTS)
    tensors["decoder.conv_in.bias"][0] = torch.nan
    safetensors.torch.save_file(tensors, path / AUTOENCODER_WEIGHTS)
    return path


for field, value, wanted in [
    ("_class_name", "VQModel", "configuration of an AutoencoderKL; got 'VQModel'"),
    ("_class_name", ["AutoencoderKL"], "configuration of an AutoencoderKL"),
    ("_fingerprint", 3, "_fingerprint must be a str"),
    ("block_out_channels", [10**9, 4], "block_out_channels must be >= 1 and <= 8192"),
    ("block_out_channels", [4] * 100, "block_out_channels must be of 1 to 8 levels"),
    ("block_out_channels", "44", "block_out_channels must be a list"),
    ("block_out_channels", [], "block_out_channels must be of 1 to 8 levels"),
    ("block_out_channels", [3, 3], "config.json' must hold the configuration of a model that diffusers can build"),
    ("layers_per_block", 10**6, "layers_per_block must be >= 1 and <= 16"),
    ("layers_per_block", 2.5, "layers_per_block must be a whole number"),
    ("layers_per_block", 16, "missing"),
    ("norm_num_groups", 0, "norm_num_groups must be >= 1"),
    ("norm_num_groups", None, "norm_num_groups must be a number"),
    ("latent_channels", 2**62, "latent_channels must be >= 1 and <= 8192"),
    ("in_channels", 1, "of another shape|must take and give 3 channels"),
    ("down_block_types", ["os.system", "os.system"], "down_block_types must be DownEncoderBlock2D"),
    ("up_block_types", [3, 4], "up_block_types must be a str"),
    ("act_fn", 3, "act_fn must be a str"),
    ("act_fn", "morse", "model that diffusers can build"),
    ("scaling_factor", "a", "scaling_factor must be a number"),
    ("scaling_factor", -1.0, "scaling_factor must be in"),
    ("scaling_factor", 1e300, "scaling_factor must be in"),
    ("shift_factor", [0.0], "shift_factor must be a number"),
    ("use_quant_conv", 1, "use_quant_conv must be a bool"),
]:
    add("autoencoder", f"{field} = {str(value)[:30]}", wanted, autoencoder_field(field, value))
add("autoencoder", "200,000 brackets", "nested deeper", autoencoder_config(NESTED))
add("autoencoder", "a list", "configuration of an AutoencoderKL; got 'list'", autoencoder_config("[]"))
add("autoencoder", "weights without their end", "intact safetensors", autoencoder_weights(lambda data: data[:-5]))
add(
    "autoencoder",
    "a flipped bit in the weights",
    "must belong together",
    autoencoder_weights(lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]),
)
add("autoencoder", "a weight that is NaN", "finite weights .*got decoder.conv_in.bias", _autoencoder_nan)
