import json
import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score

from msf.data import ImageDataset, Split
from msf.evaluate import evaluate
from msf.judge.metrics import NLL_PROBABILITY_FLOOR, prediction_metrics
from msf.judge.selective import augrc, aurc, e_aurc
from msf.judge.uncertainty import UNCERTAINTY_SCORES, Draws, entropy, make_prediction
from msf_kernels.sampling import SettledVote


def _prediction(n=60, n_classes=4, seed=0, votes=None):
    generator = torch.Generator().manual_seed(seed)
    distance = torch.rand(n, n_classes, generator=generator) + 0.1
    probability = torch.softmax(-5 * distance + torch.rand(n, n_classes, generator=generator), 1)
    code = {"code_probability": probability, "code_entropy": 0.9 * entropy(probability)} if votes is None else {}
    draws = Draws(
        class_distance=distance,
        distance_std=0.1 * distance,
        votes=probability if votes is None else votes,
        pixel_votes=probability,
        **code,
    )
    prediction = make_prediction(draws, n_samples=8, nfe=1, micro_batch=2)
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.7,
        prediction.label,
        torch.randint(0, n_classes, (n,), generator=generator),
    )
    return prediction, labels


def test_accuracy_and_balanced_accuracy_equal_scikit_learn():
    prediction, labels = _prediction()
    metrics = prediction_metrics(prediction, labels)
    assert metrics["n_images"] == 60
    assert metrics["accuracy"] == pytest.approx((prediction.label == labels).double().mean().item(), abs=1e-12)
    expected = balanced_accuracy_score(labels.numpy(), prediction.label.numpy())
    assert metrics["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_the_published_auc_is_macro_one_versus_rest_on_minus_distance():
    prediction, labels = _prediction()
    metrics = prediction_metrics(prediction, labels)
    expected = [
        roc_auc_score((labels == index).numpy(), -prediction.class_distance[:, index].double().numpy())
        for index in range(4)
    ]
    assert metrics["auc_macro_ovr"] == pytest.approx(sum(expected) / 4, abs=1e-12)
    assert metrics["auc_medmnist"] == metrics["auc_macro_ovr"]


def test_the_two_class_auc_of_medmnist_reads_the_last_score_column():
    prediction, labels = _prediction(n_classes=2)
    metrics = prediction_metrics(prediction, labels)
    last = roc_auc_score(labels.numpy(), -prediction.class_distance[:, 1].double().numpy())
    first = roc_auc_score(1 - labels.numpy(), -prediction.class_distance[:, 0].double().numpy())
    assert metrics["auc_medmnist"] == pytest.approx(last, abs=1e-12)
    assert metrics["auc_macro_ovr"] == pytest.approx((first + last) / 2, abs=1e-12)
    assert metrics["auc_medmnist"] != metrics["auc_macro_ovr"]


def test_nll_and_brier_equal_scikit_learn():
    prediction, labels = _prediction()
    probability = prediction.probability.double()
    probability = (probability / probability.sum(1, keepdim=True)).numpy()
    metrics = prediction_metrics(prediction, labels)
    assert metrics["nll"] == pytest.approx(log_loss(labels.numpy(), probability, labels=range(4)), abs=1e-6)
    expected = sum(brier_score_loss((labels == index).numpy(), probability[:, index]) for index in range(4))
    assert metrics["brier"] == pytest.approx(expected, abs=1e-6)


def test_ece_equals_a_count_over_fifteen_bins():
    prediction, labels = _prediction(n=300)
    confidence, guess = prediction.probability.double().max(1)
    expected = 0.0
    for index in range(15):
        inside = (confidence >= index / 15) & (confidence < (index + 1) / 15)
        if inside.any():
            gap = (guess[inside] == labels[inside]).double().mean() - confidence[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert prediction_metrics(prediction, labels)["ece"] == pytest.approx(expected, abs=1e-6)


def test_a_probability_above_one_by_rounding_is_not_taken_for_a_logit():
    votes = torch.tensor([[1.0 + 1e-6, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    prediction, _ = _prediction(n=4, n_classes=2, votes=votes)
    metrics = prediction_metrics(prediction, torch.tensor([0, 1, 0, 0]))
    assert metrics["ece"] == pytest.approx(0.25, abs=1e-6)


def test_a_true_class_without_votes_costs_the_documented_floor():
    votes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prediction, _ = _prediction(n=2, n_classes=2, votes=votes)
    metrics = prediction_metrics(prediction, torch.tensor([0, 0]))
    assert metrics["probability_source"] == "votes"
    assert metrics["nll_unsmoothed"] == pytest.approx(-math.log(NLL_PROBABILITY_FLOOR) / 2, abs=1e-9)
    # 8 draws of 2 classes: (8 + 1/2) / 9 and (0 + 1/2) / 9.
    assert metrics["nll"] == pytest.approx(-(math.log(8.5 / 9) + math.log(0.5 / 9)) / 2, abs=1e-9)


def test_every_score_has_its_own_selective_numbers_and_the_published_one_leads():
    prediction, labels = _prediction(n=333)
    metrics = prediction_metrics(prediction, labels)
    is_error = prediction.label != labels
    assert set(metrics["scores"]) == set(UNCERTAINTY_SCORES)
    for name, score in prediction.scores().items():
        numbers = metrics["scores"][name]
        assert numbers["aurc"] == aurc(score, is_error), name
        assert numbers["e_aurc"] == e_aurc(score, is_error), name
        assert numbers["augrc"] == augrc(score, is_error), name
        assert numbers["error_auroc"] == pytest.approx(roc_auc_score(is_error.numpy(), score.double().numpy())), name
    for name in ("aurc", "e_aurc", "augrc", "selective"):
        assert metrics[name] == metrics["scores"]["nearest_distance"][name]


def test_long_curves_are_thinned_and_keep_both_ends():
    prediction, labels = _prediction(n=1000)
    curve = prediction_metrics(prediction, labels)["selective"]
    assert len(curve["coverage"]) == len(curve["risk"]) == 200
    assert curve["coverage"][0] == 1 / 1000
    assert curve["coverage"][-1] == 1.0
    assert curve["risk"][-1] == pytest.approx((prediction.label != labels).double().mean().item())


def test_short_curves_keep_every_picture():
    prediction, labels = _prediction(n=7)
    curve = prediction_metrics(prediction, labels)["selective"]
    assert curve["coverage"] == pytest.approx([k / 7 for k in range(1, 8)])


def test_an_absent_class_is_named_and_left_out_of_the_averages():
    prediction, labels = _prediction()
    labels = torch.where(labels == 2, 3, labels)
    metrics = prediction_metrics(prediction, labels, class_names=("a", "b", "c", "d"))
    assert len(metrics["warnings"]) == 1
    assert metrics["warnings"][0].startswith("class c does not occur")
    expected = [
        roc_auc_score((labels == index).numpy(), -prediction.class_distance[:, index].double().numpy())
        for index in (0, 1, 3)
    ]
    assert metrics["auc_macro_ovr"] == pytest.approx(sum(expected) / 3, abs=1e-12)
    recalls = [(prediction.label[labels == index] == index).double().mean().item() for index in (0, 1, 3)]
    assert metrics["balanced_accuracy"] == pytest.approx(sum(recalls) / 3, abs=1e-12)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_single_class_leaves_the_auc_undefined_and_the_rest_valid_json(n_classes):
    prediction, _ = _prediction(n_classes=n_classes)
    metrics = prediction_metrics(prediction, torch.zeros(60, dtype=torch.int64))
    assert metrics["auc_macro_ovr"] is None
    assert metrics["auc_medmnist"] is None
    assert len(metrics["warnings"]) == n_classes - 1
    json.dumps(metrics, allow_nan=False)


def test_no_errors_leave_the_error_auroc_undefined():
    prediction, _ = _prediction()
    metrics = prediction_metrics(prediction, prediction.label)
    assert metrics["accuracy"] == 1.0
    assert metrics["aurc"] == metrics["e_aurc"] == metrics["augrc"] == 0.0
    assert metrics["scores"]["margin"]["error_auroc"] is None
    json.dumps(metrics, allow_nan=False)


def test_labels_that_do_not_fit_are_refused():
    prediction, labels = _prediction()
    with pytest.raises(TypeError, match="labels must be int64; got torch.int32"):
        prediction_metrics(prediction, labels.int())
    with pytest.raises(ValueError, match=r"labels must be \[N\] with N = 60 >= 1, one per picture; got \[59\]"):
        prediction_metrics(prediction, labels[1:])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\); got values in \[0, 9\]"):
        prediction_metrics(prediction, torch.where(torch.arange(60) == 0, 9, labels * 0))
    with pytest.raises(ValueError, match=r"class_names must be empty or one per class \(4\); got 1"):
        prediction_metrics(prediction, labels, class_names=("a",))


def _dataset(n_classes=3, n=9):
    generator = torch.Generator().manual_seed(0)

    def split(size):
        images = torch.randint(0, 256, (size, 10, 10, 1), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(size) % n_classes)

    return ImageDataset(
        name="squares",
        train=split(2 * n),
        val=split(n + 1),
        test=split(n),
        class_names=tuple("abcdefgh"[:n_classes]),
        flips=False,
        is_ordinal=False,
        licence="",
        citation="",
        fingerprint="0",
    )


CONTRACT = {
    "split", "n_images", "accuracy", "balanced_accuracy", "auc_macro_ovr", "auc_medmnist", "nll", "brier", "ece",
    "aurc", "e_aurc", "augrc", "selective", "n_samples", "n_steps", "method", "nfe", "seed", "samples_per_second",
    "scores", "probability_source",
}  # fmt: skip


def test_evaluation_of_a_split_has_every_agreed_figure_and_is_valid_json(make_flow):
    dataset = _dataset()
    flow = make_flow(code="simplex")
    calls = []
    metrics = evaluate(
        flow, dataset, "val", n_samples=4, n_steps=2, method="heun", seed=5, micro_batch=8,
        progress=lambda n_done, n_total: calls.append((n_done, n_total)),
    )  # fmt: skip
    assert set(metrics) >= CONTRACT
    json.dumps(metrics, allow_nan=False)
    assert (metrics["split"], metrics["n_images"], metrics["nfe"], metrics["micro_batch"]) == ("val", 10, 4, 8)
    assert metrics["probability_source"] == "votes"
    assert metrics["samples_per_second"] == pytest.approx(40 / metrics["seconds"])
    assert calls[-1] == (40, 40)
    prediction = flow.classify(dataset.val.images, n_samples=4, n_steps=2, method="heun", seed=5, micro_batch=8)
    for name, value in prediction_metrics(prediction, dataset.val.labels, class_names=("a", "b", "c")).items():
        assert metrics[name] == value, name


def test_settings_that_are_not_given_are_those_of_the_configuration(make_flow):
    flow = make_flow(code="simplex")
    metrics = evaluate(flow, _dataset())
    inference = flow.config.inference
    assert metrics["split"] == "test"
    assert metrics["n_samples"] == inference.n_samples
    assert metrics["n_steps"] == inference.classify_steps
    assert metrics["method"] == inference.classify_method
    assert metrics["flow"] == inference.flow
    assert metrics["probability_source"] == "mean_code"


def test_speed_counts_the_draws_that_were_made(make_flow):
    metrics = evaluate(make_flow(), _dataset(), n_samples=100, stop=SettledVote(alpha=0.1))
    assert metrics["n_samples"] == 100
    assert metrics["mean_n_samples"] < 100
    assert metrics["samples_per_second"] == pytest.approx(9 * metrics["mean_n_samples"] / metrics["seconds"])


def test_data_with_other_classes_than_the_model_are_refused(make_flow):
    with pytest.raises(ValueError, match="dataset must have the model's 3 classes; 'squares' has 4"):
        evaluate(make_flow(), _dataset(n_classes=4))


def test_an_unknown_split_is_refused(make_flow):
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'holdout'"):
        evaluate(make_flow(), _dataset(), "holdout")
