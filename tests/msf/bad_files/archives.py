"""Archives of arrays, and single arrays, that no reader must take."""

import io
import struct
import zipfile
import zlib

import numpy as np

from tests.msf.bad_files.case import add
from tests.msf.bad_files.sound import sound, sound_arrays


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


UNREADABLE = "data.npz' cannot be read as an .npz archive"
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
    ("labels of three axes", np.zeros((12, 1, 1), np.uint8), "all have a class per picture, or all one per pixel"),
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
