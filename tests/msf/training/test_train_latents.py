"""Training of a flow on latents: with the cache and without, it is one and the same training."""

import dataclasses
import warnings

import pytest
import torch

from msf.autoencoder import KLAutoencoder
from msf.checkpoints.folder import load_checkpoint
from msf.config import (
    AutoencoderConfig,
    CodeConfig,
    DataConfig,
    ExperimentConfig,
    PathConfig,
    TrainConfig,
    UNetConfig,
)
from msf.data import ImageDataset, Split, make_phantoms
from msf.medsymmflow import MedSymmFlow
from msf.training import images as training_images
from msf.training.train import train

pytest.importorskip("diffusers")

SIZE = 16  # latents of 4 x 4
N_TRAIN, N_VAL = 10, 10


def save_autoencoder(folder, seed=0):
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoencoderKL(
            block_out_channels=(4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=2,
            latent_channels=2,
            scaling_factor=0.5,
        )
        KLAutoencoder(model).save_pretrained(folder)
    return folder


def experiment(source, *, code="rgb", posterior="mode", **changes):
    return ExperimentConfig(
        data=DataConfig(image_size=SIZE),
        code=CodeConfig(name=code),
        path=PathConfig(end_share=0.5),
        network=UNetConfig(
            base_channels=32, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=32
        ),
        autoencoder=AutoencoderConfig(name="kl", source=str(source), posterior=posterior),
        train=TrainConfig(epochs=2, batch_size=5, validation_samples=1, validate_every=1, precision="fp32", **changes),
    )


def dataset(seed=0):
    arrays = make_phantoms(seed, {"train": N_TRAIN, "val": N_VAL})
    splits = {
        name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"].flatten().long()) for name in ("train", "val")
    }
    return ImageDataset(
        name="tiny", test=None, class_names=("a", "b", "c", "d", "e"), flips=True, is_ordinal=False, licence="",
        citation="", fingerprint=f"tiny-{seed}", **splits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MSF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def n_encoded(monkeypatch):
    """Count the pictures that go through any encoder."""
    counts, encode = [], KLAutoencoder.encode

    def counted(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(KLAutoencoder, "encode", counted)
    return lambda: sum(counts)


@pytest.mark.parametrize(("code", "posterior"), [("rgb", "mode"), ("simplex", "mode"), ("rgb", "sample")])
def test_losses_weights_and_validation_are_those_of_encoding_on_the_fly(autoencoder, tmp_path, code, posterior):
    settings = experiment(autoencoder, code=code, posterior=posterior)
    cached = train(settings, dataset(), tmp_path / "cached", device="cpu")
    encoded = train(settings, dataset(), tmp_path / "encoded", device="cpu", latent_cache=False)
    assert cached.history == encoded.history  # to the bit: the encoder sees one batch size either way
    assert cached.history[1]["train_loss"] != cached.history[0]["train_loss"]
    weights, expected = (load_checkpoint(tmp_path / name).state_dict for name in ("cached", "encoded"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_training_never_touches_the_encoder_once_the_cache_is_there(autoencoder, tmp_path, n_encoded):
    n_classes = 5
    train(experiment(autoencoder), dataset(), tmp_path / "first", device="cpu")
    # Four mirrorings of each, and the class maps of the flow and of its average.
    assert n_encoded() == 4 * N_TRAIN + N_VAL + 2 * n_classes
    train(experiment(autoencoder, code="simplex"), dataset(), tmp_path / "second", device="cpu")
    assert n_encoded() == 4 * N_TRAIN + N_VAL + 2 * n_classes


def test_without_the_cache_nothing_is_left_on_the_disk_and_validation_is_encoded_once(
    autoencoder, tmp_path, cache, n_encoded
):
    train(experiment(autoencoder, code="simplex"), dataset(), tmp_path / "run", device="cpu", latent_cache=False)
    assert not cache.exists()
    assert n_encoded() == 2 * N_TRAIN + N_VAL


def test_the_checkpoint_works_without_the_folder_that_its_autoencoder_came_from(tmp_path):
    source = save_autoencoder(tmp_path / "source")
    train(experiment(source), dataset(), tmp_path / "run", device="cpu")
    source.rename(tmp_path / "gone")
    flow = MedSymmFlow.from_pretrained(tmp_path / "run")
    assert flow.generate([0, 1], n_steps=1).shape == (2, 3, SIZE, SIZE)


def test_given_latents_are_classified_as_their_pictures_are(autoencoder, tmp_path):
    data = dataset()
    train(experiment(autoencoder), data, tmp_path / "run", device="cpu")
    flow = MedSymmFlow.from_pretrained(tmp_path / "run")
    latents = training_images.validation_latents(data, flow.space, use_cache=True, device=torch.device("cpu"))
    settings = {"n_samples": 2, "micro_batch": 8}
    expected = flow.classify(data.val.images, **settings)
    assert torch.equal(
        flow.classify(data.val.images, latents=latents, **settings).class_distance, expected.class_distance
    )
    with pytest.raises(ValueError, match="latents must be one per picture, N = 10; got 9"):
        flow.classify(data.val.images, latents=latents[1:])


def test_a_run_resumes_with_the_same_autoencoder_only(tmp_path):
    source = save_autoencoder(tmp_path / "source")
    settings = experiment(source)
    train(settings, dataset(), tmp_path / "run", device="cpu")
    save_autoencoder(source, seed=1)
    with pytest.raises(ValueError, match="another autoencoder"):
        train(settings, dataset(), tmp_path / "run", device="cpu", resume=True)


def test_an_interrupted_run_gives_the_same_bits_with_and_without_the_cache(autoencoder, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.step >= 3:
            raise Interrupted

    settings = experiment(autoencoder, code="simplex", posterior="sample")
    whole = train(settings, dataset(), tmp_path / "whole", device="cpu")
    with pytest.raises(Interrupted):
        train(settings, dataset(), tmp_path / "parts", device="cpu", progress=interrupt)
    resumed = train(settings, dataset(), tmp_path / "parts", device="cpu", resume=True, latent_cache=False)
    assert resumed.history == whole.history


def test_encoding_reports_its_progress(autoencoder, tmp_path):
    seen = []
    settings = experiment(autoencoder, code="simplex")
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=1))
    train(settings, dataset(), tmp_path, device="cpu", encoding_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (N_VAL, N_VAL)
    assert (4 * N_TRAIN, 4 * N_TRAIN) in seen
