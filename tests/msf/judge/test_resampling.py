"""Every figure of every resample equals the plain function on the pictures that the resample holds, repeated."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from msf.judge.intervals import metric_intervals
from msf.judge.metrics import COVERAGES, RISKS, prediction_metrics
from msf.judge.ranking import RankedErrors
from msf.judge.reliability import calibration_error, calibration_error_figure
from msf.judge.resampling import Resamples, area, interval, mean_of, share
from msf.judge.selective import augrc, aurc, coverage_at_risk, e_aurc, risk_at_coverage
from msf.judge.uncertainty import Draws, entropy, make_prediction

N = 40


def case(seed, n_levels):
    rng = np.random.default_rng(seed)
    score = rng.random(N) if n_levels is None else rng.integers(0, n_levels, N).astype(float)
    return score, rng.random(N) < 0.3


def repeated(counts, *arrays):
    rows = np.repeat(np.arange(len(counts)), counts.astype(int))
    return [array[rows] for array in arrays]


def resampled(seed=1, n_resamples=12):
    return np.concatenate(list(Resamples(N, n_resamples, seed).blocks()))


@pytest.mark.parametrize("n_levels", [None, 1, 4])
def test_selective_figures(n_levels):
    score, is_error = case(0, n_levels)
    figures = RankedErrors(score, is_error).figures(COVERAGES, RISKS)
    counts = resampled()
    found = {name: figure(counts) for name, figure in figures.items()}
    for number, row in enumerate(counts):
        s, e = (torch.from_numpy(each) for each in repeated(row, score, is_error))
        expected = {"aurc": aurc(s, e), "e_aurc": e_aurc(s, e), "augrc": augrc(s, e)}
        expected |= {f"accuracy_at_{c:g}": 1 - risk_at_coverage(s, e, c) for c in COVERAGES}
        expected |= {f"coverage_at_{r:g}": coverage_at_risk(s, e, r) for r in RISKS}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("is_error", [np.zeros(N, bool), np.ones(N, bool)], ids=["all right", "all wrong"])
def test_selective_figures_where_there_is_nothing_to_rank(is_error):
    figures = RankedErrors(case(0, 3)[0], is_error).figures(COVERAGES, RISKS)
    wrong = float(is_error[0])
    for name, figure in figures.items():
        values = figure(resampled())
        wanted = {"aurc": wrong, "e_aurc": 0.0, "augrc": wrong / 2}.get(name, 1 - wrong)
        np.testing.assert_allclose(values, wanted, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("n_levels", [None, 3])
def test_areas_shares_and_calibration_errors(n_levels):
    score, is_positive = case(2, n_levels)
    confidence = (score - score.min()) / np.ptp(score)
    counts = resampled()
    figures = {
        "area": area(score, is_positive),
        "share": share(is_positive),
        "part": share(is_positive, score > 0.5),
        "mean": share(score),
        "equal": calibration_error_figure(confidence, is_positive, "equal_width", 5),
        "adaptive": calibration_error_figure(confidence, is_positive, "adaptive", 5),
    }
    found = {name: figure(counts) for name, figure in figures.items()}
    for number, row in enumerate(counts):
        s, p, c = repeated(row, score, is_positive, confidence)
        assert found["area"][number] == pytest.approx(roc_auc_score(p, s), abs=1e-12)
        assert found["share"][number] == pytest.approx(p.mean(), abs=1e-12)
        assert found["part"][number] == pytest.approx(p[s > 0.5].mean(), abs=1e-12)
        assert found["mean"][number] == pytest.approx(s.mean(), abs=1e-12)
        assert found["equal"][number] == pytest.approx(calibration_error(c, p, "equal_width", 5), abs=1e-12)
        assert found["adaptive"][number] == pytest.approx(calibration_error(c, p, "adaptive", 5), abs=1e-12)


def test_what_is_undefined_is_nan_and_left_out_of_a_mean():
    nothing, all_of_them = np.zeros(N, bool), np.ones(N, bool)
    with np.errstate(all="raise"):
        assert np.isnan(area(np.arange(N) * 1.0, nothing)(resampled())).all()
        assert np.isnan(share(all_of_them, nothing)(resampled())).all()
        assert (mean_of([share(all_of_them), share(all_of_them, nothing)])(resampled()) == 1).all()
    assert interval(np.array([np.nan, 1.0])) == {"value": None, "low": None, "high": None}
    assert interval(np.array([0.5, np.nan])) == {"value": 0.5, "low": None, "high": None}


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = Resamples(120, 300, seed).intervals({"share": share(rng.random(120) < 0.8)})["share"]
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= 0.8 <= found["high"]
    assert 180 <= hits <= 198  # 95 % of 200, within three standard deviations and what the percentile method lacks


def test_groups_are_resampled_as_a_whole_and_make_intervals_honest():
    groups = np.repeat(np.arange(30), 4)
    counts = np.concatenate(list(Resamples(120, 50, 0, groups).blocks()))
    per_group = counts.reshape(len(counts), 30, 4)
    assert (per_group == per_group[:, :, :1]).all()
    assert (per_group[:, :, 0].sum(1) == 30).all()

    rng = np.random.default_rng(0)
    hits = {"groups": 0, "pictures": 0}
    for seed in range(200):
        figure = {"share": share(np.repeat(rng.random(30) < 0.7, 4))}  # all pictures of a patient alike
        for name, given in (("groups", groups), ("pictures", None)):
            found = Resamples(120, 200, seed, given).intervals(figure)["share"]
            hits[name] += found["low"] <= 0.7 <= found["high"]
    assert hits["groups"] > 170
    assert hits["pictures"] < 150


def test_intervals_are_around_the_figures_of_the_prediction():
    generator = torch.Generator().manual_seed(0)
    probability = torch.softmax(3 * torch.randn(N, 3, generator=generator), 1).double()
    draws = Draws(
        class_distance=1 - probability, distance_std=0 * probability, votes=probability, pixel_votes=probability,
        code_probability=probability, code_entropy=0.9 * entropy(probability),
    )  # fmt: skip
    prediction = make_prediction(draws, n_samples=4, nfe=1, micro_batch=1)
    labels = torch.multinomial(probability, 1, generator=generator)[:, 0]
    metrics = prediction_metrics(prediction, labels)
    found = metric_intervals(prediction, labels, Resamples(N, 100, 0))
    assert found["overall"].keys() >= {"accuracy", "balanced_accuracy", "auc_medmnist", "nll", "brier", "ece_adaptive"}
    for name, entry in found["overall"].items():
        assert entry["value"] == pytest.approx(metrics[name], abs=1e-12), name
        assert entry["low"] <= entry["high"], name
    assert found["score_intervals"].keys() == metrics["scores"].keys()
    for score, entries in found["score_intervals"].items():
        for name, entry in entries.items():
            assert entry["value"] == pytest.approx(metrics["scores"][score][name], abs=1e-12), (score, name)
    assert found["intervals"] == {
        "method": "percentile bootstrap over pictures", "level": 0.95, "n_resamples": 100, "seed": 0,
    }  # fmt: skip


def test_one_picture_has_figures_and_no_width():
    draws = Draws(
        class_distance=torch.tensor([[0.1, 0.9]]), distance_std=torch.zeros(1, 2), votes=torch.tensor([[1.0, 0.0]]),
        pixel_votes=torch.tensor([[1.0, 0.0]]),
    )  # fmt: skip
    prediction = make_prediction(draws, n_samples=1, nfe=4, micro_batch=1)
    for label in (0, 1):
        labels = torch.tensor([label])
        metrics = prediction_metrics(prediction, labels)
        found = metric_intervals(prediction, labels, Resamples(1, 10, 0))
        assert metrics["aurc"] == label
        assert found["overall"]["accuracy"] == {"value": 1.0 - label, "low": 1.0 - label, "high": 1.0 - label}
        assert found["overall"]["auc_macro_ovr"]["value"] is None
