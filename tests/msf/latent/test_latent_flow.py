import copy
import json
import pickle
import shutil

import pytest
import torch

from msf.autoencoder import KLAutoencoder
from msf.autoencoder.train import AutoencoderTraining
from msf.config import RECIPES, ExperimentConfig, InferenceConfig, TaskConfig
from msf.data import ImageDataset, Split
from msf.evaluate import evaluate
from msf.flow.classify import content_key
from msf.medsymmflow import MedSymmFlow
from msf.network.unet import UNet
from msf_kernels.philox_normal import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal

CODES = {"rgb": 4, "one_hot": 3, "simplex": 2, "thermometer": 2}


class CountingAutoencoder:
    """Counts the pictures and latents that an autoencoder codes."""

    def __init__(self, autoencoder):
        self._autoencoder = autoencoder
        self.n_encoded = self.n_decoded = 0

    def __getattr__(self, name):
        return getattr(self._autoencoder, name)

    def encode(self, images):
        self.n_encoded += len(images)
        return self._autoencoder.encode(images)

    def decode(self, latents):
        self.n_decoded += len(latents)
        return self._autoencoder.decode(latents)


@pytest.mark.parametrize("code", CODES)
def test_the_network_runs_at_latent_size_and_is_as_wide_as_both_latents(make_latent_flow, code):
    flow = make_latent_flow(code=code)
    assert flow.image_shape == (4, 16, 16)
    assert flow.semantic_shape == (CODES[code], 16, 16)
    assert flow.image_shape[1:] == (16, 16)
    assert flow.network.in_channels == flow.network.out_channels == 4 + CODES[code]
    maps = flow.semantic_maps(torch.tensor([2, 0]))
    assert maps.shape == (2, *flow.semantic_shape)


def test_codes_at_latent_resolution_never_meet_the_autoencoder(make_latent_flow, autoencoder):
    counting = CountingAutoencoder(autoencoder)
    flow = make_latent_flow(code="simplex", autoencoder=counting)
    flow.semantic_maps(torch.tensor([0, 1]))
    assert (counting.n_encoded, counting.n_decoded) == (0, 0)


def test_pictures_are_encoded_once_and_class_colours_once_for_all(make_latent_flow, autoencoder, pictures):
    counting = CountingAutoencoder(autoencoder)
    flow = make_latent_flow(autoencoder=counting)
    flow.classify(pictures, n_samples=6)
    assert (counting.n_encoded, counting.n_decoded) == (5 + 3, 0)
    flow.classify(pictures, n_samples=6)
    assert (counting.n_encoded, counting.n_decoded) == (5 + 3 + 5, 0)


@pytest.mark.parametrize("readout", ["latent", "decoded"])
def test_a_prediction_is_what_plain_loops_over_pictures_and_draws_give(make_latent_flow, pictures, readout):
    flow = make_latent_flow()
    n_samples, seed = 3, 11
    prediction = flow.classify(pictures, n_samples=n_samples, n_steps=2, seed=seed, keep_samples=True, readout=readout)
    latents = flow.autoencoder.encode(pictures).mode()
    maps = flow.autoencoder.encode(flow.code.encode(torch.arange(3), 32, 32)).mode()
    key = content_key(pictures)
    for item in range(5):
        index = (key[item] << 32) + torch.arange(n_samples)
        noise = philox_normal(index, (4, 16, 16), seed, stream=SEMANTIC_STREAM)
        z = torch.cat([latents[item].expand(n_samples, -1, -1, -1), noise], 1)
        with torch.no_grad():
            for t, end in ((1.0, 0.875), (0.875, 0.0)):
                z = z + (end - t) * flow.network(z, t)
        semantic = z[:, 4:]
        if readout == "latent":
            expected = (semantic[:, None] - maps).square().sum(2).sqrt().mean((2, 3))
        else:
            decoded = flow.autoencoder.decode(semantic)
            expected = (decoded[:, None] - flow.code.codes[:, :, None, None]).norm(dim=2).mean((2, 3))
        torch.testing.assert_close(prediction.sample_distance[item], expected, atol=1e-4, rtol=0)
    assert prediction.readout == readout
    assert prediction.to_dict()["readout"] == readout


@pytest.mark.parametrize("readout", ["latent", "decoded"])
def test_bits_of_a_prediction_do_not_depend_on_the_other_pictures(make_latent_flow, pictures, readout):
    flow = make_latent_flow()
    arguments = {"n_samples": 3, "micro_batch": 4, "keep_samples": True, "readout": readout}
    together = flow.classify(pictures, **arguments).sample_distance
    for rows in ([4], [2, 0]):
        assert torch.equal(flow.classify(pictures[rows], **arguments).sample_distance, together[rows])


def test_the_conditional_flow_runs_on_latents(make_latent_flow, pictures):
    flow = make_latent_flow(time_coupling="independent")
    conditional = flow.classify(pictures, n_samples=2, n_steps=2, flow="conditional", keep_samples=True).sample_distance
    assert not torch.allclose(
        conditional, flow.classify(pictures, n_samples=2, n_steps=2, keep_samples=True).sample_distance, atol=1e-3
    )


def test_probabilities_are_read_from_latents_but_never_from_decoded_pictures(make_latent_flow, pictures):
    flow = make_latent_flow(n_classes=2)
    assert flow.classify(pictures, n_samples=2).probability_source == "mean_code"
    assert flow.classify(pictures, n_samples=2, readout="decoded").probability_source == "votes"
    assert make_latent_flow(code="simplex").classify(pictures, n_samples=2).probability_source == "mean_code"
    assert make_latent_flow(n_classes=8).classify(pictures, n_samples=2).probability_source == "votes"


def test_the_default_readout_is_that_of_the_configuration(make_latent_flow, pictures, autoencoder):
    flow = make_latent_flow()
    inference = InferenceConfig(readout="decoded")
    decoding = MedSymmFlow(
        flow.task,
        ExperimentConfig.from_dict(flow.config.to_dict() | {"inference": inference.to_dict()}),
        network=flow.network,
        autoencoder=autoencoder,
    )
    expected = flow.classify(pictures, n_samples=2, readout="decoded").class_distance
    assert torch.equal(decoding.classify(pictures, n_samples=2).class_distance, expected)
    assert flow.classify(pictures, n_samples=2).readout == "latent"


def test_readouts_that_a_flow_does_not_have_are_refused(make_latent_flow, pictures):
    with pytest.raises(ValueError, match="readout must be one of latent, decoded; got 'pixels'"):
        make_latent_flow().classify(pictures, readout="pixels")
    with pytest.raises(ValueError, match="readout must be 'latent' for code 'simplex'.*got 'decoded'"):
        make_latent_flow(code="simplex").classify(pictures, readout="decoded")
    with pytest.raises(ValueError, match="readout must be 'latent' for code 'one_hot'"):
        make_latent_flow(code="one_hot", inference=InferenceConfig(readout="decoded"))


def test_for_flows_on_pixels_both_readouts_are_the_same(make_flow):
    pictures = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    flow = make_flow()
    latent, decoded = (
        flow.classify(pictures, n_samples=4, readout=name, keep_samples=True) for name in ("latent", "decoded")
    )
    assert torch.equal(latent.sample_distance, decoded.sample_distance)
    assert torch.equal(latent.probability, decoded.probability)


def test_a_generated_picture_is_the_decoded_end_of_a_plain_loop(make_latent_flow):
    flow = make_latent_flow()
    labels = torch.tensor([2, 0, 2])
    pictures = flow.generate(labels, n_steps=2, seed=5)
    noise = philox_normal(torch.arange(3) << 32, (4, 16, 16), 5, stream=IMAGE_STREAM)
    z = torch.cat([noise, flow.semantic_maps(labels)], 1)
    with torch.no_grad():
        for t in (0.0, 0.5):
            z = z + 0.5 * flow.network(z, t)
    expected = (flow.autoencoder.decode(z[:, :4]) / 2 + 0.5).clamp(0, 1)
    assert pictures.shape == (3, 3, 32, 32)
    torch.testing.assert_close(pictures, expected, atol=1e-4, rtol=0)
    alone, among = (flow.generate(some, n_steps=2, seed=5, micro_batch=3) for some in (labels[:1], labels))
    assert torch.equal(alone, among[:1])


def test_grey_pictures_are_repeated_on_the_way_in_and_averaged_on_the_way_out(make_latent_flow):
    grey, colour = make_latent_flow(image_channels=1), make_latent_flow()
    pictures = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    from_grey = grey.classify(
        pictures, n_samples=2, noise=torch.ones(2, 2, 4, 16, 16), keep_samples=True
    ).sample_distance
    repeated = pictures.expand(-1, 3, -1, -1)
    from_colour = colour.classify(
        repeated, n_samples=2, noise=torch.ones(2, 2, 4, 16, 16), keep_samples=True
    ).sample_distance
    torch.testing.assert_close(from_grey, from_colour)
    made = grey.generate([0, 1], n_steps=2)
    assert made.shape == (2, 1, 32, 32)
    assert made.std() > 0


def test_given_noise_has_the_latents_shape(make_latent_flow, pictures):
    with pytest.raises(ValueError, match=r"noise must be \[N, n_samples, K, H, W\] = \[5, 2, 4, 16, 16\]"):
        make_latent_flow().classify(pictures, n_samples=2, noise=torch.zeros(5, 2, 3, 32, 32))


@pytest.mark.parametrize(("image_size", "message"), [(33, "multiple of 2"), (0, "positive")])
def test_a_size_that_cannot_be_encoded_is_refused(make_latent_flow, image_size, message):
    with pytest.raises(ValueError, match=message):
        make_latent_flow(image_size=image_size)


def test_latents_that_the_network_cannot_halve_are_refused(make_latent_flow, autoencoder):
    changed = make_latent_flow(image_size=30).config.to_dict()
    changed["network"]["channel_multipliers"] = (1, 2)
    with pytest.raises(ValueError, match="image_size must give latents whose size is a multiple of 2.*got 30"):
        MedSymmFlow(make_latent_flow().task, ExperimentConfig.from_dict(changed), autoencoder=autoencoder)


def test_the_small_recipe_fits_the_autoencoder_that_one_trains_for_it(make_autoencoder):
    settings, recipe = AutoencoderTraining(), RECIPES["latent-cpu-small"]
    n_levels = len(settings.block_channels)
    trained = make_autoencoder(
        down_block_types=("DownEncoderBlock2D",) * n_levels,
        up_block_types=("UpDecoderBlock2D",) * n_levels,
        block_out_channels=(8,) * n_levels,
        latent_channels=settings.latent_channels,
    )
    assert recipe.data.image_size == settings.image_size
    flow = MedSymmFlow(TaskConfig(n_classes=8, image_channels=3), recipe, autoencoder=trained)
    assert flow.image_shape == (4, 32, 32)
    assert flow.semantic_shape == (7, 32, 32), "its code is a simplex at latent resolution"
    assert sum(parameter.numel() for parameter in flow.network.parameters()) < 3e6


@pytest.mark.parametrize(("posterior", "has_noise"), [("mode", False), ("sample", True)])
def test_training_maps_have_noise_only_where_the_posterior_is_sampled(make_latent_flow, posterior, has_noise):
    flow = make_latent_flow(posterior=posterior)
    labels = torch.tensor([0, 1])
    noisy = flow.semantic_maps(labels, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, flow.semantic_maps(labels)) != has_noise


def test_evaluation_names_the_readout(make_latent_flow):
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.tensor([0, 1, 2, 0, 1, 2]))
    dataset = ImageDataset(
        name="noise", train=split, val=split, test=split, class_names=("a", "b", "c"), flips=False,
        is_ordinal=False, licence="", citation="", fingerprint="0",
    )  # fmt: skip
    flow = make_latent_flow()
    metrics = {name: evaluate(flow, dataset, n_samples=2, readout=name) for name in ("latent", "decoded")}
    assert [metrics[name]["readout"] for name in metrics] == ["latent", "decoded"]
    assert evaluate(flow, dataset, n_samples=2)["readout"] == "latent"
    json.dumps(metrics, allow_nan=False)


# Checkpoints


def test_a_checkpoint_carries_its_autoencoder_and_predicts_the_same_elsewhere(
    make_latent_flow, autoencoder_folder, pictures, tmp_path
):
    flow = make_latent_flow(source=str(autoencoder_folder))
    flow.save_pretrained(tmp_path / "first")
    loaded = MedSymmFlow.from_pretrained(tmp_path / "first")
    assert loaded.config.autoencoder.source == str(tmp_path / "first" / "autoencoder")
    assert loaded.autoencoder.fingerprint == flow.autoencoder.fingerprint
    loaded.save_pretrained(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "moved")  # what the configuration names is gone
    again = MedSymmFlow.from_pretrained(tmp_path / "second")
    for readout in ("latent", "decoded"):
        expected = flow.classify(pictures, n_samples=2, readout=readout).class_distance
        torch.testing.assert_close(
            again.classify(pictures, n_samples=2, readout=readout).class_distance, expected, rtol=1e-5, atol=0
        )
    files = sorted(str(path.relative_to(tmp_path / "second")) for path in (tmp_path / "second").rglob("*.*"))
    assert files == [
        "autoencoder/config.json",
        "autoencoder/diffusion_pytorch_model.safetensors",
        "config.json",
        "model.safetensors",
    ]


def test_another_autoencoder_is_refused_when_a_checkpoint_is_loaded(make_latent_flow, make_autoencoder, tmp_path):
    make_latent_flow().save_pretrained(tmp_path / "checkpoint")
    other = make_autoencoder(seed=7)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"must be used with the autoencoder .*got '.*other' with {other.fingerprint}"):
        MedSymmFlow.from_pretrained(tmp_path / "checkpoint", autoencoder_source=tmp_path / "other")
    (tmp_path / "checkpoint" / "autoencoder").rename(tmp_path / "right")
    (tmp_path / "other").rename(tmp_path / "checkpoint" / "autoencoder")
    with pytest.raises(ValueError, match="must be used with the autoencoder that it was made with"):
        MedSymmFlow.from_pretrained(tmp_path / "checkpoint")
    flow = MedSymmFlow.from_pretrained(tmp_path / "checkpoint", autoencoder_source=tmp_path / "right")
    assert flow.config.autoencoder.source == str(tmp_path / "right")


def test_a_checkpoint_with_another_autoencoder_is_not_overwritten(make_latent_flow, make_autoencoder, tmp_path):
    make_latent_flow().save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match="holds another autoencoder.*choose another folder"):
        make_latent_flow(autoencoder=make_autoencoder(seed=7)).save_pretrained(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_the_autoencoder_is_written_once_and_a_killed_write_is_repeated(make_latent_flow, tmp_path):
    flow = make_latent_flow()
    (tmp_path / "autoencoder").mkdir()  # no configuration beside it: never finished
    flow.save_pretrained(tmp_path)
    weights = tmp_path / "autoencoder" / "diffusion_pytorch_model.safetensors"
    written = weights.stat().st_mtime_ns
    flow.save_pretrained(tmp_path)
    assert weights.stat().st_mtime_ns == written


def test_of_an_autoencoder_from_the_hub_only_name_and_fingerprint_are_kept(
    make_latent_flow, autoencoder_folder, tmp_path, monkeypatch
):
    flow = make_latent_flow(source="someone/autoencoder")
    monkeypatch.setattr(flow.autoencoder, "hub_id", "someone/autoencoder")
    flow.save_pretrained(tmp_path)
    assert not (tmp_path / "autoencoder").exists()
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["autoencoder_fingerprint"] == flow.autoencoder.fingerprint
    assert content["experiment"]["autoencoder"]["source"] == "someone/autoencoder"
    loaded = MedSymmFlow.from_pretrained(tmp_path, autoencoder_source=autoencoder_folder)
    assert loaded.autoencoder.fingerprint == flow.autoencoder.fingerprint


def test_an_autoencoder_of_one_s_own_is_written_whatever_the_name_of_its_source(make_latent_flow, tmp_path):
    make_latent_flow(source="someone/autoencoder").save_pretrained(tmp_path)
    assert (tmp_path / "autoencoder" / "config.json").is_file()


def test_saving_beside_the_source_leaves_it_and_its_other_files(make_latent_flow, autoencoder_folder, tmp_path):
    source = tmp_path / "autoencoder"
    shutil.copytree(autoencoder_folder, source)
    (source / "reconstructions.png").write_bytes(b"mine")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    flow = make_latent_flow(source=str(source), autoencoder=KLAutoencoder.from_pretrained(source))
    flow.save_pretrained(tmp_path)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    assert MedSymmFlow.from_pretrained(tmp_path).autoencoder.fingerprint == flow.autoencoder.fingerprint


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_a_flow_that_has_been_used_can_be_copied(make_latent_flow, pictures, duplicate):
    flow = make_latent_flow()
    expected = flow.classify(pictures, n_samples=2).class_distance
    assert torch.equal(duplicate(flow).classify(pictures, n_samples=2).class_distance, expected)


def test_decoding_within_a_budget_gives_pictures_of_the_same_size(make_latent_flow):
    flow = make_latent_flow()
    whole = flow.generate([0, 1], n_steps=1)
    smallest = flow.autoencoder.decode_bytes(*flow.image_shape[1:])
    assert torch.allclose(flow.generate([0, 1], n_steps=1, memory_bytes=smallest), whole, atol=1e-4)


# Checkpoints of the authors' layout


def test_a_latent_official_checkpoint_becomes_a_running_flow(make_latent_flow, autoencoder_folder, pictures, tmp_path):
    trained = make_latent_flow(n_classes=8)
    torch.save(trained.network.state_dict(), tmp_path / "official.pt")
    flow = MedSymmFlow.from_official(
        tmp_path / "official.pt",
        n_classes=8,
        head_channels=32,
        image_size=32,
        autoencoder_source=str(autoencoder_folder),
    )
    expected = trained.classify(pictures, n_samples=2).class_distance
    torch.testing.assert_close(flow.classify(pictures, n_samples=2).class_distance, expected, rtol=1e-5, atol=0)
    report = flow.official_report
    assert report.inferred["space"] == "latent"
    assert report.assumed["autoencoder"] == str(autoencoder_folder)
    flow.save_pretrained(tmp_path / "imported")
    assert MedSymmFlow.from_pretrained(tmp_path / "imported").autoencoder.fingerprint == flow.autoencoder.fingerprint


def test_an_official_checkpoint_needs_an_autoencoder_with_its_latents(make_latent_flow, make_autoencoder, tmp_path):
    torch.save(make_latent_flow().network.state_dict(), tmp_path / "official.pt")
    make_autoencoder(latent_channels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="of another shape: input_blocks.0.0.weight"):
        MedSymmFlow.from_official(
            tmp_path / "official.pt",
            n_classes=3,
            head_channels=32,
            image_size=32,
            autoencoder_source=str(tmp_path / "three"),
        )


def test_a_pixel_checkpoint_takes_no_autoencoder(make_latent_flow, tmp_path):
    torch.save(UNet(make_latent_flow().config.network, 6, 6).state_dict(), tmp_path / "official.pt")
    with pytest.raises(ValueError, match="autoencoder_source must be None for a model on pixels"):
        MedSymmFlow.from_official(
            tmp_path / "official.pt", n_classes=8, head_channels=32, autoencoder_source="someone/autoencoder"
        )
