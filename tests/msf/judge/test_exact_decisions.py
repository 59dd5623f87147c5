"""Scores, probabilities and decisions against the true posterior of the exact field, at the working size of a code.

A code that is constant over P pixels acts on the flow through its mean alone, which has the code's size times sqrt(P)
in units of its noise. So maps of 32 x 32 pixels are followed in three numbers, and pictures in as few as tell their
classes apart; the first test holds both to each other.
"""

import functools
import math

import numpy as np
import pytest
import torch

from msf.codes.label_codes import make_code, project_on_simplex, simplex_vertices
from msf.config import CodeConfig
from msf.judge.conformal import fit_sets
from msf.judge.referral import fit_referral
from msf.judge.reliability import calibration_error
from msf.judge.selective import aurc
from msf.judge.uncertainty import Draws, entropy, make_prediction
from msf_kernels.solvers import EULER, MIDPOINT, cubic_grid, integrate, uniform_grid
from msf_kernels.testing import GaussianMixtureFlow

N_CLASSES, N_PIXELS, SIGMA, N_DIMENSIONS = 4, 1024, 0.12, 8


@functools.cache
def exact(pixels=N_PIXELS):
    generator = torch.Generator().manual_seed(0)
    means = 0.57 * SIGMA * torch.randn(N_CLASSES, N_DIMENSIONS, generator=generator, dtype=torch.float64)
    return GaussianMixtureFlow(means, math.sqrt(pixels) * simplex_vertices(N_CLASSES), SIGMA)


@functools.cache
def pictures(n, seed):
    return exact().sample(n, torch.Generator().manual_seed(seed))


@functools.cache
def votes(flow_name, grid, tableau=EULER, n=150, n_samples=64, pixels=N_PIXELS):
    """Return the shares of the draws of the first pictures that end at each class."""
    flow, (images, _) = exact(pixels), pictures(2000, 1)
    field = flow.held_image_field if flow_name == "conditional" else flow.velocity_field
    start = flow.classification_start(images[:n].repeat_interleave(n_samples, 0), torch.Generator().manual_seed(2))
    with torch.no_grad():
        end = integrate(field, start, grid, tableau).state
    labels = flow.nearest_label(end).reshape(n, n_samples)
    return torch.nn.functional.one_hot(labels, N_CLASSES).double().mean(1)


def over_confidence(shares):
    """Return by how much the votes for the likeliest class of each picture exceed its posterior; [N]."""
    posterior = exact().posterior(pictures(2000, 1)[0][: len(shares)])
    return (shares - posterior).gather(1, posterior.argmax(1, keepdim=True))[:, 0]


def predicted(probability, shares=None, n_samples=64, nfe=16):
    """Return a prediction with given probabilities of the code, or of votes."""
    code = {} if shares is not None else {"code_probability": probability, "code_entropy": entropy(probability)}
    shares = probability if shares is None else shares
    draws = Draws(class_distance=1 - shares, distance_std=0 * shares, votes=shares, pixel_votes=shares, **code)
    return make_prediction(draws, n_samples=n_samples, nfe=nfe, micro_batch=1)


def test_a_map_of_1024_pixels_is_followed_in_its_mean():
    flow = exact()
    codes = simplex_vertices(N_CLASSES)
    means = flow.means.reshape(N_CLASSES, N_DIMENSIONS, 1, 1) / 32  # spread over the pixels, as strong in all
    whole = GaussianMixtureFlow(means.expand(-1, -1, 32, 32).contiguous(), codes, SIGMA)
    generator = torch.Generator().manual_seed(3)
    image = whole.sample_images(torch.arange(N_CLASSES), generator)
    noise = torch.randn(N_CLASSES, 3, 32, 32, generator=generator, dtype=torch.float64)
    small = torch.cat([image.sum((2, 3)) / 32, noise.sum((2, 3)) / 32], 1)
    torch.testing.assert_close(flow.posterior(small[:, :N_DIMENSIONS]), whole.posterior(image))
    grid = cubic_grid(8, 1.0, 0.0)
    followed = integrate(whole.held_image_field, torch.cat([image, noise], 1), grid, EULER).state
    expected = integrate(flow.held_image_field, small, grid, EULER).state
    torch.testing.assert_close(
        followed[:, N_DIMENSIONS:].sum((2, 3)) / 32, expected[:, N_DIMENSIONS:], atol=1e-8, rtol=1e-8
    )
    assert torch.equal(whole.nearest_label(followed), flow.nearest_label(expected))


@pytest.mark.parametrize("flow_name", ["joint", "conditional"])
def test_sixteen_uniform_steps_make_votes_over_confident_and_a_dense_grid_does_not(flow_name):
    uniform = over_confidence(votes(flow_name, uniform_grid(16, 1.0, 0.0)))
    dense = over_confidence(votes(flow_name, cubic_grid(16, 1.0, 0.0)))
    assert 0.12 < uniform.mean() < 0.25
    # Votes of 64 draws: the standard error of the mean over pictures is below 0.006.
    assert dense.mean().abs() < 0.04
    fine = over_confidence(votes(flow_name, cubic_grid(64, 1.0, 0.0)))
    assert fine.mean().abs() < 0.02


def test_the_joint_flow_is_biased_towards_doubt_for_codes_of_one_pixel_only():
    grid = uniform_grid(32, 1.0, 0.0)
    assert over_confidence(votes("joint", grid, MIDPOINT, 150, 64, 1)).mean() < -0.08
    assert over_confidence(votes("conditional", grid, MIDPOINT, 150, 64, 1)).mean().abs() < 0.02


def test_votes_after_one_step_are_unanimous_where_the_truth_is_open():
    shares = votes("conditional", (1.0, 0.0))
    posterior = exact().posterior(pictures(2000, 1)[0][:150])
    assert (shares.amax(1) == 1).all()
    assert ((posterior.amax(1) > 0.4) & (posterior.amax(1) < 0.7)).double().mean() > 0.2
    truth = pictures(2000, 1)[1][:150]
    sure, right = shares.amax(1).numpy(), (shares.argmax(1) == truth).numpy()
    assert calibration_error(sure, right) == pytest.approx(1 - right.mean(), abs=1e-12)
    assert calibration_error(sure, right) > 0.2


def test_one_evaluation_of_an_independent_code_is_the_posterior_itself():
    flow, images = exact(), pictures(2000, 1)[0][:200]
    start = flow.classification_start(images, torch.Generator().manual_seed(2))
    mean = (start - flow.velocity_field(start, 1.0))[:, N_DIMENSIONS:, None, None] / math.sqrt(N_PIXELS)
    code = make_code(CodeConfig(name="simplex"), N_CLASSES)
    torch.testing.assert_close(code.probability(mean), flow.posterior(images), atol=1e-6, rtol=0)


def test_averaging_before_the_projection_keeps_certain_pictures_certain():
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    weights = true + 0.1 * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    after = project_on_simplex(weights).mean(0)
    before = project_on_simplex(weights.mean(0, keepdim=True))[0]
    assert after[0] < 0.97
    assert before[0] > 0.997


def test_probabilities_of_fine_conditional_votes_are_calibrated():
    posterior = exact().posterior(pictures(2000, 1)[0][:150])
    errors = {}
    for name, shares in {
        "truth": posterior,
        "fine": votes("conditional", cubic_grid(64, 1.0, 0.0)),
        "uniform": votes("conditional", uniform_grid(16, 1.0, 0.0)),
    }.items():
        confidence, guess = shares.max(1)
        # How often a guess is right, by the true posterior, without the noise of the labels.
        chance = posterior.gather(1, guess[:, None])[:, 0]
        errors[name] = calibration_error(confidence.numpy(), chance.numpy(), "adaptive", 5)
    assert errors["truth"] < 1e-12
    assert errors["fine"] < 0.04
    assert errors["uniform"] > 0.12


def drawn(n, rng, n_votes=0):
    """Return pictures' posteriors and labels, with votes that match them if wanted."""
    images, labels = exact().sample(n, torch.Generator().manual_seed(int(rng.integers(2**31))))
    posterior = exact().posterior(images)
    shares = None
    if n_votes:
        p = posterior.numpy()
        shares = torch.from_numpy(rng.multinomial(n_votes, p / p.sum(1, keepdims=True)) / n_votes)
    return predicted(posterior, shares, n_votes or 1), labels, posterior


@pytest.mark.parametrize("n_votes", [0, 16], ids=["posterior", "16 votes"])
@pytest.mark.parametrize("method", ["split", "adaptive", "raps", "class_conditional"])
def test_sets_cover_what_they_promise(method, n_votes):
    rng = np.random.default_rng(0)
    test, labels, posterior = drawn(4000, rng, n_votes)
    coverages, sizes = [], []
    for _ in range(40):
        inside = fit_sets(*drawn(200, rng, n_votes)[:2], 0.9, method)(test)
        # The probability that the set holds the class, by the true posterior, without the noise of the labels.
        coverages.append(float((posterior * inside).sum(1).mean()))
        sizes.append(float(inside.double().sum(1).mean()))
    assert np.mean(coverages) > 0.9 - 3 * np.std(coverages) / math.sqrt(40)
    assert np.mean(sizes) < N_CLASSES


@pytest.mark.parametrize("n", [78, 120, 524, 1712])
@pytest.mark.parametrize("n_votes", [0, 16], ids=["posterior", "16 votes"])
def test_the_referral_guarantee_holds_for_the_true_risk(n, n_votes):
    rng = np.random.default_rng(n)
    pool, pool_labels, posterior = drawn(200_000, rng, n_votes)
    scores, is_error = pool.scores()["least_confidence"].numpy(), (pool.label != pool_labels).numpy()
    risk_of_picture = 1 - posterior.gather(1, pool.label[:, None])[:, 0].numpy()
    order = np.argsort(scores)
    levels, risks = scores[order], np.cumsum(risk_of_picture[order]) / np.arange(1, len(order) + 1)
    n_violated = n_found = 0
    for seed in range(1000):
        rows = rng.integers(0, len(scores), n)
        rule = fit_referral(scores[rows], is_error[rows], name="s", risk=0.1, delta=0.1, seed=seed)
        if rule.threshold is not None:
            n_found += 1
            n_violated += risks[np.searchsorted(levels, rule.threshold, side="right") - 1] > 0.1
    assert n_violated <= 100
    if n >= 524 and not n_votes:
        assert n_found > 500


def test_scores_rank_errors_as_the_posterior_says():
    areas = {}
    for n_votes in (0, 8, 64):
        prediction, labels, posterior = drawn(20_000, np.random.default_rng(1), n_votes)
        is_error = prediction.label != labels
        areas[n_votes] = {name: aurc(score, is_error) for name, score in prediction.scores().items()}
        areas[n_votes]["truth"] = aurc(1 - posterior.gather(1, prediction.label[:, None])[:, 0], is_error)
        areas[n_votes]["error rate"] = float(is_error.double().mean())
    exactly = areas[0]
    assert exactly["least_confidence"] == pytest.approx(exactly["truth"], abs=1e-12)  # nothing can rank better
    for name in ("predictive_entropy", "margin"):
        assert exactly["truth"] <= exactly[name] < exactly["truth"] + 0.03, name
    # Nothing is left to disagree about: this score knows nothing of errors.
    assert exactly["mutual_information"] == pytest.approx(exactly["error rate"], abs=1e-12)
    for name in ("disagreement", "predictive_entropy", "least_confidence", "margin"):
        assert areas[64]["truth"] < areas[64][name] < areas[8][name] < areas[8]["error rate"], name
    assert areas[8]["expected_entropy"] == pytest.approx(areas[8]["error rate"], abs=1e-12)


def test_votes_that_stop_when_they_are_settled_are_too_sure():
    from msf_kernels.sampling import SettledVote, draw

    for true, wanted in ((0.7, 0.755), (0.8, 0.848), (0.9, 0.928)):
        generator = torch.Generator().manual_seed(0)
        n, most = 1500, 64
        noise = torch.rand(n, most, generator=generator)[..., None]

        def trajectory(inputs, u, true=true):
            return torch.cat([(u >= true).float(), (u < true).float()], 1)

        result = draw(
            trajectory, torch.zeros(n, 1), most, (1,), noise=noise, micro_batch=4096,
            stop=SettledVote(alpha=0.05, reads="readout"),
        )  # fmt: skip
        share = (noise[..., 0] < true).double()
        taken = torch.arange(most) < result.n_samples[:, None]
        stopped = (share * taken).sum(1) / result.n_samples
        assert stopped.mean() == pytest.approx(wanted, abs=0.03)
        assert stopped.mean() > true + 0.02
