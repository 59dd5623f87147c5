"""Classes of pixels go the way of classes of pictures: encoded, trained, recovered, judged."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from msf.codes.label_codes import make_code, project_on_simplex
from msf.config import RECIPES, CodeConfig, DataConfig, ExperimentConfig, TaskConfig, UNetConfig
from msf.data import load_dataset, make_phantoms
from msf.data.dataset import PHANTOM_MASKS
from msf.data.phantoms import make_phantom_masks
from msf.evaluate import evaluate_split
from msf.medsymmflow import MedSymmFlow
from msf.training.train import train
from msf_kernels.sampling import SettledVote

CODES = ("rgb", "grey", "one_hot", "simplex", "thermometer")
TINY_NETWORK = UNetConfig(
    base_channels=8, n_groups=4, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=8
)


@pytest.mark.parametrize("name", CODES)
def test_a_map_has_the_point_of_each_pixels_class(name):
    code = make_code(CodeConfig(name=name), 4)
    labels = torch.randint(0, 4, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    maps = code.encode(labels, 6, 6)
    assert maps.shape == (2, code.n_channels, 6, 6)
    assert torch.equal(maps.permute(0, 2, 3, 1), code.codes[labels])
    assert torch.equal(code.encode(labels, 3, 3), maps[:, :, 1::2, 1::2])
    constant = torch.tensor([3, 1])
    assert torch.equal(code.encode(constant[:, None, None].expand(-1, 6, 6), 6, 6), code.encode(constant, 6, 6))
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        code.encode(labels + 1, 6, 6)


def flow_of(code="simplex", size=8, **fields):
    experiment = ExperimentConfig(
        data=DataConfig(dataset=PHANTOM_MASKS, image_size=size), code=CodeConfig(name=code), network=TINY_NETWORK
    )
    task = TaskConfig(n_classes=3, image_channels=3, is_per_pixel=True, **fields)
    torch.manual_seed(0)
    flow = MedSymmFlow(task, experiment)
    with torch.no_grad():
        for parameter in flow.network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return flow


@pytest.fixture(scope="module")
def pictures():
    return make_phantoms(0, {"test": 3})["test_images"]


@pytest.mark.parametrize("code", CODES)
def test_every_pixel_is_classified_as_a_map_of_one_pixel_is(code, pictures):
    flow = flow_of(code)
    noise = torch.randn(3, 2, *flow.semantic_shape, generator=torch.Generator().manual_seed(1))
    prediction = flow.classify(pictures, noise=noise, n_samples=2, precision="fp32")
    assert len(prediction) == 3 * 8 * 8
    assert prediction.map_shape == (8, 8)
    maps = prediction.maps(prediction.class_distance)
    assert maps.shape == (3, 8, 8, 3)

    # The same, by hand: the recovered map of each draw is the noise minus the velocity of one Euler step.
    from msf.data import prepare_images

    image = prepare_images(pictures, 8, 3)
    expected = torch.zeros(3, 8, 8, 3)
    for draw in range(2):
        z = torch.cat([image, noise[:, draw]], 1)
        recovered = (noise[:, draw] - flow.velocity_field(z, 1.0)[:, 3:]).detach()
        for row in range(8):
            for column in range(8):
                pixel = recovered[:, :, row, column, None, None]
                expected[:, row, column] += flow.code.distance(pixel)[0] / 2
    torch.testing.assert_close(maps.float(), expected, atol=1e-4, rtol=1e-4)


def test_scores_are_maps_too_and_what_they_say_is_that_of_the_pixel(pictures):
    flow = flow_of()
    prediction = flow.classify(pictures, n_samples=4, precision="fp32")
    assert prediction.probability_source == "mean_code"
    for name, score in prediction.scores().items():
        assert prediction.maps(score).shape == (3, 8, 8), name
    alone = flow.classify(pictures[1:2], n_samples=4, precision="fp32")
    torch.testing.assert_close(alone.probability, prediction.probability[64:128], atol=1e-6, rtol=1e-5)
    votes = flow.classify(pictures, n_samples=4, n_steps=2, precision="fp32")
    assert votes.probability_source == "votes"
    torch.testing.assert_close(votes.votes.sum(1), torch.ones(192, dtype=torch.float64))


def test_projection_keeps_to_the_class_axis():
    weights = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    rows = project_on_simplex(weights.permute(0, 2, 3, 1).reshape(-1, 3)).reshape(4, 5, 6, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(project_on_simplex(weights), rows)


def test_what_a_map_cannot_have_is_refused(pictures):
    flow = flow_of()
    for fields in ({"stop": SettledVote(0.05)}, {"keep_samples": True}):
        with pytest.raises(ValueError, match="stop must be None and keep_samples False"):
            flow.classify(pictures, **fields)
    latent = dataclasses.replace(flow.config, autoencoder=dataclasses.replace(flow.config.autoencoder, name="kl"))
    with pytest.raises(ValueError, match="autoencoder must be 'identity' where pixels have classes"):
        MedSymmFlow(flow.task, latent, autoencoder=_Latents())


class _Latents:
    """An autoencoder of which only the shape is asked."""

    def latent_shape(self, height, width):
        return (4, height // 2, width // 2)


def test_a_network_that_breaks_names_the_picture(pictures):
    from msf.judge.uncertainty import InvalidPredictionError

    flow = flow_of()
    noise = torch.zeros(3, 1, *flow.semantic_shape)
    with torch.no_grad():
        next(iter(flow.network.parameters())).fill_(float("nan"))
    with pytest.raises(InvalidPredictionError, match=r"picture 0 \(3 of 3 pictures\)") as caught:
        flow.classify(pictures, noise=noise, n_samples=1, precision="fp32")
    assert caught.value.invalid == [0, 1, 2]
    assert (caught.value.prediction.label == -1).all()


@pytest.fixture
def masks(tmp_path):
    path = tmp_path / "masks.npz"
    np.savez(path, **{k: v.numpy() for k, v in make_phantom_masks(0, {"train": 24, "val": 8, "test": 8}).items()})
    return path


def test_training_mirrors_maps_with_pictures(masks):
    from msf.data import seeded_generator
    from msf.flow.joint_space import JointSpace
    from msf.training.images import TrainingImages

    data = load_dataset(masks)
    flow = flow_of(size=28)
    assert isinstance(flow.space, JointSpace)
    settings = dataclasses.replace(flow.config.data, flips=True, shift=0.1, rotation=20.0)
    images = TrainingImages(data, flow.space, settings, use_cache=False, device=torch.device("cpu"))
    draws = images.draw(24, seeded_generator(0, 1))
    image, labels = images.batch(torch.arange(24), draws), images.labels(torch.arange(24), draws)
    assert labels.dtype == torch.int64
    assert not torch.equal(labels, data.train.labels.long())
    # Dark pixels are those of the nucleus in every mirrored pair.
    dark = image.mean(1) < -0.25
    assert ((labels == 2) & dark).sum() > 0.7 * (labels == 2).sum()
    assert (dark & (labels == 2)).sum() > 0.7 * dark.sum()


def test_a_run_on_masks_is_saved_loaded_and_judged(masks, tmp_path):
    experiment = dataclasses.replace(
        RECIPES["demo"],
        data=DataConfig(dataset=str(masks), image_size=28),
        network=TINY_NETWORK,
        train=dataclasses.replace(RECIPES["demo"].train, epochs=1, steps=None, batch_size=8, precision="fp32"),
    )
    data = load_dataset(masks)
    train(experiment, data, tmp_path / "run", device="cpu")
    flow = MedSymmFlow.from_pretrained(tmp_path / "run")
    assert flow.task.is_per_pixel
    metrics, prediction = evaluate_split(flow, data, n_samples=2)
    assert prediction.map_shape == (28, 28)
    assert metrics["n_images"] == 8
    assert 0 <= metrics["mean_iou"] <= 1
    with pytest.raises(ValueError, match="dataset must have a class per pixel, as the model"):
        evaluate_split(flow, dataclasses.replace(_of_pictures(), class_names=("0", "1", "2")))


def test_pictures_of_several_classes_cannot_be_balanced(masks, tmp_path):
    experiment = dataclasses.replace(
        RECIPES["demo"],
        data=DataConfig(dataset=str(masks), image_size=28),
        train=dataclasses.replace(RECIPES["demo"].train, class_balanced=True),
    )
    with pytest.raises(ValueError, match="class_balanced must be false where pixels have classes"):
        train(experiment, load_dataset(masks), tmp_path / "run", device="cpu")


def _of_pictures():
    from msf.data import Split

    images = torch.zeros(3, 28, 28, 3, dtype=torch.uint8)
    split = Split(images, torch.arange(3))
    data = load_dataset("phantoms")
    return dataclasses.replace(data, train=split, val=split, test=split)


def boundary(maps):
    """Return which pixels have a neighbour of another class: bool [N, H, W]."""
    one_hot = functional.one_hot(maps, 3).permute(0, 3, 1, 2).float()
    return functional.max_pool2d(one_hot, 3, 1, 1).sum(1) > 1


@pytest.mark.slow
def test_phantoms_are_segmented_and_doubt_sits_at_true_boundaries(tmp_path):
    path = tmp_path / "masks.npz"
    arrays = make_phantom_masks(0, {"train": 600, "val": 40, "test": 60})
    np.savez(path, **{name: values.numpy() for name, values in arrays.items()})
    data = load_dataset(path)
    experiment = dataclasses.replace(
        RECIPES["demo"],
        data=DataConfig(dataset=str(path), image_size=28),
        network=UNetConfig(
            base_channels=16, n_groups=4, channel_multipliers=(1, 2), n_res_blocks=1, attention_down_rates=(),
            head_channels=16,
        ),
        path=dataclasses.replace(RECIPES["demo"].path, end_share=0.5, image_weight=0.3),
        train=dataclasses.replace(
            RECIPES["demo"].train, steps=380, batch_size=16, learning_rate=2e-3, precision="fp32"
        ),
    )  # fmt: skip
    train(experiment, data, tmp_path / "run", device="cpu")
    flow = MedSymmFlow.from_pretrained(tmp_path / "run")
    metrics, prediction = evaluate_split(flow, data, n_samples=8)
    assert metrics["mean_iou"] > 0.9
    is_boundary = boundary(data.test.labels.long())
    entropy = prediction.maps(prediction.predictive_entropy)
    at, elsewhere = float(entropy[is_boundary].mean()), float(entropy[~is_boundary].mean())
    assert at > 2 * elsewhere
    # Per picture, too, the most uncertain tenth of the pixels lies at boundaries more often than chance would have it.
    most = entropy.flatten(1).topk(78, dim=1).indices
    share = is_boundary.flatten(1).gather(1, most).double().mean(1) / is_boundary.flatten(1).double().mean(1)
    assert (share > 1).double().mean() > 0.95
