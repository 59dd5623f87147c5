import pytest
import torch
from torch.testing import assert_close

from msf.config import PathConfig
from msf.flow.path import SymmetricProbPath, sample_times
from msf_kernels import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal, symmetric_path


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def ends(n=3, channels=2, semantic_channels=4, size=5, dtype=torch.float64):
    generator = rng()
    image, noise_image = (torch.randn(n, channels, size, size, generator=generator, dtype=dtype) for _ in range(2))
    semantic, noise_semantic = (
        torch.randn(n, semantic_channels, size, size, generator=generator, dtype=dtype) for _ in range(2)
    )
    return image, semantic, noise_image, noise_semantic


def at(path, t, values):
    image, semantic, noise_image, noise_semantic = values
    return path.sample(image, semantic, t, noise_image, noise_semantic)


def test_the_ends_are_noise_with_code_and_picture_with_noise():
    values = image, semantic, noise_image, noise_semantic = ends()
    path = SymmetricProbPath(sigma_min=0.01)
    start, end = at(path, 0.0, values), at(path, 1.0, values)
    assert_close(start.z_t, torch.cat([noise_image, semantic], 1))
    assert_close(end.z_t, torch.cat([image + 0.01 * noise_image, noise_semantic + 0.01 * semantic], 1))


def test_the_target_is_the_derivative_of_the_path_in_time():
    values = ends()
    path = SymmetricProbPath(sigma_min=0.05)
    t, h = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64), 1e-6
    numeric = (at(path, t + h, values).z_t - at(path, t - h, values).z_t) / (2 * h)
    assert_close(at(path, t, values).dz_t, numeric, rtol=0, atol=1e-8)


def test_two_times_move_each_stream_by_its_own():
    values = ends()
    path = SymmetricProbPath()
    t_image, t_semantic = torch.tensor([0.1, 0.4, 1.0]).double(), torch.tensor([0.9, 0.0, 0.3]).double()
    both = at(path, torch.stack([t_image, t_semantic], 1), values)
    assert torch.equal(both.z_t[:, :2], at(path, t_image, values).z_t[:, :2])
    assert torch.equal(both.z_t[:, 2:], at(path, t_semantic, values).z_t[:, 2:])
    assert torch.equal(both.dz_t, at(path, t_image, values).dz_t)  # the lines are straight


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3, 0.3]])])
def test_one_time_for_all_items_can_come_in_every_form(t):
    values = ends(dtype=torch.float32)
    expected = at(SymmetricProbPath(), torch.full((3,), 0.3), values)
    assert_close(at(SymmetricProbPath(), t, values).z_t, expected.z_t)


def test_the_operator_that_makes_its_own_noise_computes_the_same_path():
    image, semantic, *_ = ends(dtype=torch.float32)
    index, t = torch.tensor([5, 0, 2**40]), torch.tensor([[0.2, 0.9], [0.0, 1.0], [1.0, 0.5]])
    noise_image = philox_normal(index, image.shape[1:], 7, stream=IMAGE_STREAM)
    noise_semantic = philox_normal(index, semantic.shape[1:], 7, stream=SEMANTIC_STREAM)
    ours = SymmetricProbPath(1e-3).sample(image, semantic, t, noise_image, noise_semantic)
    z_t, dz_t = symmetric_path(image, semantic, t, sample_index=index, seed=7, sigma_min=1e-3)
    assert_close(ours.z_t, z_t, rtol=0, atol=5e-6)
    assert_close(ours.dz_t, dz_t, rtol=0, atol=5e-6)


@pytest.mark.parametrize("t", [torch.rand(2), torch.rand(3, 3), torch.rand(2, 2), torch.rand(3, 1, 1, 1)])
def test_times_of_another_shape_are_refused(t):
    with pytest.raises(ValueError, match=r"t must be a number, \[N\], \[1, 2\] or \[N, 2\] with N = 3"):
        at(SymmetricProbPath(), t, ends())


def test_ends_that_do_not_fit_are_named():
    image, semantic, noise_image, noise_semantic = ends()
    path = SymmetricProbPath()
    with pytest.raises(ValueError, match="noise_image must have the shape of image_1"):
        path.sample(image, semantic, 0.5, noise_image[:1], noise_semantic)
    with pytest.raises(ValueError, match="noise_semantic must have the shape of semantic_0"):
        path.sample(image, semantic, 0.5, noise_image, noise_semantic[:, :1])
    with pytest.raises(ValueError, match="must agree in N, H and W"):
        path.sample(image[:1], semantic, 0.5, noise_image[:1], noise_semantic)
    with pytest.raises(ValueError, match=r"sigma_min must be in \[0, 1\); got 1"):
        SymmetricProbPath(sigma_min=1)


def many_times(n_batches=400, n=50, **config):
    generator = rng()
    return torch.stack([sample_times(n, PathConfig(**config), generator) for _ in range(n_batches)])


def largest_gap(values, cumulative):
    """Return the Kolmogorov-Smirnov distance between values and a distribution function."""
    ordered = values.double().sort().values
    n = len(ordered)
    expected = cumulative(ordered)
    upper, lower = torch.arange(1, n + 1) / n - expected, expected - torch.arange(n) / n
    return float(torch.maximum(upper, lower).max())


def logit_normal_cdf(t):
    return torch.special.ndtr(torch.logit(t))


def cubic_cdf(t):
    return 1 - (1 - t) ** (1 / 3)


@pytest.mark.parametrize("coupling", ["shared", "independent"])
@pytest.mark.parametrize(("sampling", "cumulative"), [("uniform", lambda t: t), ("logit_normal", logit_normal_cdf)])
def test_each_item_of_a_batch_has_the_named_distribution_although_the_batch_is_stratified(
    coupling, sampling, cumulative
):
    t = many_times(time_sampling=sampling, time_coupling=coupling).reshape(400, 50, -1)
    for stream in range(t.shape[2]):
        for item in (0, 17, 49):
            # 1.95 / sqrt(n): exceeded with probability 1e-3 by independent draws.
            assert largest_gap(t[:, item, stream], cumulative) < 1.95 / 400**0.5


@pytest.mark.parametrize("coupling", ["shared", "independent"])
def test_cubic_times_are_dense_at_the_end_of_the_label_alone_where_streams_have_their_own(coupling):
    t = many_times(time_sampling="cubic", time_coupling=coupling).reshape(400, 50, -1).double()
    for item in (0, 17, 49):
        assert largest_gap(t[:, item, -1], cubic_cdf) < 1.95 / 400**0.5
        assert coupling == "shared" or largest_gap(t[:, item, 0], lambda u: u) < 1.95 / 400**0.5


def test_cubic_times_beside_the_ends_of_independent_ones_keep_their_distributions():
    t = many_times(n=100, time_coupling="independent", time_sampling="cubic", end_share=0.5).reshape(-1, 2).double()
    held_picture = t[(t[:, 0] == 1) & (t[:, 1] < 1), 1]
    held_label = t[(t[:, 1] == 0) & (t[:, 0] < 1), 0]
    # Beside 1 a float32 has no room for the last of them: u^3 < 2^-25.
    assert largest_gap(held_picture, cubic_cdf) < 1.95 / len(held_picture) ** 0.5 + 2 ** (-25 / 3)
    assert largest_gap(held_label, lambda u: u) < 1.95 / len(held_label) ** 0.5


def test_a_batch_of_uniform_times_has_one_in_each_interval():
    for coupling in ("shared", "independent"):
        t = many_times(n_batches=20, time_coupling=coupling).reshape(20, 50, -1)
        assert torch.equal((t * 50).floor().sort(dim=1).values[..., 0], torch.arange(50.0).expand(20, 50))


def test_the_order_within_a_batch_tells_nothing():
    t = many_times()
    assert abs(torch.corrcoef(t[:, :2].T)[0, 1]) < 0.2
    assert abs(float((t.mean(0) - 0.5).abs().max())) < 5 * (1 / 12 / 400) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_the_end_share_of_shared_times_is_exactly_one_and_the_rest_is_unchanged(share, sampling):
    t = many_times(n=40, end_share=share, time_sampling=sampling)
    counts = (t == 1).sum(dim=1)
    assert ((counts - 40 * share).abs() <= 1).all()
    rest = t[t < 1]
    cumulative = logit_normal_cdf if sampling == "logit_normal" else (lambda values: values)
    assert share == 1 or largest_gap(rest, cumulative) < 1.95 / len(rest) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_independent_times_give_every_use_of_the_network_its_share(share):
    t = many_times(n=100, time_coupling="independent", end_share=share).reshape(-1, 2)
    image, semantic = t.T
    regions = {
        "both at the end": (image == 1) & (semantic == 1),
        "picture held": (image == 1) & (semantic < 1),
        "label held": (image < 1) & (semantic == 0),
        "joint": (image < 1) & (semantic > 0) & (semantic < 1),
    }
    expected = (share**2, share * (1 - share), (1 - share) * share, (1 - share) ** 2)
    for (name, inside), probability in zip(regions.items(), expected, strict=True):
        assert abs(float(inside.float().mean()) - probability) < 2e-3, name
    free = [semantic[regions["picture held"]], image[regions["label held"]], *t[regions["joint"]].T]
    for values in free:
        assert len(values) == 0 or largest_gap(values, lambda u: u) < 1.95 / len(values) ** 0.5
    if share < 1:
        assert abs(float(torch.corrcoef(t[regions["joint"]].T)[0, 1])) < 0.03


def test_times_are_a_function_of_the_generator_and_float32():
    config = PathConfig(end_share=0.5, time_sampling="logit_normal")
    first, second = (sample_times(9, config, rng(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32


@pytest.mark.parametrize(("coupling", "shape"), [("shared", lambda n: (n,)), ("independent", lambda n: (n, 2))])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_any_number_of_items_can_be_drawn(coupling, shape, n):
    t = sample_times(n, PathConfig(time_coupling=coupling, end_share=0.5), rng())
    assert t.shape == shape(n)
    assert ((t >= 0) & (t <= 1)).all()


def test_stratified_times_lower_the_variance_of_a_batch_mean():
    stratified = many_times(n=32).square().mean(dim=1).var()
    independent = torch.rand(400, 32, generator=rng()).square().mean(dim=1).var()
    assert stratified < independent / 20
