"""Checkpoints that no reader must take: two files, each of which can be bad."""

import json
import struct

import safetensors.torch
import torch

from msf.checkpoints.folder import CONFIG_FILE, WEIGHTS_FILE
from tests.msf.bad_files.case import NESTED, add
from tests.msf.bad_files.sound import checkpoint_files, network_tensors, sound


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
