import math

import pytest
import torch
from torch.testing import assert_close

from msf.codes.label_codes import make_code, palette, project_on_simplex
from msf.config import CodeConfig
from msf_kernels import class_distance

NAMES = ("rgb", "grey", "one_hot", "simplex", "thermometer")
OURS = ("one_hot", "simplex", "thermometer")
SOLVER_RUNS = ("euler1", "euler5", "midpoint4", "rk4_4", "heun2_4")


def code_of(name, n_classes, beta=4.0):
    return make_code(CodeConfig(name=name, beta=beta), n_classes)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("n_classes", "indices"),
    [(2, [0, 63]), (5, [0, 15, 31, 47, 63]), (7, [0, 10, 21, 31, 42, 52, 63]), (8, [0, 9, 18, 27, 36, 45, 54, 63])],
)
def test_the_rgb_palette_is_the_published_one_bit_for_bit(n_classes, indices):
    levels = (0, 75, 150, 225)
    colours = [(levels[i // 16], levels[i // 4 % 4], levels[i % 4]) for i in indices]
    assert palette(n_classes).tolist() == [list(colour) for colour in colours]
    expected = torch.tensor(colours, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(code_of("rgb", n_classes).codes, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_classes", [2, 3, 8, 64])
def test_every_code_gives_each_class_its_own_point_and_decodes_it(name, n_classes):
    code = code_of(name, n_classes)
    labels = torch.arange(n_classes).flip(0)
    maps = code.encode(labels, 3, 2)
    assert maps.shape == (n_classes, code.n_channels, 3, 2)
    assert maps.dtype == torch.float32
    assert maps.is_contiguous()
    assert torch.equal(code.decode_mean(maps), labels)
    assert torch.equal(code.decode_mode(maps), labels)
    assert code.n_classes == n_classes
    assert code.codes.shape == (n_classes, code.n_channels)


@pytest.mark.parametrize(
    ("name", "n_channels"), [("rgb", 3), ("grey", 1), ("one_hot", 6), ("simplex", 5), ("thermometer", 5)]
)
def test_codes_have_the_documented_number_of_channels(name, n_channels):
    assert code_of(name, 6).n_channels == n_channels


@pytest.mark.parametrize("n_classes", [2, 3, 7, 64])
def test_the_simplex_is_regular_and_has_the_moments_of_the_noise(n_classes):
    vertices = code_of("simplex", n_classes).codes.double()
    distances = torch.pdist(vertices)
    assert_close(distances, torch.full_like(distances, math.sqrt(2 * n_classes)), rtol=1e-6, atol=0)
    assert_close(vertices.mean(0), torch.zeros(n_classes - 1, dtype=torch.float64), rtol=0, atol=1e-6)
    covariance = vertices.T @ vertices / n_classes
    assert_close(covariance, torch.eye(n_classes - 1, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_thermometer_is_ordered_so_that_distant_grades_are_far_apart():
    codes = code_of("thermometer", 5).codes
    assert codes.abs().eq(1).all()
    squared = torch.cdist(codes, codes) ** 2
    grades = torch.arange(5.0)
    assert_close(squared, 4 * (grades[:, None] - grades).abs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "n_classes", "expected"),
    [
        ("rgb", 2, True),
        ("rgb", 3, True),
        ("rgb", 4, False),  # four greys
        ("rgb", 5, False),
        ("rgb", 8, False),
        ("grey", 2, True),
        ("grey", 3, False),
        *((name, n, True) for name in OURS for n in (2, 5, 8, 64)),
    ],
)
def test_affine_independence_is_what_the_rank_says(name, n_classes, expected):
    assert code_of(name, n_classes).is_affinely_independent is expected


@pytest.mark.parametrize("name", OURS)
def test_a_mean_of_codes_gives_back_the_distribution_that_made_it(name):
    code = code_of(name, 7)
    p = torch.rand(40, 7, generator=rng()).pow(4)
    p = p / p.sum(1, keepdim=True)
    mean_map = (p @ code.codes)[:, :, None, None].expand(-1, -1, 5, 5)
    assert_close(code.probability(mean_map), p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_probability_is_that_of_the_mixture_drawn_over_pixels(name):
    code = code_of(name, 4)
    labels = torch.tensor([0, 1, 1, 3])
    per_pixel = code.encode(labels, 1, 1).permute(2, 1, 0, 3)  # one picture whose four pixels show four classes
    assert_close(code.probability(per_pixel), torch.tensor([[0.25, 0.5, 0.0, 0.25]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_probability_of_any_map_is_a_distribution(name):
    code = code_of(name, 9)
    p = code.probability(5 * torch.randn(30, code.n_channels, 4, 4, generator=rng()))
    assert p.min() >= 0
    assert_close(p.sum(1), torch.ones(30), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["rgb", "grey"])
def test_probability_is_refused_where_a_mean_does_not_determine_it(name):
    code = code_of(name, 5)
    with pytest.raises(ValueError, match="not affinely independent; use simplex, one_hot or thermometer"):
        code.probability(code.encode(torch.tensor([1]), 2, 2))


def test_projection_is_the_nearest_point_of_the_simplex():
    weights = 3 * torch.randn(200, 3, generator=rng(), dtype=torch.float64)
    projected = project_on_simplex(weights)
    assert_close(projected.sum(1), torch.ones(200, dtype=torch.float64))
    assert projected.min() >= 0
    steps = 60
    grid = [(i / steps, j / steps, (steps - i - j) / steps) for i in range(steps + 1) for j in range(steps + 1 - i)]
    best = torch.cdist(weights, torch.tensor(grid, dtype=torch.float64)).min(dim=1).values
    assert ((weights - projected).norm(dim=1) <= best + 1e-9).all()


def test_projection_leaves_a_distribution_alone():
    p = torch.softmax(torch.randn(20, 6, generator=rng(), dtype=torch.float64), dim=1)
    assert_close(project_on_simplex(p), p, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "beta", "n_classes", "width"),
    [("rgb", 4.0, 5, 4 / 127.5), ("rgb", 1.0, 5, 1 / 127.5), ("grey", 4.0, 5, 0.5), ("grey", 2.0, 3, 0.5)],
)
def test_dequantisation_is_uniform_of_the_published_width(name, beta, n_classes, width):
    code = code_of(name, n_classes, beta)
    labels = torch.arange(n_classes)
    offset = code.encode(labels, 64, 64, generator=rng()) - code.encode(labels, 64, 64)
    assert offset.abs().max() <= width / 2 + 1e-6
    assert offset.abs().max() > 0.49 * width
    n = offset.numel()
    assert abs(offset.mean()) < 5 * width / math.sqrt(12 * n)
    assert_close(offset.std(), torch.tensor(width / math.sqrt(12)), rtol=0.03, atol=0)
    flat = offset.flatten(2)
    assert (flat.std(dim=2) > 0.2 * width).all()  # every pixel and channel has its own draw


@pytest.mark.parametrize("name", OURS)
def test_codes_without_colour_levels_are_not_dequantised(name):
    code = code_of(name, 5)
    labels = torch.arange(5)
    assert torch.equal(code.encode(labels, 4, 4, generator=rng()), code.encode(labels, 4, 4))


def test_dequantised_maps_are_a_function_of_the_generator():
    code = code_of("rgb", 5)
    first, second = (code.encode(torch.arange(5), 4, 4, generator=rng(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_grey_distances_are_in_labels_and_votes_are_of_the_rounded_pixels():
    code = code_of("grey", 5)
    semantic = torch.tensor([-2.0, -2.0, -0.9, 9.0]).reshape(1, 1, 2, 2)  # labels 0, 0, 1.1, 11
    distance, votes = code.distance(semantic)
    assert_close(distance, (torch.arange(5.0) - 12.1 / 4).abs()[None])
    assert_close(votes, torch.tensor([[0.5, 0.25, 0.0, 0.0, 0.25]]))
    assert code.decode_mean(semantic).item() == 3
    assert code.decode_mode(semantic).item() == 0


def test_mean_and_mode_rules_can_disagree():
    code = code_of("rgb", 2)
    semantic = torch.full((1, 3, 1, 3), -0.2)
    semantic[..., 2] = 6.0
    assert code.decode_mode(semantic).item() == 0
    assert code.decode_mean(semantic).item() == 1


@pytest.mark.parametrize("name", NAMES)
def test_read_out_accumulates_half_precision_in_float32_and_double_in_double(name):
    code = code_of(name, 2)
    semantic = torch.randn(2, code.n_channels, 16, 16, generator=rng(), dtype=torch.float64)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        distance, votes = code.distance(semantic.to(dtype))
        assert distance.dtype == votes.dtype == code.probability(semantic.to(dtype)).dtype == expected


@pytest.mark.parametrize("name", NAMES)
def test_an_item_does_not_depend_on_its_batch(name):
    code = code_of(name, 4)
    semantic = torch.randn(5, code.n_channels, 8, 8, generator=rng())
    whole, alone = code.distance(semantic), code.distance(semantic[2:3])
    assert all(torch.equal(a[2:3], b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.parametrize("name", ["rgb", *OURS])
def test_the_read_out_is_that_of_the_class_distance_operator(name):
    code = code_of(name, 4)
    semantic = torch.randn(3, code.n_channels, 8, 8, generator=rng())
    for ours, operator in zip(code.distance(semantic), class_distance(semantic, code.codes), strict=True):
        assert torch.equal(ours, operator)


@pytest.mark.parametrize("run", SOLVER_RUNS)
def test_decoding_agrees_with_the_authors_code(golden, run):
    settings, tensors = golden.settings, golden.tensors
    name = "rgb" if settings["rgb_mask"] == "True" else "grey"
    code = code_of(name, int(settings["n_classes"]), float(settings["beta"]))
    semantic = tensors[f"classify_{run}_state"][:, int(settings["image_channels"]) :]
    assert_close(code.distance(semantic)[0], tensors[f"classify_{run}_distance"], rtol=0, atol=1e-5)
    assert torch.equal(code.decode_mean(semantic), tensors[f"classify_{run}_mean"].long())
    assert torch.equal(code.decode_mode(semantic), tensors[f"classify_{run}_mode"].long())


def test_the_authors_dequantised_maps_lie_within_our_noise_of_our_maps(golden):
    settings, tensors = golden.settings, golden.tensors
    name = "rgb" if settings["rgb_mask"] == "True" else "grey"
    code = code_of(name, int(settings["n_classes"]), float(settings["beta"]))
    offset = tensors["mask"] - code.encode(tensors["mask_labels"].long(), *tensors["mask"].shape[2:])
    half = code.dequantisation_width / 2
    assert 0.99 * half < offset.abs().max() <= half + 1e-6


@pytest.mark.parametrize("n_classes", [1, 0, -3, 65])
def test_the_number_of_classes_is_bounded(n_classes):
    with pytest.raises(ValueError, match=rf"n_classes must be in \[2, 64\]; got {n_classes}"):
        code_of("rgb", n_classes)


def test_an_unknown_code_is_refused_with_the_known_ones():
    config = CodeConfig()
    object.__setattr__(config, "name", "hsv")
    with pytest.raises(ValueError, match="rgb, grey, one_hot, simplex, thermometer; got 'hsv'"):
        make_code(config, 3)


def test_grey_needs_a_scale():
    with pytest.raises(ValueError, match="beta must be positive for code 'grey'"):
        code_of("grey", 3, beta=0.0)


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (torch.tensor([0, 5]), ValueError, r"labels must be in \[0, 5\); got values from 0 to 5"),
        (torch.tensor([-1, 2]), ValueError, "got values from -1 to 2"),
        (torch.tensor([[0], [1]]), ValueError, r"labels must be \[N\], or \[N, H, W\] for pixels; got shape \[2, 1\]"),
        (torch.tensor([0.0]), TypeError, "labels must be int64; got torch.float32"),
    ],
)
def test_bad_labels_are_named(labels, error, text):
    with pytest.raises(error, match=text):
        code_of("rgb", 5).encode(labels, 2, 2)


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in ("simplex", "grey") for method in ("distance", "probability")]
)
def test_bad_maps_are_named(name, method):
    read = getattr(code_of(name, 2), method)
    with pytest.raises(ValueError, match=r"semantic must be \[N, 1, H, W\].*got \[2, 3, 4, 4\]"):
        read(torch.zeros(2, 3, 4, 4))
    with pytest.raises(TypeError, match="floating"):
        read(torch.zeros(2, 1, 4, 4, dtype=torch.int64))


def test_an_empty_batch_stays_empty():
    code = code_of("simplex", 3)
    maps = code.encode(torch.zeros(0, dtype=torch.int64), 4, 4)
    assert maps.shape == (0, 2, 4, 4)
    assert code.probability(maps).shape == (0, 3)
    assert code.decode_mean(maps).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e4, 1e8, 1e20, 1e30])
def test_weights_far_from_the_simplex_are_projected_on_it_too(dtype, size):
    weights = size * torch.randn(64, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for moved in (weights, weights.abs() + size, -weights.abs() - size):
        projected = project_on_simplex(moved)
        assert (projected >= 0).all()
        torch.testing.assert_close(projected.sum(dim=1), torch.ones(64, dtype=dtype), rtol=0, atol=1e-4)
        assert (projected.argmax(dim=1) == moved.argmax(dim=1)).all()
