"""Readers and bad files: one line that names the file, an error that the commands know, and no memory on the way."""

import functools
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.checkpoints.official import load_official
from msf.data import load_dataset, load_pictures, read_image
from msf.files.npy import map_npy
from msf.files.state import read_state as read_state_file
from msf.training.state import require_state_fields, require_state_of_run
from tests.msf.bad_files import BAD_FILES, N_STEPS, network_tensors, run_parts, sound

KINDS = ("npz", "npy", "checkpoint", "autoencoder", "official", "training_state", "picture")
KNOWN = (ValueError, TypeError, FileNotFoundError)
BYTES = 3 * 2**30  # of addresses; a reader that believes a size asks for more


@functools.cache
def parts():
    return run_parts()


def read_state(path):
    state = read_state_file(path)
    require_state_fields(state, path)
    require_state_of_run(state, path, *parts(), N_STEPS)
    return state


def read_autoencoder(path):
    from msf.autoencoder import KLAutoencoder

    return KLAutoencoder.from_pretrained(path)


READERS = {
    "npz": load_dataset,
    "npy": map_npy,
    "checkpoint": load_checkpoint,
    "autoencoder": read_autoencoder,
    "official": lambda path: load_official(path, n_classes=8, head_channels=32),
    "training_state": read_state,
    "picture": read_image,
}


def require(kind):
    if kind == "autoencoder":
        pytest.importorskip("diffusers", reason="needs diffusers (extra latent)")


@pytest.fixture
def little_memory():
    """Let an allocation of gigabytes fail instead of filling the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_file_of_every_kind_is_read(kind, tmp_path):
    require(kind)
    assert READERS[kind](sound(kind, tmp_path)) is not None


def test_there_are_many_bad_files_of_every_kind_and_no_two_of_one_name():
    names = [str(bad) for bad in BAD_FILES]
    assert len(set(names)) == len(names) >= 250
    assert {bad.kind for bad in BAD_FILES} == set(KINDS)


@pytest.mark.parametrize("bad", BAD_FILES, ids=str)
def test_a_bad_file_is_refused_in_one_line_that_says_what_was_wanted(bad, tmp_path, little_memory, capfd):
    require(bad.kind)
    path = bad.make(tmp_path)
    with pytest.raises(KNOWN, match=bad.wanted) as caught:
        READERS[bad.kind](path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert path.name in text or tmp_path.name in text or bad.kind == "npy"  # whose callers name the file
    for advice in ("weights_only", "allow_pickle", "set_int_max", "MAX_IMAGE_PIXELS"):
        assert advice not in text
    assert "has run" not in capfd.readouterr().out


# Damage at random


def damaged(content, rng):
    """Return a file's bytes with some of them changed, cut off, repeated or taken out."""
    content = bytearray(content)
    how = rng.integers(6)
    place = int(rng.integers(len(content)))
    # Most of the structure stands at the two ends.
    place = place if how % 2 else min(place, int(rng.integers(512))) if rng.random() < 0.6 else -min(place, 300) - 1
    if how == 0:
        return bytes(content[:place])
    if how == 1:
        return bytes(content[:place] + content[place + int(rng.integers(1, 64)) :])
    if how == 2:
        return bytes(content[:place] + content[: int(rng.integers(1, 64))] + content[place:])
    for _ in range(int(rng.integers(1, 4))):
        value = [0, 255, 127, 128, int(rng.integers(256))][rng.integers(5)]
        content[(place + int(rng.integers(-8, 8))) % len(content)] = value
    return bytes(content)


N_DAMAGED = {
    "npz": 300,
    "npy": 300,
    "checkpoint": 300,
    "autoencoder": 60,
    "official": 250,
    "training_state": 150,
    "picture": 300,
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_random_is_harmless_or_an_error_of_the_known_kinds(kind, tmp_path, little_memory):
    require(kind)
    path = sound(kind, tmp_path)
    files = sorted(file for file in tmp_path.iterdir() if file.is_file())
    contents = {file: file.read_bytes() for file in files}
    rng = np.random.default_rng(len(kind))
    messages = []
    for number in range(N_DAMAGED[kind]):
        file = files[number % len(files)]
        file.write_bytes(damaged(contents[file], rng))
        try:
            READERS[kind](path)
        except KNOWN as error:
            messages.append(str(error))
        finally:
            file.write_bytes(contents[file])
    assert len(messages) > N_DAMAGED[kind] // 3
    assert not [text for text in messages if "\n" in text or len(text) > 1000]


def test_no_flipped_bit_in_the_weights_of_a_checkpoint_is_taken(tmp_path):
    folder = sound("checkpoint", tmp_path)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(0, header, 17), *(int(k) for k in rng.integers(header, len(content), 100)), header - 1, header]
    for place in places:
        bit = 1 << int(rng.integers(8))
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(KNOWN, match=r"model\.safetensors|config\.json"):
            load_checkpoint(folder)
    path.write_bytes(content)
    load_checkpoint(folder)


def test_a_checkpoint_without_digests_still_loads_and_says_so(tmp_path, caplog):
    import json

    import safetensors.torch

    folder = sound("checkpoint", tmp_path)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    del content["tensors_sha256"], content["digest"]
    for metadata in (None, {"config": json.dumps(content)}):
        (folder / "config.json").write_text(json.dumps(content))
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata=metadata)
        caplog.clear()
        with caplog.at_level("INFO"):
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_checkpoint(folder)[2].items())
        assert "has no digest of its tensors" in caplog.text


def test_a_bad_picture_does_not_cost_the_others(tmp_path):
    good = sound("picture", tmp_path)
    for number, bad in enumerate(bad for bad in BAD_FILES if bad.kind == "picture"):
        folder = tmp_path / str(number)
        folder.mkdir()
        loaded = load_pictures([good, bad.make(folder), good], 8, 3)
        assert loaded.rows == [0, 2]
        assert list(loaded.failures) == [1]


def test_weights_that_require_gradients_share_storage_or_are_parts_of_larger_ones_are_read(tmp_path):
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in network_tensors().items()}
    first, *_ = tensors
    larger = torch.cat([tensors[first].detach().flatten(), torch.zeros(50)])
    tensors[first] = larger[:-50].view(tensors[first].shape).requires_grad_()
    torch.save({"model": tensors, "ema": tensors}, tmp_path / "official.pt")
    read = load_official(tmp_path / "official.pt", n_classes=8, head_channels=32, prefix="ema.")[2]
    assert all(torch.equal(tensor, network_tensors()[name]) for name, tensor in read.items())
    assert not any(tensor.requires_grad for tensor in read.values())
    # Copies, whatever becomes of the file.
    (tmp_path / "official.pt").write_bytes(b"")
    assert torch.equal(read[first], network_tensors()[first])
