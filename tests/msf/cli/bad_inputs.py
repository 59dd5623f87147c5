"""Command lines that must end with one line and exit code 2: made on the spot, one entry each.

A case is a function from a `Place` to the arguments of `msf`; `bad(...)` registers it under a name, with a word that
its message must hold. Flags are not listed by hand: `flag_cases` goes over every option of every command.
"""

import inspect
import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from typer.models import OptionInfo

from msf.cli import app
from msf.plain_values import optional_base


@dataclass(frozen=True)
class Place:
    """Where a case puts its files, and what it may use."""

    folder: Path
    run: Path
    npz: Path

    def file(self, name, content=b""):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def picture(self, name="good.png"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path, format="PNG")
        return path

    def checkpoint(self, change=None, config=None, weights=None):
        """Return a copy of the checkpoint, with its configuration or its tensors replaced or changed."""
        folder = self.folder / "checkpoint"
        folder.mkdir()
        if config is None:
            content = json.loads((self.run / "config.json").read_text())
            if change is not None:
                change(content)
                content.pop("digest", None)
            config = json.dumps(content)
        (folder / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
        if weights is None:
            weights = (self.run / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights)
        return folder

    def archive(self, **changes):
        with np.load(self.npz) as arrays:
            content = {name: arrays[name] for name in arrays.files} | changes
        path = self.folder / "data.npz"
        np.savez(path, **{name: values for name, values in content.items() if values is not None})
        return path

    def classify(self, *arguments):
        return ["classify", *arguments, "--checkpoint", self.run, "--device", "cpu"]

    def generate(self, *arguments):
        out = [] if "--out" in arguments else ["--out", self.folder / "out"]
        return ["generate", "--checkpoint", self.run, "--device", "cpu", "--n-steps", "1", "--n", "1", *out, *arguments]

    def evaluate(self, *arguments):
        return ["evaluate", "--device", "cpu", *([] if "--checkpoint" in arguments else ["--checkpoint", self.run]),
                *([] if "--dataset" in arguments else ["--dataset", self.npz]), *arguments]  # fmt: skip

    def train(self, *arguments):
        out = [] if "--out" in arguments else ["--out", self.folder / "out"]
        data = [] if "--dataset" in arguments else ["--dataset", self.npz]
        return ["train", "--device", "cpu", "--epochs", "1", *out, *data, *arguments]

    def import_official(self, *arguments):
        out = [] if "--out" in arguments else ["--out", self.folder / "out"]
        n_classes = [] if "--n-classes" in arguments else ["--n-classes", "5"]
        return ["import-official", *arguments, *n_classes, *out]


@dataclass(frozen=True)
class BadInput:
    """One command line that must fail.

    Args:
        name: What is wrong.
        make: From a `Place` to the arguments.
        word: What the message must name.
    """

    name: str
    make: Callable[[Place], list]
    word: str

    def __str__(self):
        return self.name.replace(" ", "_")


BAD_INPUTS: list[BadInput] = []


def bad(name, make, word):
    BAD_INPUTS.append(BadInput(name, make, word))


def _png(mode="L", size=(8, 8), **options):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format="PNG", **options)
    return stream.getvalue()


def _saved(image, file_format, **options):
    stream = io.BytesIO()
    image.save(stream, format=file_format, **options)
    return stream.getvalue()


PNG = _png()
GREY = Image.new("L", (8, 8))
BAD_PICTURES = {
    "empty.png": b"",
    "zeros.png": bytes(500),
    "garbage.jpg": bytes(range(256)) * 4,
    "text.png": b"not a picture",
    "html.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "signature.png": PNG[:8],
    "header.png": PNG[:33],
    "half.png": PNG[: len(PNG) // 2],
    "damaged.png": PNG[:40] + bytes(20) + PNG[60:],
    "checksum.png": PNG[:30] + b"\0\0" + PNG[32:],
    "half.jpg": _saved(GREY, "JPEG")[:200],
    "half.bmp": _saved(GREY, "BMP")[:60],
    "half.tif": _saved(GREY, "TIFF")[:100],
    "half.webp": _saved(GREY, "WEBP")[:20],
    "half.gif": _saved(GREY, "GIF")[:20],
    "float.tif": _saved(Image.new("F", (8, 8)), "TIFF"),
    "series.tif": _saved(GREY, "TIFF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]),
    "film.gif": _saved(GREY, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]),
    "scan.dcm": bytes(128) + b"DICM" + bytes(200),
    "unnamed": bytes(128) + b"DICM" + bytes(200),
    "volume.nii": b"\x5c\x01\0\0" + bytes(340) + b"n+1\0",
    "volume.nii.gz": b"\x1f\x8b\x08\0" + bytes(50),
    "wrong.png": zipfile.ZIP_STORED.to_bytes(1, "big") + b"PK\x03\x04",
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "paper.pdf": b"%PDF-1.4\n",
    "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "array.npy": b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8), }",
    "bomb.png": PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:],
    "flat.png": PNG[:16] + struct.pack(">II", 0, 8) + PNG[24:],
    "odd [red]name[/].png": b"",
    "new\nline.png": b"",
    "control\x1b[31m.png": b"",
}
for _name, _content in BAD_PICTURES.items():
    bad(
        f"picture {_name!r}",
        lambda p, n=_name, c=_content: p.classify(p.file(n, c)),
        repr(_name)[1:-1].replace("\\", "\\"),
    )

bad("picture that is missing", lambda p: p.classify(p.folder / "none.png"), "none.png")
bad("picture in a folder that is missing", lambda p: p.classify(p.folder / "none" / "a.png"), "a.png")
bad("picture under a file", lambda p: p.classify(p.file("a.png") / "b.png"), "b.png")
bad("picture with a name that is too long", lambda p: p.classify(p.folder / ("x" * 300)), "xxx")
bad("picture that is a device", lambda p: p.classify("/dev/null"), "/dev/null")
bad("picture that is an endless device", lambda p: p.classify("/dev/zero"), "/dev/zero")
bad("folder that is empty", lambda p: p.classify(_folder(p, "nothing")), "nothing")
bad("folder of other files", lambda p: p.classify(p.file("notes/a.txt").parent), "notes")
bad("folder of hidden pictures", lambda p: p.classify(p.picture("hid/.a.png").parent), "hid")
bad("folder of figures", lambda p: p.classify(_figure(p).parent), "figures")
bad("folder of DICOM files", lambda p: p.classify(p.file("scans/a.dcm").parent), "DICM")
bad("folder of broken pictures", lambda p: p.classify(p.file("broken/a.png").parent), "a.png")
bad("no picture at all", lambda p: p.classify(), "IMAGE")
bad("an empty name", lambda p: p.classify(p.folder / "nothing", ""), "nothing")


def _folder(place, name):
    (place.folder / name).mkdir()
    return place.folder / name


def _figure(place):
    from matplotlib.figure import Figure

    from msf.report import write_figure

    path = _folder(place, "figures") / "a.png"
    write_figure(path, Figure())
    return path


def _linked(place, target):
    path = place.folder / "link.png"
    path.symlink_to(target)
    return path


def _pipe(place):
    os.mkfifo(place.folder / "pipe.png")
    return place.folder / "pipe.png"


def _socket(place):
    here = Path.cwd()
    try:
        os.chdir(place.folder)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("socket.png")
    finally:
        os.chdir(here)
    return place.folder / "socket.png"


bad("link to nothing", lambda p: p.classify(_linked(p, "none.png")), "link.png")
bad("link to itself", lambda p: p.classify(_linked(p, "link.png")), "link.png")
bad("pipe", lambda p: p.classify(_pipe(p)), "pipe.png")
bad("folder with a pipe", lambda p: p.classify(_pipe(p).parent), "pipe.png")
bad("socket", lambda p: p.classify(_socket(p)), "socket.png")
bad("score that does not exist", lambda p: p.classify(p.picture(), "--score", "doubt"), "doubt")
bad("share above one", lambda p: p.classify(p.picture(), "--refer", "1.5"), "--refer")
bad("share that is not a number", lambda p: p.classify(p.picture(), "--refer", "nan"), "refer")
bad("conditional flow", lambda p: p.classify(p.picture(), "--flow", "conditional"), "conditional")

# Results that cannot be written, for every command that writes some.
_RUNS = {
    "classify": lambda p: p.classify(p.picture()),
    "generate": lambda p: p.generate(),
    "evaluate": lambda p: p.evaluate(),
    "report": lambda p: ["report", p.run, "--device", "cpu", "--out", p.folder / "r.html"],
    "train": lambda p: p.train(),
    "import-official": lambda p: p.import_official(p.file("a.pt")),
    "info": lambda p: ["info"],
    "demo": lambda p: ["demo", "--out", p.folder / "demo"],
    "train-autoencoder": lambda p: ["train-autoencoder", "--dataset", p.npz, "--out", p.folder / "autoencoder"],
}
_TARGETS = {
    "in a folder that is missing": (lambda p: p.folder / "none" / "r.x", "none"),
    "that is a folder": (lambda p: _folder(p, "results"), "results"),
    "under a file": (lambda p: p.file("plain") / "r.x", "plain"),
    "with a name that is too long": (lambda p: p.folder / ("y" * 300), "yyy"),
    "in a folder of the kernel": (lambda p: Path("/proc/r.x"), "/proc/r.x"),
}
for _command, _run in _RUNS.items():
    for _what, (_target, _word) in _TARGETS.items():
        bad(f"{_command} --json {_what}", lambda p, r=_run, t=_target: [*r(p), "--json", t(p)], _word)
for _what, (_target, _word) in _TARGETS.items():
    bad(f"classify --csv {_what}", lambda p, t=_target: p.classify(p.picture(), "--csv", t(p)), _word)
    bad(f"report --out {_what}", lambda p, t=_target: ["report", p.run, "--device", "cpu", "--out", t(p)], _word)


def _both(place):
    return place.classify(place.picture(), "--csv", place.folder / "r", "--json", place.folder / "." / "r")


bad("CSV and JSON in one file", _both, "--csv and --json")
bad("JSON over a picture", lambda p: p.classify(p.picture(), "--json", p.picture()), "--json")
bad("CSV over a picture of a folder", lambda p: p.classify(p.picture().parent, "--csv", p.picture()), "--csv")
bad("JSON over the checkpoint", lambda p: p.classify(p.picture(), "--json", p.run / "config.json"), "--json")
bad("JSON over the data", lambda p: p.evaluate("--json", p.npz), "--json")

for _command, _run in _RUNS.items():
    bad(f"{_command} --json -", lambda p, r=_run: [*r(p), "--json", "-"], "'-' is none")
bad("report --out -", lambda p: ["report", p.run, "--device", "cpu", "--out", "-"], "'-' is none")
bad("classify --csv -", lambda p: p.classify(p.picture(), "--csv", "-"), "'-' is none")

# Folders to write.
for _command, _run in {"generate": lambda p: p.generate, "import-official": lambda p: p.import_official}.items():
    _first = [] if _command == "generate" else ["a.pt"]
    bad(f"{_command} --out a file", lambda p, r=_run, f=_first: r(p)(*f, "--out", p.file("plain")), "plain")
    bad(f"{_command} --out under a file", lambda p, r=_run, f=_first: r(p)(*f, "--out", p.file("plain") / "b"), "plain")
    bad(f"{_command} --out a device", lambda p, r=_run, f=_first: r(p)(*f, "--out", "/dev/null"), "/dev/null")
bad("generate among other pictures", lambda p: p.generate("--out", p.picture("g/00-0000.png").parent), "another run")
bad(
    "generate beside a broken note",
    lambda p: p.generate("--out", p.file("g/generated.json", "[").parent if p.picture("g/01-0001.png") else ""),
    "another run",
)

# Numbers that no run could end with.
for _name, _run in {"classify": lambda p: p.classify(p.picture()), "evaluate": lambda p: p.evaluate()}.items():
    bad(f"{_name} of 10^12 steps", lambda p, r=_run: [*r(p), "--n-steps", 10**12], "n_steps")
    bad(f"{_name} of 10^12 samples", lambda p, r=_run: [*r(p), "--n-samples", 10**12], "n_samples")
bad("generate of 10^12 steps", lambda p: p.generate("--n-steps", 10**12), "n_steps")
bad("training of steps and epochs", lambda p: p.train("--steps", 5), "exactly one of epochs and steps")
bad("training of no step", lambda p: ["train", "--steps", 0, "--dataset", p.npz, "--out", p.folder / "out"], "steps")
bad("training with two averages", lambda p: p.train("--ema-decay", 0.9, "--ema-length", 0.1), "ema_length")
bad("training on labels of text", lambda p: p.train("--dataset", p.archive(train_labels=np.array(["a"] * 32))), "<U1")
bad("training of 10^12 steps to classify", lambda p: p.train("--classify-steps", 10**12), "n_steps")
bad("training of 10^12 samples to validate", lambda p: p.train("--validation-samples", 10**12), "validation_samples")

# Labels and sizes.
for _text in (
    "",
    ",",
    "0,",
    "0,,1",
    "5",
    "-1",
    "+1",
    "1.0",
    "1e0",
    "nobody",
    "0,0",
    "0,1,0",
    "0;1",
    "0 1",
    "9" * 30,
    "\u00b2",
):
    bad(f"labels {_text!r}", lambda p, t=_text: p.generate(f"--labels={t}"), "labels")
for _text in ("0", "-1", "1.5", "x", "", "999999999", "9" * 40, "Original"):
    bad(f"size {_text!r}", lambda p, t=_text: p.generate(f"--size={t}"), "size")
bad("more pictures than memory holds", lambda p: p.generate("--n", "99999999"), "--seed")

# Checkpoints.
_EVALUATE = lambda p, folder: p.evaluate("--checkpoint", folder)  # noqa: E731
bad("checkpoint that is missing", lambda p: _EVALUATE(p, p.folder / "none"), "none")
bad("checkpoint that is a file", lambda p: _EVALUATE(p, p.run / "config.json"), "config.json")
bad("checkpoint without a name", lambda p: _EVALUATE(p, ""), "checkpoint")
bad("checkpoint that is an empty folder", lambda p: _EVALUATE(p, _folder(p, "empty")), "empty")
bad("checkpoint without weights", lambda p: _EVALUATE(p, p.file("c/config.json", "{}").parent), "model.safetensors")
bad("checkpoint that is a device", lambda p: _EVALUATE(p, "/dev/null"), "/dev/null")
for _name, _text in {
    "empty": "", "of zeros": bytes(99), "binary": bytes(range(256)), "cut off": '{"format": 1, ', "a list": "[]",
    "null": "null", "a number": "1", "a text": '"x"', "without fields": "{}", "of another format": '{"format": 99}',
    "of half a task": '{"format": 1, "task": {}}', "UTF-16": "{}".encode("utf-16"),
    "of lists": '{"format": 1, "task": [], "experiment": []}',
}.items():  # fmt: skip
    bad(f"configuration {_name}", lambda p, t=_text: _EVALUATE(p, p.checkpoint(config=t)), "config.json"
        if _name not in ("of lists",) else "")  # fmt: skip
for _group, _field, _value in (
    ("task", "n_classes", "five"), ("task", "n_classes", -1), ("task", "n_classes", 7), ("task", "image_channels", 2),
    ("task", "nothing", 1), ("data", "image_size", 0), ("data", "image_size", "8"), ("code", "name", "morse"),
    ("network", "base_channels", 64), ("network", "base_channels", None), ("network", "n_res_blocks", 2),
    ("network", "unknown", 1), ("network", "head_channels", 7), ("inference", "n_samples", 0),
    ("inference", "flow", "up"),
):  # fmt: skip

    def _change(content, group=_group, field=_field, value=_value):
        part = content["task"] if group == "task" else content["experiment"][group]
        part[field] = value

    bad(f"configuration with {_group}.{_field} = {_value!r}", lambda p, c=_change: _EVALUATE(p, p.checkpoint(c)), "")


def _weights(place, change):
    """Return a checkpoint of an earlier version, without a digest of its tensors, which are changed."""
    tensors = safetensors.torch.load_file(place.run / "model.safetensors")
    weights = safetensors.torch.save(change(tensors))
    return place.checkpoint(lambda content: content.pop("tensors_sha256"), weights=weights)


def _without_last(tensors):
    tensors.popitem()
    return tensors


for _name, _content in {
    "empty": b"", "of zeros": bytes(200), "garbage": bytes(range(256)),
    "with an endless header": struct.pack("<Q", 2**62),
    "with a header of text": struct.pack("<Q", 4) + b"text", "a pickle": pickle.dumps({}), "an archive": b"PK\x03\x04",
}.items():  # fmt: skip
    bad(f"weights {_name}", lambda p, c=_content: _EVALUATE(p, p.checkpoint(weights=c)), "model.safetensors")
bad("weights cut off", lambda p: _EVALUATE(p, p.checkpoint(weights=_half(p.run / "model.safetensors"))), "safetensors")
bad("weights of which one is missing", lambda p: _EVALUATE(p, _weights(p, _without_last)), "missing")
bad("weights that are none", lambda p: _EVALUATE(p, _weights(p, lambda t: {"x": torch.zeros(1)})), "missing")
for _command in ("classify", "evaluate", "generate"):
    for _value in (float("nan"), float("inf")):

        def _spoilt(place, command=_command, value=_value):
            folder = _weights(place, lambda tensors: {name: t.fill_(value) for name, t in tensors.items()})
            others = {"classify": [place.picture()], "evaluate": ["--dataset", place.npz], "generate": []}[command]
            out = ["--out", place.folder / "out"] if command == "generate" else []
            return [command, *others, "--checkpoint", folder, "--device", "cpu", *out]

        bad(f"{_command} with weights of {_value}", _spoilt, "finite")


def _half(path):
    content = path.read_bytes()
    return content[: len(content) // 2]


# Data sets.
def _data(name, make, word):
    bad(f"data {name}", lambda p: p.evaluate("--dataset", make(p)), word)


_data("that is missing", lambda p: p.folder / "none.npz", "none.npz")
_data("that is a folder", lambda p: _folder(p, "d.npz"), "d.npz")
_data("that is empty", lambda p: p.file("d.npz"), "d.npz")
_data("that is garbage", lambda p: p.file("d.npz", bytes(range(256)) * 8), "d.npz")
_data("that is cut off", lambda p: p.file("d.npz", _half(p.npz)), "d.npz")
_data("that is an empty archive", lambda p: p.file("d.npz", b"PK\x05\x06" + bytes(18)), "d.npz")
_data("that is a picture", lambda p: p.file("d.npz", PNG), "d.npz")
for _name in ("new\nline.npz", "control\x1b[31m.npz"):
    _escaped = repr(_name)[1:-1]
    for _what, _labels in {"without labels": None, "with fractions": np.full(20, 0.5)}.items():
        _data(
            f"{_name!r} {_what}", lambda p, n=_name, v=_labels: p.archive(test_labels=v).rename(p.folder / n), _escaped
        )
    _data(f"{_name!r} that is garbage", lambda p, n=_name: p.file(n, b"x"), _escaped)
    _data(f"{_name!r} that is missing", lambda p, n=_name: p.folder / n, _escaped)
_data("that is a device", lambda _: "/dev/null", "/dev/null")
_data("of an unknown name", lambda _: "bloodmnits", "bloodmnits")
_data("of an empty name", lambda _: "", "data set")
for _name in ("chestmnist", "organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d",
              "synapsemnist3d", "synapsemnist3d_64", "ChestMNIST"):  # fmt: skip
    _data(f"called {_name}", lambda _, n=_name: n, f"'{_name}' cannot be taken: ")
_data("without a split", lambda p: p.archive(val_images=None), "val_images")
_data("without labels", lambda p: p.archive(test_labels=None), "test_labels")
_data("with pictures of numbers", lambda p: p.archive(test_images=np.zeros((4, 8, 8), np.float32)), "test_images")
_data("with NaN", lambda p: p.archive(test_images=np.full((4, 8, 8), np.nan)), "test_images")
_data("with words for labels", lambda p: p.archive(test_labels=np.array(["a"] * 20)), "test_labels")
_data("with fractions for labels", lambda p: p.archive(test_labels=np.full(20, 0.5)), "test_labels")
_data("with several labels each", lambda p: p.archive(test_labels=np.zeros((20, 14), int)), "test_labels")
_data("with labels below 0", lambda p: p.archive(test_labels=np.full((20, 1), -1)), "test_labels")
_data("with fewer labels", lambda p: p.archive(test_labels=np.zeros((7, 1), int)), "test_labels")
_data("with an empty split", lambda p: p.archive(test_images=np.zeros((0, 28, 28, 3), np.uint8)), "test_images")
_data("with volumes", lambda p: p.archive(test_images=np.zeros((20, 8, 8, 8), np.uint8)), "test_images")
_data("with other classes", lambda p: p.archive(train_labels=np.arange(32) % 2, val_labels=np.arange(15) % 2,
      test_labels=np.arange(20) % 2), "classes")  # fmt: skip
_data("with objects", lambda p: p.archive(test_labels=np.array([{}] * 20, dtype=object)), "data.npz")
bad("data for training that is missing", lambda p: p.train("--dataset", p.folder / "none.npz"), "none.npz")
bad("a root of data that is missing", lambda p: p.evaluate("--dataset", "nosuch", "--data-root", p.folder), "nosuch")
bad(
    "data for an autoencoder that is missing",
    lambda p: ["train-autoencoder", "--dataset", p.folder / "none.npz"],
    "none",
)

# Files of the authors.
for _name, _content in {
    "empty.pt": b"", "garbage.pt": bytes(range(256)), "zeros.pt": bytes(100),
    "code.pt": pickle.dumps(print, 2), "plain.pt": pickle.dumps({"a": 1}, 2), "archive.pt": b"PK\x03\x04",
    "text.pt": b"weights of a network\n", "newer.pt": pickle.dumps({"a": 1}, 4),
    "garbage-2.pt": bytes(range(255, 0, -1)) * 9, "new\nline.pt": b"",
    "empty.safetensors": b"", "text.safetensors": b"text", "garbage.safetensors": bytes(range(256)),
}.items():  # fmt: skip
    bad(f"official {_name}", lambda p, n=_name, c=_content: p.import_official(p.file(n, c)), repr(_name)[1:-1])
bad("official file that is missing", lambda p: p.import_official(p.folder / "none.pt"), "none.pt")
bad("official file that is a folder", lambda p: p.import_official(_folder(p, "f.pt")), "f.pt")
bad(
    "official file of another network", lambda p: p.import_official(_tensors(p, {"x": torch.zeros(2)})), "t.safetensors"
)
bad("both ways to say the heads", lambda p: p.import_official("a", "--num-heads", "1", "--head-channels", "1"), "both")
bad(
    "a folder that holds a checkpoint",
    lambda p: p.import_official("a.pt", "--out", p.checkpoint()),
    "holds a checkpoint",
)


def _tensors(place, tensors):
    return place.file("t.safetensors", safetensors.torch.save(tensors))


# Commands as such.
bad("command that does not exist", lambda _: ["clasify"], "clasify")
bad("flag of the whole that does not exist", lambda _: ["--nope"], "--nope")
bad("device that is none", lambda _: ["info", "--device", "quantum"], "quantum")
bad("device that is not here", lambda _: ["info", "--device", "cuda:99"], "cuda:99")
bad("backwards device", lambda _: ["info", "--device", ""], "device")
bad("recipe that does not exist", lambda p: p.train("--recipe", "huge"), "huge")
bad("no run to go on with", lambda p: p.evaluate("--split", "holdout"), "--split")

_WRONG = {int: ("x", "", "1.5", "0x10", "1e3"), float: ("x", "", "1,5"), Literal: ("no such choice", "", "JOINT ")}


def _class_folders(place, *names):
    """Return a folder with a picture in each of some places."""
    for number, name in enumerate(names):
        place.picture(f"own/{name}/{number}.png")
    return place.folder / "own"


def _table(place, text, encoding="utf-8"):
    return place.file("own.csv", text.encode(encoding))


def _pack(name, make, word, *flags):
    bad(f"pack {name}", lambda p: ["pack", make(p), "--out", p.folder / "out.npz", *flags], word)


def _sized(place, *sizes):
    for number, size in enumerate(sizes):
        place.file(f"own/{'ab'[number % 2]}/{number}.png", _png(size=size))
    return place.folder / "own"


_AB = ("a", "b") * 10
_REPORT = ("--json", "out.json", "--out", "out.npz")
_TORN = "file,label,patient,split\na,x,1,train\nb,y,2,train\nc,x,1,test\n"
_pack("nothing", lambda p: p.folder / "none", "none")
_pack("a name", lambda _: "bloodmnist", "bloodmnist")
_pack("an empty folder", lambda p: _folder(p, "own"), "own")
_pack("a folder of pictures without labels", lambda p: p.picture("own/1.png").parent, "own")
_pack("one class", lambda p: _class_folders(p, "a", "a"), "two classes")
_pack("two names for one class, by case", lambda p: _class_folders(p, "Cyst", "cyst"), "'cyst'")
_pack("two names for one class, by spaces", lambda p: _class_folders(p, "a b", "a  b"), "'a  b'")
_pack("grey and colour", lambda p: (_class_folders(p, *_AB), p.file("own/b/z.png", _png("RGB")))[0], "mode must be")
_pack("several sizes", lambda p: _sized(p, (8, 8), (9, 9)), "size must be given")
_pack("pictures that are not square", lambda p: _sized(p, (8, 9), (8, 9)), "size must be given")
_pack("too few pictures", lambda p: _class_folders(p, "a", "b"), "test = 0.15")
_pack(
    "only broken pictures", lambda p: (p.file("own/a/1.png"), p.file("own/b/2.png"), p.folder / "own")[2], "none of 2"
)
_pack(
    "a broken picture, strictly",
    lambda p: _class_folders(p, *_AB) and p.file("own/a/9.png").parents[1],
    "9.png",
    "--strict",
)
_pack("shares above one", lambda p: _class_folders(p, *_AB), "sum below 1", "--val", "0.6", "--test", "0.6")
_pack("names that do not fit", lambda p: _class_folders(p, *_AB), "class-names", "--class-names", "a,c")
_pack("columns of a folder", lambda p: _class_folders(p, *_AB), "columns", "--file-column", "x")
_pack("a window that is none", lambda p: _class_folders(p, *_AB), "window", "--window", "bone")
_pack("a class missing from training", lambda p: _class_folders(p, "train/a", "train/b", "test/c"), "'c' is missing")
_pack("an output that is no archive", lambda p: _class_folders(p, *_AB), ".npz", "--out", "x.zip")
_pack("an output without its folder", lambda p: _class_folders(p, *_AB), "does not exist", "--out", "no/x.npz")
_pack("an output in the report's place", lambda p: _class_folders(p, *_AB), "different files", *_REPORT)
_pack("a table of another encoding", lambda p: _table(p, "file,label\né.png,x\n", "latin1"), "UTF-8")
_pack("a table in UTF-16", lambda p: _table(p, "file,label\na.png,x\n", "utf-16"), "UTF-8")
_pack("a table without a label", lambda p: _table(p, "file;labels\na.png;x\n"), "label-column")
_pack("a table of missing files", lambda p: _table(p, "file;label\na.png;x\nb.png;y\n"), "no such file")
_pack("a patient in two splits", lambda p: _table(p, _TORN), "in several")
_pack("a table that is Parquet by name", lambda p: p.file("own.parquet", b"file,label"), "Parquet")
_pack("a volume", lambda p: (p.file("own/a/1.nii.gz"), p.file("own/b/2.nii"), p.folder / "own")[2], "NIfTI")
for _name in ("a.nii", "a.nii.gz"):
    bad(f"volume {_name}", lambda p, n=_name: p.classify(p.file(n, b"x")), "nibabel")
bad("table of nothing", lambda p: p.classify(p.file("a.csv", b"file\n")), "a.csv")
bad("resuming nothing", lambda p: p.classify(p.picture(), "--resume"), "resume needs")
bad("rows of pictures in a text file", lambda p: p.evaluate("--per-image", p.folder / "a.txt"), "per-image")
_data("that is a folder without classes", lambda p: p.picture("own/1.png").parent, "own")


def flag_cases():
    """Yield wrong values for every flag of every command, by its type, and a flag too many."""
    for command in app.registered_commands:
        name = command.name
        yield BadInput(f"{name} --no-such-flag", lambda _, n=name: [n, "--no-such-flag"], "--no-such-flag")
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            hint, marker = get_args(parameter.annotation)[:2]
            if not isinstance(marker, OptionInfo):
                continue
            hint = optional_base(hint)
            declared = [text for text in marker.param_decls if text.startswith("--")]
            flag = declared[0].split("/")[0] if declared else "--" + parameter.name.replace("_", "-")
            wrong = [f"{flag}=1"] if hint is bool else [flag]
            wrong += [f"{flag}={value}" for value in _WRONG.get(get_origin(hint) or hint, ())]
            for text in wrong:
                yield BadInput(f"{name} {text!r}", lambda _, n=name, t=text: [n, t], flag)
