import time

import pytest
import torch
from torch.testing import assert_close

from msf.data import make_phantoms, phantom_bayes_accuracy, seeded_generator
from msf.data.phantoms import PHANTOM_CLASSES, draw_phantoms, morph_posterior, sample_morph

N_CLASSES = len(PHANTOM_CLASSES)
FAST = {"train": 400, "val": 50, "test": 50}


def test_phantoms_come_in_medmnist_layout():
    arrays = make_phantoms(0, FAST)
    assert set(arrays) == {f"{split}_{part}" for split in FAST for part in ("images", "labels")}
    for split, n in FAST.items():
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        assert images.shape == (n, 28, 28, 3)
        assert labels.shape == (n, 1)
        assert images.dtype == labels.dtype == torch.uint8
        assert labels.flatten().bincount(minlength=N_CLASSES).tolist() == [n // N_CLASSES] * N_CLASSES


def test_phantoms_are_a_function_of_the_seed_and_differ_between_splits():
    first, same, other = make_phantoms(3, FAST), make_phantoms(3, FAST), make_phantoms(4, FAST)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["train_images"], other["train_images"])
    assert not torch.equal(first["val_images"], first["test_images"])
    assert not torch.equal(first["val_images"], first["train_images"][:50])


def test_all_splits_are_made_in_seconds():
    started = time.perf_counter()
    make_phantoms()
    assert time.perf_counter() - started < 10  # about half a second on one idle core


def test_the_bayes_accuracy_is_below_one_and_is_that_of_the_posterior():
    accuracy = phantom_bayes_accuracy()
    assert 0.85 < accuracy < 0.97
    labels = torch.arange(200_000) % N_CLASSES
    posterior = morph_posterior(sample_morph(labels, seeded_generator(0)))
    assert_close(posterior.sum(1), torch.ones(len(labels), dtype=torch.float64))
    is_right = (posterior.argmax(1) == labels).double().mean()
    four_standard_errors = 4 * (accuracy * (1 - accuracy) / len(labels)) ** 0.5
    assert abs(float(is_right) - accuracy) < four_standard_errors
    assert abs(float(posterior.amax(1).mean()) - accuracy) < four_standard_errors  # the posterior is calibrated


@pytest.mark.parametrize("morph", [0.5, 1.5, 2.5, 3.5])
def test_half_way_between_two_classes_they_are_equally_likely(morph):
    posterior = morph_posterior(torch.tensor([morph]))[0].sort(descending=True).values
    assert_close(posterior[0], posterior[1])
    assert posterior[0] > 0.4


def test_the_form_changes_gradually_with_the_morph_parameter():
    morph = torch.linspace(0, N_CLASSES - 1, 201)
    # The same place, size and noise for every picture: one picture at a time from the same generator state.
    images = torch.cat([draw_phantoms(m[None], seeded_generator(1)) for m in morph]).float()
    steps = (images[1:] - images[:-1]).abs().mean(dim=(1, 2, 3))
    whole = (images[50::50] - images[:-50:50]).abs().mean(dim=(1, 2, 3))
    assert steps.max() < 3
    assert whole.min() > 5


def test_nothing_but_the_morph_parameter_tells_the_class():
    morph = torch.full((6,), 1.3)
    first = draw_phantoms(morph, seeded_generator(5))
    assert torch.equal(first, draw_phantoms(morph, seeded_generator(5)))
    assert_close(
        draw_phantoms(torch.tensor([-1.0]), seeded_generator(5)),
        draw_phantoms(torch.tensor([0.0]), seeded_generator(5)),
    )


def test_a_simple_classifier_on_pixels_is_good_but_not_better_than_the_bound():
    arrays = make_phantoms(0, {"train": 1500, "test": 500})
    pixels = {s: arrays[f"{s}_images"].float().flatten(1) / 127.5 - 1 for s in ("train", "test")}
    labels = {s: arrays[f"{s}_labels"].flatten().long() for s in ("train", "test")}
    mean = pixels["train"].mean(0)
    nearest = torch.cdist(pixels["test"] - mean, pixels["train"] - mean).topk(9, largest=False).indices
    votes = torch.nn.functional.one_hot(labels["train"][nearest], N_CLASSES).sum(1)
    accuracy = float((votes.argmax(1) == labels["test"]).double().mean())
    assert accuracy > 0.6
    assert accuracy < phantom_bayes_accuracy() + 4 * (0.1 * 0.9 / 500) ** 0.5
