import math

import pytest
import torch

from msf_kernels.testing import GaussianMixtureFlow

TIMES = [0.0, 0.05, 0.4, 1.0]


def make_flow(n_classes=3, channels=2, code_channels=3, space=(4, 3), sigma=0.5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n_classes, channels, *space, generator=generator, dtype=dtype)
    codes = torch.randn(n_classes, code_channels, generator=generator, dtype=dtype)
    return GaussianMixtureFlow(means, codes, sigma, prior=torch.arange(1.0, n_classes + 1))


def state_on_path(flow, n_items, t_image, t_semantic, seed=1):
    generator = torch.Generator().manual_seed(seed)
    image, labels = flow.sample(n_items, generator)
    start = flow.generation_start(labels, generator)
    end = flow.classification_start(image, generator)
    c = flow.image_channels
    z = torch.cat(
        [
            (1 - t_image) * start[:, :c] + t_image * end[:, :c],
            (1 - t_semantic) * start[:, c:] + t_semantic * end[:, c:],
        ],
        dim=1,
    )
    return z, end - start


def velocity_by_densities(flow, z, t_image, t_semantic):
    """The same expectation from library densities, class by class, for 0 < t_semantic."""
    c = flow.image_channels
    image, semantic = z[:, :c], z[:, c:]
    v = (1 - t_image) ** 2 + t_image**2 * flow.sigma**2
    log_r = torch.stack(
        [
            flow.prior[k].log()
            + torch.distributions.Normal(t_image * flow.means[k], math.sqrt(v)).log_prob(image).flatten(1).sum(1)
            + torch.distributions.Normal((1 - t_semantic) * flow.codes[k], t_semantic)
            .log_prob(semantic)
            .flatten(1)
            .sum(1)
            for k in range(flow.n_classes)
        ]
    )
    r = log_r.softmax(0)[:, :, None, None, None]
    slope = (t_image * flow.sigma**2 - (1 - t_image)) / v
    v_image = sum(r[k] * (flow.means[k] + slope * (image - t_image * flow.means[k])) for k in range(flow.n_classes))
    v_semantic = sum(r[k] * (semantic - flow.codes[k]) / t_semantic for k in range(flow.n_classes))
    return torch.cat([v_image, v_semantic], 1)


@pytest.mark.parametrize("t_image", TIMES)
@pytest.mark.parametrize("t_semantic", TIMES[1:])
def test_velocity_is_the_mean_over_classes_computed_from_library_densities(t_image, t_semantic):
    flow = make_flow()
    z, _ = state_on_path(flow, 5, t_image, t_semantic)
    actual = flow.velocity_field(z, torch.tensor([[t_image, t_semantic]], dtype=z.dtype))
    torch.testing.assert_close(actual, velocity_by_densities(flow, z, t_image, t_semantic), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_the_error_of_the_velocity_is_uncorrelated_with_every_function_of_the_state(t):
    # The defining property of a conditional expectation, checked on simulated paths without its formula.
    means = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    codes = torch.tensor([[0.3], [-0.1]], dtype=torch.float64)
    flow = GaussianMixtureFlow(means, codes, sigma=0.7, prior=[0.3, 0.7])
    n_draws = 200_000
    z, dz = state_on_path(flow, n_draws, t, t)
    error = dz - flow.velocity_field(z, t)
    for function in (torch.ones_like, torch.clone, torch.tanh, lambda x: x.flip(1), lambda x: (x > 0.3).double()):
        product = error * function(z)
        standard_error = product.std(0) / math.sqrt(n_draws)
        assert bool((product.mean(0).abs() < 4 * standard_error).all())


def test_every_spelling_of_a_time_gives_the_same_velocity():
    flow = make_flow()
    z, _ = state_on_path(flow, 4, 0.3, 0.3)
    wanted = flow.velocity_field(z, 0.3)
    spellings = [
        torch.tensor(0.3, dtype=torch.float64),
        torch.full((4,), 0.3, dtype=torch.float64),
        torch.full((1, 2), 0.3, dtype=torch.float64),
        torch.full((4, 2), 0.3, dtype=torch.float64),
    ]
    for t in spellings:
        torch.testing.assert_close(flow.velocity_field(z, t), wanted, rtol=1e-14, atol=1e-14)


def test_items_with_their_own_times_are_computed_independently():
    flow = make_flow()
    z, _ = state_on_path(flow, 4, 0.5, 0.5)
    times = torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    z[1, 2:] = flow.codes[2]
    batch = flow.velocity_field(z, times)
    alone = torch.cat([flow.velocity_field(z[i : i + 1], times[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(batch, alone, rtol=1e-12, atol=1e-12)


def test_at_time_zero_the_code_is_known_and_its_velocity_is_minus_the_code():
    flow = make_flow()
    labels = torch.tensor([0, 1, 2, 1])
    z = flow.generation_start(labels, torch.Generator().manual_seed(0))
    c = flow.image_channels
    velocity = flow.velocity_field(z, 0.0)
    torch.testing.assert_close(velocity[:, c:], -flow.codes[labels])
    torch.testing.assert_close(velocity[:, :c], flow.means[labels] - z[:, :c])


def test_classes_that_share_a_code_share_the_weight_at_time_zero():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    codes = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    flow = GaussianMixtureFlow(means, codes, sigma=0.5)
    z = torch.tensor([[0.2, 0.1, 1.0]], dtype=torch.float64)
    velocity = flow.velocity_field(z, 0.0)
    torch.testing.assert_close(velocity[0, :2], means[:2].mean(0) - z[0, :2])


def test_velocity_at_time_zero_is_the_limit_of_small_times_along_the_noiseless_path():
    flow = make_flow()
    z0 = flow.generation_start(torch.tensor([2, 0]), torch.Generator().manual_seed(3))
    c = flow.image_channels
    t = 1e-6
    z = z0.clone()
    z[:, c:] *= 1 - t
    torch.testing.assert_close(flow.velocity_field(z, t), flow.velocity_field(z0, 0.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [0.0, 1e-6, 1e-3, 1.0])
def test_far_apart_classes_in_many_dimensions_neither_overflow_nor_underflow_in_fp32(t):
    flow = make_flow(n_classes=4, channels=3, space=(32, 32), sigma=0.01, dtype=torch.float32)
    z, _ = state_on_path(flow, 3, t, t)
    velocity = flow.velocity_field(z, t)
    wanted = flow.to(dtype=torch.float64).velocity_field(z.double(), t)
    assert bool(velocity.isfinite().all())
    error = (velocity - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4
    image, labels = flow.sample(3)
    assert torch.equal(flow.posterior(image).argmax(1), labels)


def test_one_euler_step_from_time_one_returns_the_posterior_mean_code():
    flow = make_flow(n_classes=4, space=(2, 2), sigma=2.0)
    generator = torch.Generator().manual_seed(5)
    image, _ = flow.sample(50, generator)
    z = flow.classification_start(image, generator)
    c = flow.image_channels
    recovered = z[:, c:] - flow.velocity_field(z, 1.0)[:, c:]
    wanted = (flow.posterior(image) @ flow.codes.flatten(1)).reshape_as(recovered)
    assert flow.posterior(image).max(1).values.min() < 0.9  # the classes overlap, so this is not a trivial case
    assert (recovered - wanted).abs().max() < 1e-6


def test_posterior_is_bayes_rule_with_library_densities():
    flow = make_flow(sigma=1.5)
    image, _ = flow.sample(20, torch.Generator().manual_seed(2))
    joint = torch.stack(
        [
            flow.prior[k].log() + torch.distributions.Normal(flow.means[k], 1.5).log_prob(image).flatten(1).sum(1)
            for k in range(3)
        ],
        dim=1,
    )
    torch.testing.assert_close(flow.posterior(image), joint.softmax(1))


def test_sampled_data_has_the_stated_prior_means_and_spread():
    flow = make_flow(channels=1, space=(), sigma=0.5)
    image, labels = flow.sample(60_000, torch.Generator().manual_seed(9))
    share = torch.bincount(labels, minlength=3).double() / 60_000
    assert bool(((share - flow.prior).abs() < 4 * (flow.prior * (1 - flow.prior) / 60_000).sqrt()).all())
    for k in range(3):
        own = image[labels == k]
        assert bool((own.mean(0) - flow.means[k]).abs().max() < 4 * 0.5 / math.sqrt(len(own)))
        assert abs(own.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * len(own))


def test_held_fields_leave_the_held_stream_alone_and_use_its_end_time():
    flow = make_flow()
    c = flow.image_channels
    generator = torch.Generator().manual_seed(4)
    image, labels = flow.sample(3, generator)
    z = flow.classification_start(image, generator)
    times = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    held = flow.held_image_field(z, times)
    assert bool((held[:, :c] == 0).all())
    full = flow.velocity_field(z, torch.stack([torch.ones_like(times), times], 1))
    assert torch.equal(held[:, c:], full[:, c:])

    z = flow.generation_start(labels, generator)
    held = flow.held_semantic_field(z, 0.4)
    assert bool((held[:, c:] == 0).all())
    full = flow.velocity_field(z, torch.tensor([[0.4, 0.0]], dtype=z.dtype))
    assert torch.equal(held[:, :c], full[:, :c])


def test_gradients_with_respect_to_the_state_are_right():
    flow = make_flow(space=())
    z, _ = state_on_path(flow, 2, 0.5, 0.5)
    assert torch.autograd.gradcheck(lambda x: flow.velocity_field(x, 0.5), (z.requires_grad_(),))


def test_nearest_label_reads_the_code_back():
    flow = make_flow()
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(flow.nearest_label(flow.generation_start(labels)), labels)


def test_wrong_arguments_are_named():
    means, codes = torch.zeros(3, 2), torch.zeros(3, 2)
    with pytest.raises(TypeError, match=r"float32 or float64; got means torch.float32, codes torch.float64"):
        GaussianMixtureFlow(means, codes.double(), 1.0)
    with pytest.raises(ValueError, match=r"got \[3, 2\] and \[2, 2\]"):
        GaussianMixtureFlow(means, codes[:2], 1.0)
    with pytest.raises(ValueError, match="sigma must be a finite number > 0; got 0"):
        GaussianMixtureFlow(means, codes, 0.0)
    with pytest.raises(ValueError, match="prior must be"):
        GaussianMixtureFlow(means, codes, 1.0, prior=[1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="trailing axes"):
        GaussianMixtureFlow(torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 2, 2), 1.0)
    flow = GaussianMixtureFlow(means, codes, 1.0)
    with pytest.raises(TypeError, match="z must have the flow's dtype"):
        flow.velocity_field(torch.zeros(5, 4).double(), 0.5)
    with pytest.raises(ValueError, match=r"z must be \[N, 4\]; got \[5, 3\]"):
        flow.velocity_field(torch.zeros(5, 3), 0.5)
    with pytest.raises(ValueError, match=r"t must be .* N = 5; got \[3\]"):
        flow.velocity_field(torch.zeros(5, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="t must be a number, a 0-dim tensor"):
        flow.held_image_field(torch.zeros(5, 4), torch.zeros(5, 2))
