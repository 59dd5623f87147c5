"""Every mistake ends with one line that names it, exit code 2, and nothing half-written."""

import numpy as np
import pytest


def fails(result, *words):
    code, out, err = result
    assert code == 2
    assert out == ""
    message = [line for line in err.splitlines() if line.startswith("msf: ")]
    assert len(message) == 1
    assert "Traceback" not in err
    for word in words:
        assert word in message[0]


def archive(path, **changes):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((4, 28, 28, 3), np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    arrays |= changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def train(msf, tmp_path, dataset, *more):
    result = msf("train", "--dataset", dataset, "--out", tmp_path / "run", *more)
    assert not (tmp_path / "run" / "config.json").exists()
    return result


def test_a_missing_file(msf, tmp_path):
    fails(train(msf, tmp_path, tmp_path / "none.npz"), "none.npz")


def test_an_unknown_name_lists_the_known_ones(msf, tmp_path):
    fails(train(msf, tmp_path, "bloodmist"), "bloodmist", "bloodmnist", "phantoms")


def test_a_corrupt_archive(msf, tmp_path):
    file = tmp_path / "corrupt.npz"
    file.write_bytes(b"PK\x03\x04 not an archive")
    fails(train(msf, tmp_path, file), "corrupt.npz")


def test_an_archive_with_other_keys(msf, tmp_path):
    fails(train(msf, tmp_path, archive(tmp_path / "a.npz", val_images=None)), "val_images")


def test_labels_outside_the_classes(msf, tmp_path):
    labels = np.array([[0], [-1], [0], [1]], np.int64)
    fails(train(msf, tmp_path, archive(tmp_path / "a.npz", val_labels=labels)), "labels", "-1")


def test_nan_in_the_pictures(msf, tmp_path):
    images = np.full((4, 28, 28, 3), np.nan, np.float32)
    fails(train(msf, tmp_path, archive(tmp_path / "a.npz", train_images=images)), "train_images")


def test_a_size_that_the_network_cannot_take(msf, tmp_path):
    fails(train(msf, tmp_path, "phantoms", "--image-size", 28), "image_size", "multiple of 8", "28")


def test_an_unknown_recipe_lists_the_known_ones(msf, tmp_path):
    fails(train(msf, tmp_path, "phantoms", "--recipe", "huge"), "huge", "cpu-small", "published-28")


def test_a_grey_code_with_an_autoencoder(msf, tmp_path):
    fails(train(msf, tmp_path, "phantoms", "--code", "grey", "--autoencoder", "kl"), "grey", "autoencoder")


def test_a_conditional_flow_of_a_network_with_shared_times(msf, tmp_path, tiny_run):
    fails(train(msf, tmp_path, "phantoms", "--flow", "conditional"), "conditional", "independent")
    fails(msf("evaluate", "--checkpoint", tiny_run, "--flow", "conditional"), "conditional", "independent")


@pytest.mark.parametrize("value", ["1,x", ""])
def test_multipliers_that_are_no_numbers(msf, tmp_path, value):
    fails(train(msf, tmp_path, "phantoms", "--channel-multipliers", value), "channel_multipliers")


def test_a_folder_that_holds_a_run(msf, tiny_run, tiny_npz):
    before = (tiny_run / "model.safetensors").read_bytes()
    fails(msf("train", "--dataset", tiny_npz, "--out", tiny_run), "resume")
    assert (tiny_run / "model.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_architecture(msf, tiny_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = (tiny_run / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"base_channels": 32', '"base_channels": 64'))
    (other / "model.safetensors").write_bytes((tiny_run / "model.safetensors").read_bytes())
    fails(msf("evaluate", "--checkpoint", other), "of another shape")


def test_a_folder_that_is_no_checkpoint(msf, tmp_path):
    fails(msf("evaluate", "--checkpoint", tmp_path), "config.json")
    fails(msf("evaluate", "--checkpoint", tmp_path / "none"), "none")


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_this_machine_lacks(msf, tiny_run, tmp_path, device):
    fails(msf("evaluate", "--checkpoint", tiny_run, "--device", device), "device", device)
    fails(msf("info", "--device", device), "device", device)
    fails(train(msf, tmp_path, "phantoms", "--device", device), "device", device)


def test_a_backend_that_cannot_serve(msf, tiny_run, monkeypatch):
    monkeypatch.setenv("MSF_KERNELS_BACKEND", "flash_attn")
    fails(msf("evaluate", "--checkpoint", tiny_run), "flash_attn", "spatial_attention")


def test_a_damaged_training_state(msf, tiny_npz, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "training_state.pt").write_bytes(b"PK\x03\x04 damaged")
    fails(msf("train", "--dataset", tiny_npz, "--out", folder, "--resume"), "training_state.pt", "intact")


def test_a_picture_that_is_none(msf, tiny_run, tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    fails(msf("classify", file, "--checkpoint", tiny_run), "notes.png")
    fails(msf("classify", tmp_path / "none.png", "--checkpoint", tiny_run), "none.png")


@pytest.mark.parametrize("size", ["0", "-3", "big", "1.5"])
def test_a_size_that_is_none(msf, tiny_run, tmp_path, size):
    out = tmp_path / "pictures"
    fails(msf("generate", "--checkpoint", tiny_run, f"--size={size}", "--out", out), "size", size)
    assert not out.exists()


def test_an_unknown_class_lists_the_known_ones(msf, tiny_run, tmp_path):
    out = tmp_path / "pictures"
    fails(msf("generate", "--checkpoint", tiny_run, "--labels", "7", "--out", out), "7", "0")
    assert not out.exists()


def test_an_unknown_score_lists_the_known_ones(msf, tiny_run, tmp_path):
    fails(msf("classify", tmp_path, "--checkpoint", tiny_run, "--score", "doubt"), "doubt", "nearest_distance")


def test_an_official_checkpoint_that_is_none(msf, tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"nothing")
    fails(msf("import-official", file, "--n-classes", 5, "--out", tmp_path / "out"), "model.pt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["train", "--epochs", "x"], ["evaluate", "--split", "all"], ["classify"]])
def test_flags_that_do_not_parse_end_with_code_two(msf, arguments):
    code, _, err = msf(*arguments)
    assert code == 2
    assert "Traceback" not in err
