"""Bad files of every kind that is read, made at run time; tests of the readers and of the commands share them.

`BAD_FILES` is the list, `sound(kind, folder)` writes a good file of a kind, which a reader must take.
"""

import functools
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
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
NESTED = "[" * 200_000
SPLITS = {"train": 12, "val": 4, "test": 6}


@dataclass(frozen=True)
class BadFile:
    """A file, or a folder of files, that a reader must refuse.

    Args:
        name: What is wrong, unique with the kind.
        kind: Which reader it is for: npz (a data set), npy, checkpoint (a folder), autoencoder (a folder), official (a
            checkpoint of the authors' code), training_state, picture.
        make: Writes it into an empty folder; returns the path that a user would name.
        wanted: Regular expression that the message must match.
    """

    name: str
    kind: str
    make: Callable[[Path], Path]
    wanted: str

    def __str__(self):
        return f"{self.kind}: {self.name}"


# Sound files


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
    import tempfile

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
    import tempfile

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
    position = {"step": 7, "epoch_loss": 1.5, "best_epoch": 0, "best_value": 0.5, "seconds": 3.0}
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


BAD_FILES: list[BadFile] = []


def add(kind, name, wanted, make):
    BAD_FILES.append(BadFile(name, kind, make, wanted))


# Archives


def npy_bytes(descr="|u1", shape=(12, 8, 8, 3), order=False, data=None, header=None, version=1):
    text = header or f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape!r}, }}"
    content = text.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(content))
    return b"\x93NUMPY" + bytes([version, 0]) + length + content + (b"\0" * 2304 if data is None else data)


def npz_with(**members):
    """Make an archive in which members are replaced, by raw bytes or by arrays; None leaves one out."""

    def make(folder):
        arrays = sound_arrays() | members
        with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                if isinstance(values, np.ndarray):
                    buffer = io.BytesIO()
                    np.save(buffer, values)
                    values = buffer.getvalue()
                if values is not None:
                    archive.writestr(f"{name}.npy", values)
        return folder / "data.npz"

    return make


def npz_changed(change):
    def make(folder):
        path = sound("npz", folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def zip_bomb(folder):
    """Write 10 GB of zeros as some 40 KB: blocks of deflate that repeat."""
    header = npy_bytes(shape=(3_300_000, 32, 32, 3), data=b"")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    n_zeros = 3_300_000 * 32 * 32 * 3
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = block.compress(bytes(2**24)) + block.flush(zlib.Z_FULL_FLUSH)
    start = squeeze.compress(header) + squeeze.flush(zlib.Z_FULL_FLUSH)
    data = start + zeros * (n_zeros // 2**24 + 1)
    name = b"train_images.npy"
    sizes = struct.pack("<III", 0, len(data), 0xFFFFFFFF)
    wide = struct.pack("<HHQ", 1, 8, len(header) + n_zeros)
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 45, 0, 8, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name
    central = b"PK\x01\x02" + struct.pack("<HHHHHH", 45, 45, 0, 8, 0, 0) + sizes
    central += struct.pack("<HHHHHII", len(name), len(wide), 0, 0, 0, 0, 0) + name + wide
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    (folder / "data.npz").write_bytes(local + data + central + end)
    return folder / "data.npz"


def labels(values):
    return np.asarray(values)[:, None]


def strange_labels(value, dtype):
    values = np.arange(12, dtype=dtype) % 3
    values[5] = value
    return values


UNREADABLE = "data.npz cannot be read as an .npz archive"
for title, replaced, text in [
    ("a header that claims 10^9 pictures", npy_bytes(shape=(10**9, 28, 28, 3)), f"{UNREADABLE}.*needs 23520000000"),
    ("a header of 2^40 entries", npy_bytes(shape=(2**40,)), f"{UNREADABLE}.*needs 1099511627776 bytes"),
    ("a header of 10^25 entries", npy_bytes(shape=(10**25,)), f"{UNREADABLE}.*describes no plain array"),
    ("a header of 10^18 x 10^18 entries", npy_bytes(shape=(10**18, 10**18)), f"{UNREADABLE}.*needs 10000000000"),
    ("a negative size", npy_bytes(shape=(-1, 8, 8, 3)), f"{UNREADABLE}.*describes no plain array"),
    ("a size that is no whole number", npy_bytes(shape=(1.5, 8)), f"{UNREADABLE}.*describes no plain array"),
    ("33 axes", npy_bytes(shape=(1,) * 33), f"{UNREADABLE}.*describes no plain array"),
    ("objects", np.array([{}] * 12, dtype=object), f"{UNREADABLE}.*describes no plain array of numbers"),
    ("a structured dtype", np.zeros(12, dtype=[("a", "u1"), ("b", "f4")]), f"{UNREADABLE}.*describes no plain array"),
    ("text", np.array(["a"] * 12), f"{UNREADABLE}.*describes no plain array"),
    ("dates", np.zeros(12, "datetime64[s]"), f"{UNREADABLE}.*describes no plain array"),
    ("complex numbers", np.zeros((12, 8, 8, 3), np.complex64), f"{UNREADABLE}.*describes no plain array"),
    ("a header that is no dictionary", npy_bytes(header="[1, 2]"), f"{UNREADABLE}.*describes no plain array"),
    ("a header of code", npy_bytes(header="__import__('os').abort()"), f"{UNREADABLE}.*describes no plain array"),
    ("a header of brackets", npy_bytes(header="{" + "(" * 9000 + "}"), f"{UNREADABLE}.*describes no plain array"),
    ("a header that is too long", npy_bytes(header="{" + " " * 60000 + "}"), f"{UNREADABLE}.*claims 60003 bytes"),
    (
        "a header with a field too many",
        npy_bytes(header="{'descr': '|u1', 'a': True}"),
        f"{UNREADABLE}.*no plain array",
    ),
    ("a header that is cut off", npy_bytes()[:20], f"{UNREADABLE}.*describes no plain array"),
    ("another version of the format", npy_bytes(version=9), f"{UNREADABLE}.*no array in NumPy's format"),
    ("more bytes than the header claims", npy_bytes(data=bytes(5000)), f"{UNREADABLE}.*needs 2304 bytes"),
    ("fewer bytes than the header claims", npy_bytes(data=bytes(100)), f"{UNREADABLE}.*needs 2304 bytes; .* has 100"),
    ("pictures of 16-bit numbers", np.zeros((12, 8, 8, 3), np.uint16), "train_images .*must be uint8.*got uint16"),
    ("pictures of big-endian numbers", np.zeros((12, 8, 8, 3), ">u2"), "train_images .*must be uint8"),
    ("pictures of bools", np.zeros((12, 8, 8, 3), bool), "train_images .*must be uint8.*got bool"),
    ("pictures that are NaN", np.full((12, 8, 8, 3), np.nan), "train_images .*must be finite; got NaN"),
    ("no pictures", np.zeros((0, 8, 8, 3), np.uint8), "train_images .*at least one picture"),
    ("pictures of no pixels", np.zeros((12, 0, 0, 3), np.uint8), "train_images .*must be|one picture shape"),
    ("pictures of two channels", np.zeros((12, 8, 8, 2), np.uint8), r"train_images .*must be \[N, H, W\]"),
    ("a number instead of pictures", np.array(3, np.uint8), r"train_images .*must be \[N, H, W\]"),
]:
    add("npz", title, text, npz_with(train_images=replaced))
for title, replaced, text in [
    ("labels of 2^29", labels(strange_labels(2**29, np.int64)), r"train_labels .*in \[0, 12\).*536870912"),
    ("labels of 2^61", labels(strange_labels(2**61, np.int64)), r"train_labels .*in \[0, 12\).*2305843009213693952"),
    ("labels of 2^64 - 1", labels(strange_labels(2**64 - 1, np.uint64)), "train_labels .*must fit 64 bits"),
    ("negative labels", labels(strange_labels(-2, np.int32)), "train_labels .*got values from -2"),
    ("labels of floats", labels(strange_labels(1, np.float64)), "train_labels .*whole numbers; got float64"),
    ("labels that are not whole", labels(strange_labels(1.5, np.float32)), "train_labels .*whole numbers; got float32"),
    ("labels that are NaN", labels(strange_labels(np.nan, np.float32)), "train_labels .*whole numbers; got float32"),
    ("labels of bools", labels(np.arange(12) % 2 == 0), "train_labels .*whole numbers; got bool"),
    ("several labels per picture", np.zeros((12, 14), np.uint8), "train_labels .*one class per picture"),
    ("labels of three axes", np.zeros((12, 1, 1), np.uint8), "train_labels .*one class per picture"),
    ("a label for all", np.zeros((), np.uint8), "train_labels .*one class per picture"),
    ("too few labels", np.zeros((5, 1), np.uint8), "train_labels .*equally many; got 12 and 5"),
    ("a class without pictures", labels(np.where(np.arange(12) % 3 == 1, 2, np.arange(12) % 3)), r"without.*\[1\]"),
    ("one class", np.zeros((12, 1), np.uint8), r"_labels .*must"),
]:
    add("npz", title, text, npz_with(train_labels=replaced))
add("npz", "an array that is missing", "lacks val_labels", npz_with(val_labels=None))
add("npz", "10 GB of zeros in a small file", f"{UNREADABLE}.*its arrays need 10137600000 bytes, more than", zip_bomb)
add("npz", "nothing", UNREADABLE, npz_changed(lambda data: b""))
add("npz", "text instead of an archive", UNREADABLE, npz_changed(lambda data: b"hello"))
add("npz", "a first half", UNREADABLE, npz_changed(lambda data: data[: len(data) // 2]))
add("npz", "a second half", UNREADABLE, npz_changed(lambda data: data[len(data) // 2 :]))
add("npz", "a flipped bit", UNREADABLE, npz_changed(lambda data: data[:400] + bytes([data[400] ^ 4]) + data[401:]))


def _encrypted(data):
    flags = data.index(b"PK\x01\x02") + 8
    return data[:flags] + b"\1" + data[flags + 1 :]


def _twice(folder):
    path = sound("npz", folder)
    with zipfile.ZipFile(path, "a") as archive, archive.open("train_images", "w") as file:
        file.write(npy_bytes())
    return path


def _other_compression(folder):
    path = sound("npz", folder)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


add("npz", "encrypted arrays", f"{UNREADABLE}.*encrypted", npz_changed(_encrypted))
add("npz", "two arrays of one name", f"{UNREADABLE}.*several arrays of one name", _twice)
add("npz", "arrays that are compressed otherwise", f"{UNREADABLE}.*compressed in another way", _other_compression)


def npy_with(content):
    def make(folder):
        (folder / "array.npy").write_bytes(content)
        return folder / "array.npy"

    return make


for title, content, text in [
    ("nothing", b"", "no array in NumPy's format"),
    ("text", b"hello, world", "no array in NumPy's format"),
    ("2^40 entries", npy_bytes("<f4", (2**40,)), "needs 4398046511104 bytes; the file has 2304"),
    ("10^25 entries", npy_bytes("<f4", (10**25,)), "describes no plain array"),
    ("no entries", npy_bytes("<f4", (0, 2), data=b""), "empty"),
    ("Fortran's order", npy_bytes("<f4", (24, 24), order=True), "Fortran's order"),
    ("objects", npy_bytes("|O", (576,)), "describes no plain array"),
    ("a dtype of 2^40 bytes", npy_bytes("<f1099511627776", (1,)), "describes no plain array"),
]:
    add("npy", title, text, npy_with(content))


# Checkpoints: two files, each of which can be bad


def edited(content, path, value):
    """Return nested values with one replaced, by its path such as `experiment.network.base_channels`."""
    content = json.loads(json.dumps(content))
    *parents, last = path.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return content


def config_with(text):
    def make(folder):
        path = sound("checkpoint", folder)
        (path / CONFIG_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def config_field(path, value):
    def make(folder):
        content = edited(json.loads(checkpoint_files()[CONFIG_FILE]), path, value)
        return config_with(json.dumps(content))(folder)

    return make


def weights_changed(change):
    def make(folder):
        path = sound("checkpoint", folder) / WEIGHTS_FILE
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def weights_of(change, *, keep_config=True):
    """Make a checkpoint whose tensors are changed; without `keep_config` it has no digests, as an older one."""

    def make(folder):
        tensors = {name: tensor.clone() for name, tensor in network_tensors().items()}
        change(tensors)
        content = json.loads(checkpoint_files()[CONFIG_FILE])
        metadata = {"config": checkpoint_files()[CONFIG_FILE].decode()} if keep_config else None
        if not keep_config:
            del content["tensors_sha256"], content["digest"]
        (folder / CONFIG_FILE).write_text(json.dumps(content))
        safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, metadata=metadata)
        return folder

    return make


def header_of(text, rest=b""):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + rest


def set_value(name, value):
    def change(tensors):
        tensors[name].view(-1)[-1] = value

    return change


def convert(name, dtype):
    def change(tensors):
        tensors[name] = tensors[name].to(dtype)

    return change


FIRST = "input_blocks.0.0.weight"
CONFIG = f"{CONFIG_FILE}' must"
for title, text, wanted in [
    ("nothing", "", f"{CONFIG} hold a configuration in JSON"),
    ("text", "hello", f"{CONFIG} hold a configuration in JSON"),
    ("a list", "[1]", "is not the configuration of a checkpoint"),
    ("200,000 brackets", NESTED, f"{CONFIG} hold .*nested deeper than"),
    ("200,000 braces", '{"a":' * 200_000, f"{CONFIG} hold .*nested deeper than"),
    ("100 brackets", '{"format": 1, "task": ' + "[" * 100 + "]" * 100 + ', "experiment": {}}', "nested deeper than 64"),
    ("a number of 5,000 digits", f'{{"format": {"9" * 5000}}}', f"{CONFIG} hold .*a whole number of 5000 digits"),
    ("NaN", '{"format": NaN}', f"{CONFIG} hold .*the number NaN, which is not finite"),
    ("a number that overflows", '{"format": 1e999}', f"{CONFIG} hold .*the number 1e999"),
    ("half a surrogate pair", '{"format": "\\ud800"}', f"{CONFIG} hold .*surrogates"),
    ("bytes that are no text", b"\xff\xfe\xfd", f"{CONFIG} hold a configuration in JSON"),
    ("more than is read", '{"a": "' + "x" * 2**24 + '"}', f"{CONFIG} hold .*bytes"),
    ("no experiment", '{"format": 1, "task": {}}', "must have the fields task and experiment"),
]:
    add("checkpoint", f"a configuration of {title}", wanted, config_with(text))
for field, value, wanted in [
    ("format", 2, "must have format 1; got 2"),
    ("format", "1" * 9999, "must have format 1; got '1111"),
    ("task", None, "must be a mapping of fields; got NoneType"),
    ("task", {"n_classes": 3}, "must have the fields image_channels"),
    ("task.n_classes", 10**30, "n_classes must be below 2"),
    ("task.n_classes", 3.0, "n_classes must be a whole number; got 3.0"),
    ("task.n_classes", True, "n_classes must be a number; got True"),
    ("task.class_names", "abc", "class_names must be a list; got 'abc'"),
    ("task.class_names", [1, 2, 3], "class_names must be a str; got 1"),
    ("task.class_names", ["a"] * 10**5, "class_names must be a list of at most"),
    ("task.is_ordinal", "no", "is_ordinal must be a bool; got 'no'"),
    ("task.original_size", 10**9, "original_size must be <= 16384"),
    ("experiment", [], "must be a mapping of fields; got list"),
    ("experiment.network", None, "must be a mapping of fields; got NoneType"),
    ("experiment.network.depth", 3, "made of .*base_channels.*got"),
    ("experiment.network.base_channels", 10**9 * 32, "must be at most 16384"),
    ("experiment.network.base_channels", 64, "of another shape"),
    ("experiment.network.base_channels", "32", "base_channels must be a number; got '32'"),
    ("experiment.network.base_channels", -32, "base_channels must be a positive multiple"),
    ("experiment.network.n_groups", 0, "n_groups must be >= 1"),
    ("experiment.network.n_res_blocks", 10**6, "n_res_blocks must be <= 64"),
    ("experiment.network.n_res_blocks", 64, "has 65 stages input_blocks, the tensors 2"),
    ("experiment.network.channel_multipliers", [1] * 10**5, "must be a list of at most"),
    ("experiment.network.channel_multipliers", [1] * 100, "channel_multipliers must be at most 12"),
    ("experiment.network.channel_multipliers", [1.5], "channel_multipliers must be a whole number; got 1.5"),
    ("experiment.network.channel_multipliers", [[1]], "channel_multipliers must be a number"),
    ("experiment.network.channel_multipliers", 1, "channel_multipliers must be a list; got 1"),
    ("experiment.network.attention_down_rates", [None], "attention_down_rates must be a number; got None"),
    ("experiment.network.head_channels", 0, "head_channels must be >= 1"),
    ("experiment.network.head_channels", "64", "head_channels must be a number"),
    ("experiment.network.qkv_order", ["legacy"], "qkv_order must be one of"),
    ("experiment.network.dropout", "0", "dropout must be a number"),
    ("experiment.data.image_size", 2**40, "image_size must be <= 16384"),
    ("experiment.data.dataset", 3, "dataset must be a str; got 3"),
    ("experiment.data.flips", 1, "flips must be a bool; got 1"),
    ("experiment.code.name", {"a": 1}, "name must be one of rgb"),
    ("experiment.code.beta", 10**400, "whole number of 401 digits"),
    ("experiment.code.beta", 1e300, "beta must be <= 1e6"),
    ("experiment.autoencoder.source", 5, "source must be a str; got 5"),
    ("experiment.path.time_coupling", None, "time_coupling must be one of"),
    ("experiment.train.seed", -1, "seed must be in"),
    ("experiment.train.batch_size", 2**70, "batch_size must be below 2"),
    ("experiment.inference", "fast", "must be a mapping of fields; got str"),
    ("autoencoder_fingerprint", 7, "must have a text as autoencoder_fingerprint"),
]:
    add("checkpoint", f"{field} = {str(value)[:24]} ({wanted[-24:]})", wanted, config_field(field, value))
INTACT = "model.safetensors' must be an intact safetensors file"
SAVED = "model.safetensors' must be as it was saved"
for title, wanted, change in [
    ("weights of no bytes", INTACT, lambda data: b""),
    ("weights that are text", INTACT, lambda data: b"hello, world"),
    ("weights without their end", INTACT, lambda data: data[:-1]),
    ("weights with more at the end", INTACT, lambda data: data + b"\0"),
    ("weights with a header of 2^63 bytes", INTACT, lambda data: struct.pack("<Q", 2**63) + data[8:]),
    ("weights with a header of brackets", INTACT, lambda data: header_of(NESTED)),
    ("weights with a header that is no text", INTACT, lambda data: header_of(b"\xff" * 16)),
    (
        "a tensor of 2^60 entries",
        INTACT,
        lambda data: header_of('{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}', bytes(4)),
    ),
    (
        "a tensor of an unknown dtype",
        INTACT,
        lambda data: header_of('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    ),
    (
        "tensors that overlap",
        INTACT,
        lambda data: header_of(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
    ),
    ("no tensors", "must hold the tensors of the network|name none", lambda data: header_of("{}")),
    ("a flipped bit in the last weight", SAVED, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ("a flipped bit in the saved configuration", SAVED, lambda data: data.replace(b"phantoms", b"phantomr", 1)),
]:
    add("checkpoint", title, wanted, weights_changed(change))
for title, wanted, change in [
    ("a changed weight", SAVED, set_value(FIRST, 0.5)),
    ("a tensor that is missing", SAVED, lambda tensors: tensors.pop(FIRST)),
    ("a weight of another dtype", SAVED, convert(FIRST, torch.float64)),
]:
    add("checkpoint", title, wanted, weights_of(change))
FINITE = f"must hold finite weights .*got {FIRST} with values from"
for title, wanted, change in [
    ("a weight that is NaN", FINITE, set_value(FIRST, float("nan"))),
    ("a weight that is infinite", FINITE, set_value(FIRST, float("-inf"))),
    ("a weight of 1e30", FINITE, set_value(FIRST, 1e30)),
    ("whole numbers as weights", f"floating-point weights; got {FIRST} of torch.int64", convert(FIRST, torch.int64)),
    ("bools as weights", f"floating-point weights; got {FIRST} of torch.bool", convert(FIRST, torch.bool)),
    (
        "complex weights",
        f"floating-point weights; got {FIRST} of torch.complex64|intact",
        convert(FIRST, torch.complex64),
    ),
    ("8-bit floats as weights", f"floating-point weights; got {FIRST} of", convert(FIRST, torch.float8_e4m3fn)),
    ("a weight of another shape", "1 of another shape", lambda tensors: tensors.update({FIRST: torch.zeros(3)})),
    ("a name of two lines", r"1 unexpected: 'a\\nb'", lambda tensors: tensors.update({"a\nb": torch.zeros(3)})),
    ("a name of 100,000 letters", "1 unexpected: 'xxx", lambda tensors: tensors.update({"x" * 10**5: torch.zeros(3)})),
    ("a tensor too many", "1 unexpected: more", lambda tensors: tensors.update(more=torch.zeros(3))),
]:
    add("checkpoint", f"{title}, without digests", wanted, weights_of(change, keep_config=False))
add("checkpoint", "a file instead of a folder", "a checkpoint is a folder", lambda folder: sound("npy", folder))
add("checkpoint", "an empty folder", "config.json and model.safetensors missing", lambda folder: folder)


# Autoencoders


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


# Files of torch.save


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (print, ("code of a file has run",))


def torch_file(kind, content):
    """Make a file of `torch.save`; `content` is a function, so that nothing is made before a test needs it."""

    def make(folder):
        path = folder / ("official.pt" if kind == "official" else "training_state.pt")
        value = content()
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path)
        return path

    return make


def with_tensor(name, value):
    return lambda: network_tensors() | {name: value()}


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def compressed(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def flipped_in_record(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    position = largest.header_offset + 200
    return data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :]


def nested_dictionaries():
    content = {}
    for _ in range(100):
        content = {"a": content}
    return content


def circular():
    content = {}
    content["a"] = content
    return content


TORCH = "must be a file of torch.save"
DENSE = f"must hold dense tensors of real numbers; got {FIRST}"
CODE = "must hold tensors, dictionaries and plain values only"
STRETCHED = f"must hold every value of its tensors; got {FIRST}"
SHAPE = (32, 6, 3, 3)
for title, wanted, content in [
    ("nothing", TORCH, lambda: b""),
    ("text", TORCH, lambda: b"hello"),
    ("a pickle", TORCH, lambda: b"\x80\x02]q\x00."),
    ("half a file", TORCH, lambda: torch_bytes(network_tensors())[:20000]),
    ("a flipped bit", f"{TORCH}; got: a damaged record", lambda: flipped_in_record(torch_bytes(network_tensors()))),
    ("compressed records", f"{TORCH}; got: compressed", lambda: compressed(torch_bytes(network_tensors()))),
    ("the format before 1.6", TORCH, lambda: torch_bytes(network_tensors(), _use_new_zipfile_serialization=False)),
    ("code", CODE, lambda: {"state_dict": network_tensors(), "args": Payload()}),
    ("a module", CODE, lambda: torch.nn.Linear(2, 2)),
    ("a number", "it has no tensor input_blocks", lambda: 3),
    ("a list", "it has no tensor input_blocks", lambda: [torch.zeros(3)]),
    ("dictionaries of 100 levels", "nested deeper than", nested_dictionaries),
    ("a dictionary that holds itself", "nested deeper than", circular),
    ("a sparse tensor of a long name", "got 'xxx", lambda: {"x" * 10**5: torch.zeros(3).to_sparse()}),
    ("keys that are tuples", "plain keys", lambda: {(1, 2): torch.zeros(3)}),
    ("a sparse tensor", DENSE, with_tensor(FIRST, lambda: torch.zeros(SHAPE).to_sparse())),
    ("a tensor on meta", DENSE, with_tensor(FIRST, lambda: torch.zeros(SHAPE, device="meta"))),
    ("a complex tensor", DENSE, with_tensor(FIRST, lambda: torch.zeros(SHAPE, dtype=torch.complex64))),
    ("a stretched view", STRETCHED, with_tensor(FIRST, lambda: torch.zeros(1).expand(SHAPE))),
    ("a view of terabytes", STRETCHED, with_tensor(FIRST, lambda: torch.zeros(1).expand(2**20, 2**20, 3, 3))),
    ("whole numbers", f"floating-point weights; got {FIRST}", with_tensor(FIRST, lambda: torch.zeros(SHAPE).long())),
    ("a weight that is NaN", FINITE, with_tensor(FIRST, lambda: torch.full(SHAPE, torch.nan))),
    ("a weight of 1e30", FINITE, with_tensor(FIRST, lambda: torch.full(SHAPE, 1e30))),
    (
        "a half-precision weight that is infinite",
        FINITE,
        with_tensor(FIRST, lambda: torch.full(SHAPE, torch.inf).half()),
    ),
    ("a tensor without axes", "missing or has no axis", with_tensor("time_embed.0.weight", lambda: torch.zeros(()))),
]:
    add("official", title, wanted, torch_file("official", content))
add("official", "a file that is missing", "must be an existing checkpoint file", lambda folder: folder / "none.pt")


def state_with(path, value):
    """Make a training state with one value replaced by its path, or left out where the value is `...`."""

    def content():
        *parents, last = path
        state = dict(training_state())
        inner = state
        for parent in parents:
            inner[parent] = list(inner[parent]) if isinstance(inner[parent], list) else dict(inner[parent])
            inner = inner[parent]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value() if callable(value) else value
        return state

    return torch_file("training_state", content)


for title, wanted, content in [
    ("nothing", "must be an intact training state; got: File is not a zip", lambda: b""),
    ("a list", "must be an intact training state; got list", lambda: [1, 2]),
    ("no fields", "must be an intact training state; missing: experiment", dict),
    ("weights alone", "must be an intact training state; missing: experiment", network_tensors),
    ("code", CODE, lambda: {**training_state(), "args": Payload()}),
    ("a flipped bit", "a damaged record", lambda: flipped_in_record(torch_bytes(training_state()))),
]:
    add("training_state", title, wanted, torch_file("training_state", content))
PARAMETER = ("optimizer", "state", 0)
for path, value, wanted in [
    (("position",), ..., "missing: position"),
    (("experiment",), "x", "must have experiment of type dict; got 'x'"),
    (("experiment", "data"), lambda: torch.zeros(2), "experiment of plain values; got tensors"),
    (("data_fingerprint",), 3, "must have data_fingerprint of type str"),
    (("network", FIRST), ..., f"1 missing: {FIRST}"),
    (("network", FIRST), 3, f"network of .* must hold tensors; got '{FIRST}' of int"),
    (("network", FIRST), lambda: torch.zeros(3), "1 of another shape"),
    (("network", FIRST), lambda: torch.full(SHAPE, torch.nan), f"finite weights .*got {FIRST}"),
    (("network", FIRST), lambda: torch.zeros(SHAPE).to_sparse(), "dense tensors of real numbers"),
    (("network", FIRST), lambda: torch.zeros(1).expand(SHAPE), "every value of its tensors"),
    (("average", f"module.{FIRST}"), lambda: torch.zeros(SHAPE).long(), "average of .* floating-point weights"),
    (("average", "n_averaged"), ..., "1 missing: n_averaged"),
    (("optimizer", "state"), ..., "optimizer of .* must have state and param_groups"),
    (("optimizer", "param_groups"), {}, "optimizer of .* must have state and param_groups"),
    (("optimizer", "param_groups"), [], "must have 1 param_groups; got 0"),
    (("optimizer", "param_groups", 0), 3, "must have the param_groups of this run"),
    (("optimizer", "param_groups", 0, "params"), [0, 0], "must have the param_groups of this run"),
    (("optimizer", "param_groups", 0, "betas"), "x", "must have the settings of this run; another betas"),
    (("optimizer", "param_groups", 0, "lr"), "x", "lr of .* must be a number"),
    (PARAMETER, ..., "must have a state for each of"),
    (PARAMETER, 5, "must have step, exp_avg and exp_avg_sq; got 5"),
    ((*PARAMETER, "exp_avg"), lambda: torch.zeros(2), "1 of another shape: exp_avg"),
    ((*PARAMETER, "step"), "x", "must hold tensors; got 'step' of str"),
    ((*PARAMETER, "step"), lambda: torch.tensor(-1.0), "step of .* must be finite and >= 0"),
    ((*PARAMETER, "exp_avg_sq"), lambda: torch.full((128, 32), -1.0), "exp_avg_sq of .* must be finite and >= 0"),
    ((*PARAMETER, "exp_avg"), lambda: torch.full((128, 32), torch.inf), "exp_avg of .* must be finite"),
    (("position", "step"), 10**9, "position of .* must lie in a run of 40 steps"),
    (("position", "step"), -1, "must lie in a run of"),
    (("position", "step"), "7", "step in the position of .* must be a number"),
    (("position", "step"), ..., "position of .* must have step, epoch_loss"),
    (("position", "epoch_loss"), float("nan"), "epoch_loss in the position of .* must be finite"),
    (("position", "best_epoch"), 99, "must lie in a run of"),
    (("position", "best_value"), None, "best_value in the position of .* must be a number"),
    (("position", "seconds"), float("inf"), "seconds in the position of .* must be finite"),
    (("position", "history"), "none", "history in the position of .* must be a list"),
    (("position", "history"), [3], "history in the position of .* must be rows of figures"),
    (("position", "more"), 3, "position of .* must have step"),
]:
    name = ".".join(map(str, path)) + (" left out" if value is ... else f" = {wanted[:40]}")
    add("training_state", name, wanted, state_with(path, value))


# Pictures


def picture(save, name="picture.png"):
    def make(folder):
        save(folder / name)
        return folder / name

    return make


def picture_bytes(change, name="picture.png"):
    def make(folder):
        content = sound("picture", folder).read_bytes()
        (folder / name).write_bytes(change(content))
        return folder / name

    return make


def png_claiming(width, height):
    """Return a tiny PNG whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def tiff_of(values):
    return picture(lambda path: Image.fromarray(values).save(path), "picture.tif")


def signed_tiff(path):
    """Write a TIFF of 16-bit numbers with a sign, which Pillow reads and does not write."""
    Image.fromarray(np.full((4, 4), 3, np.uint16)).save(path)
    content = bytearray(path.read_bytes())
    n_tags, first = struct.unpack("<H", content[8:10])[0], 10
    entries = [content[first + 12 * k : first + 12 * k + 12] for k in range(n_tags)]
    entries.append(struct.pack("<HHIHH", 339, 3, 1, 2, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2])[0])
    strip = struct.pack("<16h", *range(-8, 8))
    start = 8 + 2 + 12 * len(entries) + 4
    for k, entry in enumerate(entries):
        if struct.unpack("<H", entry[:2])[0] == 273:  # where the pixels are
            entries[k] = entry[:8] + struct.pack("<I", start)
    body = b"".join(bytes(entry) for entry in entries)
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + strip)


def series(path):
    frames = [Image.new("L", (4, 4), k) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def icon_of(png):
    """Return an icon that claims 32 x 32 pixels and holds a PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(png), 22) + png


def pipe(folder):
    os.mkfifo(folder / "picture.png")
    return folder / "picture.png"


PICTURE = "must be an intact picture; got: "
LARGE = PICTURE + "{} x {} pixels, more than max_pixels"
for title, wanted, make in [
    ("nothing", PICTURE, picture_bytes(lambda data: b"")),
    ("text", PICTURE, picture_bytes(lambda data: b"hello")),
    ("half a file", PICTURE, picture_bytes(lambda data: data[: len(data) // 2])),
    ("a damaged header", PICTURE, picture_bytes(lambda data: data[:20] + bytes(10) + data[30:])),
    ("12000 x 12000 pixels", LARGE.format(12000, 12000), picture_bytes(lambda data: png_claiming(12000, 12000))),
    (
        "2^31 - 1 pixels a side",
        LARGE.format(2147483647, 2147483647),
        picture_bytes(lambda data: png_claiming(2**31 - 1, 2**31 - 1)),
    ),
    ("no pixels", PICTURE, picture_bytes(lambda data: png_claiming(0, 0))),
    ("fewer pixels than claimed", PICTURE, picture_bytes(lambda data: png_claiming(500, 500))),
    (
        "32-bit whole numbers within 16 bits",
        "whole numbers .*whose range is unknown",
        tiff_of(np.full((4, 4), 9, np.int32)),
    ),
    ("32-bit whole numbers", "from 70000 to 70000.*whose range is unknown", tiff_of(np.full((4, 4), 70000, np.int32))),
    ("16-bit numbers with a sign", "with a sign .*whose range is unknown", picture(signed_tiff, "picture.tif")),
    ("floating-point numbers", "floating-point values, whose range", tiff_of(np.ones((4, 4), np.float32))),
    ("numbers that are NaN", "floating-point values, whose range", tiff_of(np.full((4, 4), np.nan, np.float32))),
    ("a series", "3 pictures in one file", picture(series, "picture.tif")),
    ("an animation", "3 pictures in one file", picture(series, "picture.gif")),
    (
        "a DICOM file",
        "DICOM and NIfTI files are not read",
        picture_bytes(lambda data: bytes(128) + b"DICM", "picture.dcm"),
    ),
    ("a NIfTI file", "DICOM and NIfTI files are not read", picture_bytes(lambda data: bytes(400), "picture.nii.gz")),
    ("EPS", "EPS files and icons are not read", picture(lambda path: Image.new("L", (4, 4)).save(path), "picture.eps")),
    (
        "an icon that hides a larger picture",
        "EPS files and icons are not read",
        picture_bytes(lambda data: icon_of(png_claiming(12000, 12000)), "picture.ico"),
    ),
    ("a pipe", "no file", pipe),
    ("a folder", PICTURE, lambda folder: folder),
    ("a file that is missing", PICTURE, lambda folder: folder / "none.png"),
]:
    add("picture", title, wanted, make)
