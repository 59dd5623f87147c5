import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from msf.judge.scaling import Scaling, fit_scaling
from msf.judge.uncertainty import Draws, entropy, make_prediction

METHODS = ["temperature", "vector", "dirichlet"]


def predicted(distance, probability=None, n_samples=8):
    votes = torch.nn.functional.one_hot(distance.argmin(1), distance.shape[1]).double()
    code = {} if probability is None else {"code_probability": probability, "code_entropy": entropy(probability)}
    draws = Draws(class_distance=distance, distance_std=0 * distance, votes=votes, pixel_votes=votes, **code)
    return make_prediction(draws, n_samples=n_samples, nfe=1, micro_batch=1)


def case(n=4000, n_classes=3, factor=2.5, seed=0):
    """Probabilities that are too sure by a known factor, with labels by the true ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    stated = torch.softmax(factor * logits, 1)
    return predicted(2 - factor * logits, stated), labels, torch.softmax(logits, 1)


def test_the_temperature_is_found():
    prediction, labels, true = case()
    scaling = fit_scaling(prediction, labels)
    assert scaling.source == "probability"
    assert 1 / scaling.weight[0][0] == pytest.approx(2.5, rel=0.06)
    assert scaling.nll_after < scaling.nll_before
    scaled = scaling(prediction)
    assert (scaled - true).abs().mean() < 0.02
    expected = -scaled.gather(1, labels[:, None]).log().mean()
    assert scaling.nll_after == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("source", ["probability", "distance"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_distributions_and_lowers_the_loss(method, source):
    prediction, labels, _ = case(n=300)
    scaling = fit_scaling(prediction, labels, method, source)
    scaled = scaling(prediction)
    torch.testing.assert_close(scaled.sum(1), torch.ones(300, dtype=torch.float64))
    assert scaling.nll_after < scaling.nll_before
    if method == "temperature":
        assert torch.equal(scaled.argmax(1), prediction.probability.argmax(1))


def test_a_temperature_is_the_best_of_a_fine_grid():
    prediction, labels, _ = case(n=2000)
    scaling = fit_scaling(prediction, labels)
    logits = prediction.probability.log()
    losses = {
        slope: float(torch.nn.functional.cross_entropy(slope * logits, labels)) for slope in np.linspace(0.1, 2, 381)
    }
    assert scaling.weight[0][0] == pytest.approx(min(losses, key=losses.get), abs=0.01)  # the prior moves it a little


def test_dirichlet_equals_the_logistic_regression_of_scikit_learn_on_many_pictures():
    prediction, labels, _ = case()
    scaling = fit_scaling(prediction, labels, "dirichlet")
    logits = prediction.probability.log().numpy()
    expected = LogisticRegression(C=1e6, max_iter=2000).fit(logits, labels.numpy()).predict_proba(logits)
    assert np.abs(scaling(prediction).numpy() - expected).mean() < 0.002


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["all right", "all wrong", "one class", "one picture", "all the same"])
def test_degenerate_pictures_leave_finite_numbers(method, kind):
    prediction, labels, _ = case(n=1 if kind == "one picture" else 30)
    if kind == "all the same":
        prediction = predicted(torch.ones(30, 3, dtype=torch.float64))
    labels = {
        "all right": prediction.label, "all wrong": (prediction.label + 1) % 3, "one class": 0 * labels,
    }.get(kind, labels)  # fmt: skip
    for source in ("probability", "distance"):
        scaling = fit_scaling(prediction, labels, method, source)
        scaled = scaling(prediction)
        assert scaled.isfinite().all()
        assert scaling.nll_after <= scaling.nll_before + 1e-9
        assert scaled.gather(1, labels[:, None]).log().isfinite().all()


def test_votes_of_one_step_are_left_aside_for_distances():
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(400, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(-6 * distance, 1), 1, generator=generator)[:, 0]
    prediction = predicted(distance)
    scaling = fit_scaling(prediction, labels)
    assert scaling.source == "distance"
    true = torch.softmax(-6 * distance, 1)
    assert (scaling(prediction) - true).abs().mean() < 0.03


def test_it_survives_json():
    prediction, labels, _ = case(n=50)
    for method in METHODS:
        scaling = fit_scaling(prediction, labels, method)
        read = Scaling.from_dict(json.loads(json.dumps(scaling.to_dict())))
        assert read == scaling
        assert torch.equal(read(prediction), scaling(prediction))


def test_the_caller_may_have_switched_gradients_off():
    prediction, labels, _ = case(n=50)
    expected = fit_scaling(prediction, labels)
    with torch.no_grad():
        assert dataclasses.astuple(fit_scaling(prediction, labels)) == dataclasses.astuple(expected)
