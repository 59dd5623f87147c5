"""Memorisation: planted copies are found, held-out pictures are left alone, distances are right."""

import pytest
import torch

from msf.data import Split, make_phantoms
from msf.pools.classifier import ClassifierSettings, train_classifier
from msf.pools.nearest import LEVEL, Nearest, Neighbours, as_points, is_memorised, mirrored


@pytest.fixture(scope="module")
def phantoms():
    """Return training pictures, held-out pictures, and what judges pictures against the training ones."""
    arrays = make_phantoms(5, {"train": 500, "test": 600})
    train, test = arrays["train_images"], arrays["test_images"]
    labels = arrays["train_labels"][:, 0].long()
    classifier = train_classifier([Split(train, labels)], 5, ClassifierSettings(n_steps=40, batch_size=32), seed=0)
    orientations = mirrored(train, flips=True)
    in_features = Neighbours(torch.stack([classifier.features(images) for images in orientations]))
    in_pixels = Neighbours(torch.stack([as_points(images) for images in orientations]))

    def judge(images):
        return in_features.of(classifier.features(images)), in_pixels.of(as_points(images))

    return train, test, judge


def test_at_most_one_percent_of_held_out_pictures_are_called_memorised(phantoms):
    _, test, judge = phantoms
    is_copy, is_called = is_memorised(*judge(test))
    assert not is_copy.any()
    assert is_called.double().mean() <= LEVEL == 0.01


def test_each_p_is_at_most_a_level_about_as_often_as_the_level_says(phantoms):
    _, test, judge = phantoms
    for near in judge(test):
        for level in (0.05, 0.2, 0.5):
            share = float((near.p <= level).double().mean())
            assert abs(share - level) < 4 * (level * (1 - level) / 500) ** 0.5 + 0.02, (level, share)


def test_a_planted_copy_is_found_whatever_its_orientation_and_rounding(phantoms):
    train, _, judge = phantoms
    rows = torch.tensor([3, 77, 140, 499])
    copies = train[rows]
    off_by_one = (copies.int() + torch.randint(-1, 2, copies.shape)).clamp(0, 255).byte()
    for images, is_exact in (
        (copies, True),
        (copies.flip(1), True),
        (copies.flip(2).flip(1), True),
        (off_by_one, False),
    ):
        in_features, in_pixels = judge(images)
        is_copy, is_called = is_memorised(in_features, in_pixels)
        assert is_called.all()
        assert bool(is_copy.all()) is is_exact
        assert torch.equal(in_pixels.index, rows)
    assert torch.equal(judge(copies.flip(1))[1].mirror, torch.full((4,), 2))


def test_the_nearest_is_that_of_all_distances_and_a_picture_is_not_its_own_neighbour():
    generator = torch.Generator().manual_seed(0)
    points, queries = torch.randn(2, 30, 5, generator=generator), torch.randn(300, 5, generator=generator)
    near = Neighbours(points).of(queries)
    every = torch.cdist(queries.double(), points.flatten(0, 1).double())
    assert torch.equal(near.mirror * 30 + near.index, every.argmin(1))
    torch.testing.assert_close(near.distance, every.min(1).values, rtol=1e-5, atol=1e-6)
    among = torch.cdist(points[0].double(), points.flatten(0, 1).double())
    for mirror in range(2):
        among[torch.arange(30), mirror * 30 + torch.arange(30)] = torch.inf
    nearer = (among.min(1).values[None] <= near.distance[:, None] * (1 + 1e-9)).sum(1)
    assert torch.equal(near.p, (1 + nearer).double() / 31)


def test_pictures_that_hardly_differ_keep_their_distance():
    points = 1000 + torch.arange(6, dtype=torch.float32)[:, None].expand(-1, 50) * 1e-3
    near = Neighbours(points[None]).of(points[2:3] + 1e-4)
    assert int(near.index) == 2
    assert float(near.distance) == pytest.approx(1e-4 * 50**0.5, rel=0.3)


def test_pixel_distances_are_root_mean_squares_of_levels():
    black, grey = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.full((1, 4, 4, 3), 51, dtype=torch.uint8)
    assert float(Neighbours(as_points(black)[None]).of(as_points(grey)).distance) == pytest.approx(0.2)


def test_memorised_asks_for_both_spaces_or_a_copy():
    def near(p, distance=1.0):
        return Nearest(torch.zeros(4), torch.zeros(4), torch.full((4,), distance, dtype=torch.float64), torch.tensor(p))

    near_features, near_pixels = near([0.01, 0.01, 0.5, 0.5]), near([0.01, 0.5, 0.01, 0.5])
    assert is_memorised(near_features, near_pixels, 0.01)[1].tolist() == [True, False, False, False]
    assert is_memorised(near([0.5] * 4), near([0.5] * 4, 0.001), 0.01)[1].all()
    assert not is_memorised(near([0.5] * 4), near([0.5] * 4, 0.002), 0.01)[0].any()


def test_one_training_picture_has_no_neighbours():
    with pytest.raises(ValueError, match="two pictures or more; got 1"):
        Neighbours(torch.zeros(1, 1, 3))
