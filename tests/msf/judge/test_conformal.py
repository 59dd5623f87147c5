import json

import numpy as np
import pytest
import torch

from msf.judge.conformal import PredictionSets, fit_sets, nonconformity, pictures_needed
from msf.judge.uncertainty import Draws, entropy, make_prediction

METHODS = ["split", "class_conditional", "adaptive", "raps", "distance"]


def predicted(probability, distance=None):
    probability = probability.double()
    distance = 1 - probability if distance is None else distance
    draws = Draws(
        class_distance=distance, distance_std=0 * distance, votes=probability, pixel_votes=probability,
        code_probability=probability, code_entropy=entropy(probability),
    )  # fmt: skip
    return make_prediction(draws, n_samples=8, nfe=1, micro_batch=1)


def case(n, seed, n_classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    logits[:, 0] += 1
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    # What the network says is wrong: too sure, and off. Coverage must hold all the same.
    stated = torch.softmax(2 * logits + 0.5 * torch.randn(n, n_classes, generator=generator), 1)
    return predicted(stated), labels


def test_scores_by_hand():
    prediction = predicted(torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.4, 0.4, 0.1, 0.1]]))
    for method, expected in {
        "split": [[0.5, 0.7, 0.8, 1.0], [0.6, 0.6, 0.9, 0.9]],
        "adaptive": [[0.0, 0.5, 0.8, 1.0], [0.0, 0.0, 0.8, 0.8]],
        "raps": [[0.0, 0.5, 0.9, 1.2], [0.0, 0.0, 0.9, 0.9]],
        "distance": [[0.0, 0.2, 0.3, 0.5], [0.0, 0.0, 0.3, 0.3]],
    }.items():
        found = nonconformity(prediction, method)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_is_what_was_promised_on_average_over_calibrations(method, level):
    coverages, sizes = [], []
    test, test_labels = case(1500, 10_000)
    for seed in range(60):
        calibration, labels = case(150, seed)
        inside = fit_sets(calibration, labels, level, method)(test)
        coverages.append(inside.gather(1, test_labels[:, None]).double().mean().item())
        sizes.append(inside.double().sum(1).mean().item())
    mean, error = np.mean(coverages), np.std(coverages) / np.sqrt(60) + np.sqrt(level * (1 - level) / 1500)
    assert mean > level - 3 * error
    assert np.mean(sizes) < 4
    if method in ("split", "distance"):  # scores without ties: neither is more covered than need be
        assert mean < level + 2 / 150 + 3 * error


def test_every_class_is_covered_by_itself_where_that_was_asked_for():
    test, test_labels = case(3000, 10_000)
    covered = {method: [] for method in ("split", "class_conditional")}
    for seed in range(40):
        calibration, labels = case(400, seed)
        for method, values in covered.items():
            hit = fit_sets(calibration, labels, 0.9, method)(test).gather(1, test_labels[:, None])[:, 0]
            values.append([hit[test_labels == k].double().mean().item() for k in range(4)])
    worst = {method: np.mean(values, axis=0).min() for method, values in covered.items()}
    assert worst["class_conditional"] > 0.88
    assert worst["split"] < worst["class_conditional"]


def test_the_quantile_is_the_one_of_n_plus_one():
    labels = torch.zeros(19, dtype=torch.int64)
    first = torch.linspace(0.05, 0.95, 19)
    prediction = predicted(torch.stack([first, 1 - first], 1))
    assert fit_sets(prediction, labels, 0.95, "split").quantile == (pytest.approx(0.95),)  # the 19th of 19
    assert fit_sets(prediction, labels, 0.9, "split").quantile == (pytest.approx(0.90),)
    assert fit_sets(prediction, labels, 0.96, "split").quantile == (None,)


@pytest.mark.parametrize(("level", "n"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_so_many_pictures_are_needed_and_no_more(level, n):
    assert pictures_needed(level) == n
    prediction = predicted(torch.tensor([[0.7, 0.3]]).expand(n, 2))
    labels = torch.zeros(n, dtype=torch.int64)
    assert not fit_sets(prediction, labels, level, "split").says_nothing
    if n > 1:
        few = predicted(torch.tensor([[0.7, 0.3]]).expand(n - 1, 2))
        sets = fit_sets(few, labels[1:], level, "split")
        assert sets.says_nothing
        assert sets(few).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_set_is_empty_and_degenerate_pictures_are_covered(method):
    certain = torch.eye(3, dtype=torch.float64).repeat(10, 1)
    for labels, wanted in (
        (torch.arange(3).repeat(10), 1), (torch.arange(1, 4).repeat(10) % 3, 3),
    ):  # all right, all wrong  # fmt: skip
        sets = fit_sets(predicted(certain), labels, 0.8, method)
        inside = sets(predicted(certain))
        assert inside.any(1).all()
        assert inside.gather(1, labels[:, None]).all()
        assert (inside.sum(1) == wanted).all()
    even = predicted(torch.full((30, 3), 1 / 3))
    assert fit_sets(even, torch.arange(3).repeat(10), 0.8, method)(even).all()


def test_sets_of_split_agree_with_mapie():
    pytest.importorskip("mapie", reason="mapie is not installed")
    from mapie.classification import SplitConformalClassifier

    class Stated:
        """What the network says, in the shape that MAPIE takes."""

        classes_ = np.arange(4)

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return x

        def predict(self, x):
            return x.argmax(1)

        def __sklearn_is_fitted__(self):
            return True

    calibration, labels = case(200, 0)
    test, _ = case(300, 1)
    peer = SplitConformalClassifier(Stated(), confidence_level=[0.8, 0.95], conformity_score="lac", prefit=True)
    peer.conformalize(calibration.probability.numpy(), labels.numpy())
    _, expected = peer.predict_set(test.probability.numpy())
    for column, level in enumerate((0.8, 0.95)):
        ours = fit_sets(calibration, labels, level, "split")(test).numpy()
        nonempty = expected[:, :, column].any(1)  # ours are never empty
        assert (ours[nonempty] == expected[nonempty, :, column]).mean() > 0.999
        assert nonempty.mean() > 0.9


def test_it_survives_json():
    prediction, labels = case(80, 0)
    for method in METHODS:
        sets = fit_sets(prediction, labels, 0.9, method)
        read = PredictionSets.from_dict(json.loads(json.dumps(sets.to_dict())))
        assert read == sets
        assert torch.equal(read(prediction), sets(prediction))


def test_bad_arguments_are_refused():
    prediction, labels = case(10, 0)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\); got 1"):
        fit_sets(prediction, labels, 1, "split")
    with pytest.raises(ValueError, match="sets-method must be one of split, .*; got 'mean'"):
        fit_sets(prediction, labels, 0.9, "mean")
