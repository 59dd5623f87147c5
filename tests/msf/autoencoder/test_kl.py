"""Reading, writing and recognising autoencoders of diffusers."""

import json
import sys
import types

import pytest
import safetensors.torch
import torch

from msf.autoencoder import KLAutoencoder, load_autoencoder
from msf.autoencoder.kl import CONFIG_FILE, WEIGHTS_FILE
from msf.config import AutoencoderConfig


@pytest.fixture
def saved(tmp_path, make_model):
    folder = tmp_path / "autoencoder"
    KLAutoencoder(make_model()).save_pretrained(folder)
    return folder


def edit(folder, **fields):
    path = folder / CONFIG_FILE
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def test_a_saved_autoencoder_comes_back(saved, make_model):
    before, after = KLAutoencoder(make_model()), KLAutoencoder.from_pretrained(saved)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert after.fingerprint == before.fingerprint
    torch.testing.assert_close(after.decode(latents), before.decode(latents), rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_what_was_loaded_gives_the_same_files(saved, tmp_path):
    KLAutoencoder.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_diffusers_reads_what_was_saved(saved, make_model):
    from diffusers import AutoencoderKL

    read = AutoencoderKL.from_pretrained(saved, use_safetensors=True)
    assert read.config.scaling_factor == 0.7
    wanted = make_model().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in read.state_dict().items())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_diffusers_saved_is_read(tmp_path, make_model):
    make_model().save_pretrained(tmp_path)
    assert KLAutoencoder.from_pretrained(tmp_path).fingerprint == KLAutoencoder(make_model()).fingerprint


def test_latents_are_those_of_diffusers_times_the_scaling_factor(make_model):
    model = make_model()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = model.encode(images).latent_dist
        back = model.decode(wanted.mean).sample
    autoencoder = KLAutoencoder(model)
    posterior = autoencoder.encode(images)
    torch.testing.assert_close(posterior.mean, 0.7 * wanted.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posterior.std, 0.7 * wanted.std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(posterior.mean), back, rtol=1e-5, atol=1e-5)


def test_a_shift_is_taken_off_before_scaling_and_put_back(make_model):
    plain, shifted = KLAutoencoder(make_model()), KLAutoencoder(make_model(shift_factor=0.25))
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = shifted.encode(images).mean
    torch.testing.assert_close(mean, plain.encode(images).mean - 0.7 * 0.25, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shifted.decode(mean), plain.decode(mean + 0.7 * 0.25), rtol=1e-5, atol=1e-5)


def test_one_grey_channel_is_repeated(make_model):
    autoencoder = KLAutoencoder(make_model())
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(autoencoder.encode(grey).mean, autoencoder.encode(grey.repeat(1, 3, 1, 1)).mean)


# The fingerprint


def test_the_fingerprint_changes_with_one_weight(make_model):
    model = make_model()
    with torch.no_grad():
        model.decoder.conv_out.bias[0] += 1e-6
    assert KLAutoencoder(model).fingerprint != KLAutoencoder(make_model()).fingerprint


@pytest.mark.parametrize(
    "change", [{"scaling_factor": 0.71}, {"shift_factor": 0.1}, {"norm_num_groups": 2}, {"act_fn": "relu"}]
)
def test_the_fingerprint_changes_with_what_the_weights_do_not_tell(make_model, change):
    assert KLAutoencoder(make_model(**change)).fingerprint != KLAutoencoder(make_model()).fingerprint


def test_the_fingerprint_is_that_of_the_weights_before_rounding_and_folding(make_model):
    wanted = KLAutoencoder(make_model()).fingerprint
    assert KLAutoencoder(make_model()).fold().fingerprint == wanted
    assert KLAutoencoder(make_model()).to(dtype=torch.bfloat16).fingerprint == wanted


def test_another_dtype_computes_in_it_and_returns_float32(make_model):
    exact, rounded = KLAutoencoder(make_model()), KLAutoencoder(make_model()).fold().to(dtype=torch.bfloat16)
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = rounded.encode(images).mean
    assert mean.dtype == torch.float32
    assert 1e-4 < (mean - exact.encode(images).mean).abs().max() < 0.1
    assert (rounded.decode(mean) - exact.decode(mean)).abs().max() < 0.1


# What is refused


def test_a_pickle_is_refused(saved):
    (saved / WEIGHTS_FILE).rename(saved / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only diffusion_pytorch_model.bin .* pickle, which is refused"):
        KLAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} missing"):
        KLAutoencoder.from_pretrained(saved)


def test_a_truncated_file_is_refused(saved):
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="intact safetensors"):
        KLAutoencoder.from_pretrained(saved)


def test_files_of_two_autoencoders_are_refused(saved, tmp_path, make_model):
    KLAutoencoder(make_model(seed=1)).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / WEIGHTS_FILE).replace(saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="must belong together"):
        KLAutoencoder.from_pretrained(saved)


def test_weights_of_another_architecture_are_listed(saved):
    edit(saved, block_out_channels=[8, 16, 16], down_block_types=["DownEncoderBlock2D"] * 3, _fingerprint=...)
    with pytest.raises(ValueError, match="missing"):
        KLAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize(("name", "found"), [("VQModel", "'VQModel'"), (None, "None")])
def test_another_class_is_refused(saved, name, found):
    edit(saved, _class_name=name)
    with pytest.raises(ValueError, match=f"configuration of an AutoencoderKL; got {found}"):
        KLAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_is_none_is_refused(saved, text):
    (saved / CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match="configuration"):
        KLAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "wanted"), [({"in_channels": 1}, "3 channels; got 1 and 3"), ({"latents_mean": [0.0]}, "latents_mean")]
)
def test_models_of_another_kind_are_refused(make_model, change, wanted):
    with pytest.raises(ValueError, match=wanted):
        KLAutoencoder(make_model(**change))


def test_no_source_says_how_to_get_one():
    with pytest.raises(FileNotFoundError, match="msf train-autoencoder"):
        load_autoencoder(AutoencoderConfig(name="kl"), 3)


def test_without_diffusers_the_error_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs the package diffusers: pip install 'medsymmflow\[latent\]'"):
        load_autoencoder(AutoencoderConfig(name="kl", source=str(saved)), 3)


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=offline))
    with pytest.raises(FileNotFoundError, match=r"'someone/vae' is no folder here, .*ConnectionError: no network\)$"):
        KLAutoencoder.from_pretrained("someone/vae")


def test_a_hub_id_is_fetched_without_its_pickles(saved, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return saved

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    KLAutoencoder.from_pretrained("someone/vae", revision="v1")
    assert asked == {"name": "someone/vae", "revision": "v1", "allow_patterns": [CONFIG_FILE, WEIGHTS_FILE]}


def test_old_names_of_the_attentions_layers_are_read(saved):
    """Files from before diffusers 0.12, such as those of sd-vae-ft-mse, name them otherwise."""
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.torch.load_file(saved / WEIGHTS_FILE)
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in new_to_old.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    wanted = KLAutoencoder.from_pretrained(saved).fingerprint
    safetensors.torch.save_file(renamed, saved / WEIGHTS_FILE)
    assert KLAutoencoder.from_pretrained(saved).fingerprint == wanted


@pytest.mark.parametrize(("factor", "error"), [(0, ValueError), (-1.0, ValueError), ("a", TypeError)])
def test_a_scaling_factor_that_cannot_scale_is_refused(saved, factor, error):
    edit(saved, scaling_factor=factor, _fingerprint=...)
    with pytest.raises(error, match="scaling_factor must be"):
        KLAutoencoder.from_pretrained(saved)
