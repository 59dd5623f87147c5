"""A good file of every kind, which a reader must take."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from msf.checkpoints.folder import CONFIG_FILE, WEIGHTS_FILE, save_checkpoint
from msf.config import DataConfig, ExperimentConfig, TaskConfig, UNetConfig
from msf.network.unet import UNet
from msf.training.ema import weight_average

NETWORK = UNetConfig(
    base_channels=32, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=32
)
EXPERIMENT = ExperimentConfig(data=DataConfig(image_size=8), network=NETWORK)
TASK = TaskConfig(n_classes=3, image_channels=3, class_names=("a", "b", "c"))
AUTOENCODER_WEIGHTS = "diffusion_pytorch_model.safetensors"
N_STEPS = 40  # of the run whose state is saved
SPLITS = {"train": 12, "val": 4, "test": 6}


def sound_arrays():
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in SPLITS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 3).astype(np.uint8)[:, None]
    return arrays


@functools.cache
def network_tensors(channels=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            name: tensor + 0.01 * torch.randn(tensor.shape)
            for name, tensor in UNet(NETWORK, channels, channels).state_dict().items()
        }


@functools.cache
def checkpoint_files():
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, TASK, EXPERIMENT, network_tensors())
        return {name: (Path(folder) / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}


@functools.cache
def autoencoder_files():
    import diffusers

    from msf.autoencoder import KLAutoencoder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
        )
    with tempfile.TemporaryDirectory() as folder:
        KLAutoencoder(model).save_pretrained(folder)
        return {name: (Path(folder) / name).read_bytes() for name in (CONFIG_FILE, AUTOENCODER_WEIGHTS)}


def run_parts():
    """Return network, average and optimiser of a run that has taken a step."""
    network = UNet(NETWORK, 6, 6)
    average = weight_average(network, 0.9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return network, average, optimizer


@functools.cache
def training_state():
    network, average, optimizer = run_parts()
    position = {
        "step": 7, "epoch_loss": 1.5, "epoch_image_loss": 1.0, "epoch_semantic_loss": 2.0, "best_epoch": 0,
        "best_value": 0.5, "seconds": 3.0,
    }  # fmt: skip
    return {
        "experiment": EXPERIMENT.to_dict(),
        "data_fingerprint": "ab",
        "autoencoder_fingerprint": "cd",
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "position": {**position, "history": [{"epoch": 0, "train_loss": 2.0, "accuracy": 0.5}]},
    }


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def sound(kind, folder):
    """Write a good file of a kind; return its path."""
    if kind == "npz":
        np.savez_compressed(folder / "data.npz", **sound_arrays())
        return folder / "data.npz"
    if kind == "npy":
        np.save(folder / "array.npy", np.arange(60, dtype=np.float32).reshape(3, 4, 5))
        return folder / "array.npy"
    if kind == "checkpoint":
        return write_files(folder, checkpoint_files())
    if kind == "autoencoder":
        return write_files(folder, autoencoder_files())
    if kind == "official":
        torch.save(network_tensors(), folder / "official.pt")
        return folder / "official.pt"
    if kind == "training_state":
        torch.save(training_state(), folder / "training_state.pt")
        return folder / "training_state.pt"
    Image.fromarray(sound_arrays()["train_images"][0]).resize((32, 32)).save(folder / "picture.png")
    return folder / "picture.png"
