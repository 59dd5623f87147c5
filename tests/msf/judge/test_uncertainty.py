import csv
import dataclasses
import io
import json
import math

import pytest
import torch

from msf.judge.uncertainty import UNCERTAINTY_SCORES, Draws, entropy, make_prediction, smoothed_votes

DISTANCE = torch.tensor([[0.4, 0.1, 0.9], [0.2, 0.3, 0.25]])
VOTES = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
PIXEL_VOTES = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.4, 0.0]])


def _predict(**changes):
    arguments = {
        "class_distance": DISTANCE,
        "distance_std": torch.full_like(DISTANCE, 0.05),
        "votes": VOTES,
        "pixel_votes": PIXEL_VOTES,
        "n_samples": 4,
        "nfe": 1,
        "micro_batch": 2,
    }
    given = arguments | changes
    fields = [entry.name for entry in dataclasses.fields(Draws)]
    draws = Draws(**{name: given.pop(name) for name in fields if name in given})
    return make_prediction(draws, **given)


def test_entropy_is_in_nats_and_takes_zero_as_no_information():
    probability = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    expected = torch.tensor([math.log(2), 0.0, math.log(3)], dtype=torch.float64)
    assert torch.allclose(entropy(probability), expected, atol=1e-15)


def test_the_label_is_the_class_of_the_smallest_mean_distance_by_default():
    prediction = _predict()
    assert prediction.label.tolist() == [1, 0]
    assert prediction.decision == "distance"


def test_the_label_can_follow_the_pixels_or_the_probability():
    assert _predict(decision="pixel_votes").label.tolist() == [2, 0]
    code_probability = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    prediction = _predict(
        decision="probability", code_probability=code_probability, code_entropy=torch.tensor([0.1, 0.1])
    )
    assert prediction.label.tolist() == [2, 1]


def test_the_published_score_is_the_distance_to_the_predicted_class_whatever_the_rule():
    assert _predict().nearest_distance.tolist() == pytest.approx([0.1, 0.2])
    assert _predict(decision="pixel_votes").nearest_distance.tolist() == pytest.approx([0.9, 0.2])


@pytest.mark.parametrize(
    ("decision", "expected"), [("distance", [0.3, 0.05]), ("pixel_votes", [0.5, 0.2]), ("probability", [0.5, 1.0])]
)
def test_the_margin_is_the_lead_of_the_label_in_what_the_decision_compares(decision, expected):
    assert _predict(decision=decision).margin.tolist() == pytest.approx(expected)


def test_a_rule_that_counts_votes_decides_by_them():
    votes = torch.tensor([[0.25, 0.0, 0.75], [0.4, 0.4, 0.2]])
    prediction = _predict(votes=votes, stopped_by="votes", n_samples=torch.tensor([8, 10]))
    assert prediction.label.tolist() == [2, 0]
    assert prediction.margin.tolist() == pytest.approx([0.5, 0.0])
    assert (prediction.decision, prediction.probability_source) == ("votes", "stopped_votes")
    other = _predict(votes=votes, stopped_by="rule", n_samples=torch.tensor([8, 10]))
    assert (other.decision, other.probability_source) == ("distance", "stopped_votes")
    assert other.label.tolist() == [1, 0]


def test_entropies_of_the_same_counts_are_equal_whatever_their_order():
    for n in (3, 7, 10, 64, 100):
        counts = [torch.randperm(6, generator=torch.Generator().manual_seed(n)) for _ in range(20)]
        shares = torch.tensor([n - 6, 3, 2, 1, 0, 0]).clamp(min=0).double()
        shares = shares / shares.sum()
        assert len({entropy(shares[order]).item() for order in counts}) == 1
    # Two distributions of one entropy that are no permutations: four votes of one class, or two each of two.
    same = torch.tensor([[4.0, 1, 1, 1, 1], [2, 2, 2, 2, 0]], dtype=torch.float64) / 8
    assert entropy(same)[0] == entropy(same)[1]


def test_smoothed_votes_are_never_zero():
    votes = torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    expected = torch.tensor([[4.5 / 5, 0.5 / 5], [3.5 / 5, 1.5 / 5]], dtype=torch.float64)
    torch.testing.assert_close(smoothed_votes(votes, 4), expected)
    per_picture = smoothed_votes(votes, torch.tensor([4, 8]))
    torch.testing.assert_close(per_picture[1], torch.tensor([6.5 / 9, 2.5 / 9], dtype=torch.float64))


def test_votes_as_probability_leave_no_entropy_inside_a_draw():
    prediction = _predict()
    assert prediction.probability_source == "votes"
    assert torch.equal(prediction.probability, VOTES)
    assert prediction.expected_entropy.tolist() == [0.0, 0.0]
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert prediction.predictive_entropy.tolist() == pytest.approx([expected, 0.0], abs=1e-7)
    assert torch.equal(prediction.mutual_information, prediction.predictive_entropy)


def test_code_probabilities_split_the_entropy_into_expected_and_mutual():
    generator = torch.Generator().manual_seed(0)
    per_draw = torch.rand(2, 50, 3, generator=generator, dtype=torch.float64)
    per_draw = per_draw / per_draw.sum(-1, keepdim=True)
    prediction = _predict(code_probability=per_draw.mean(1), code_entropy=entropy(per_draw).mean(1))
    assert prediction.probability_source == "mean_code"
    # Mutual information is the mean Kullback-Leibler divergence of the draws from their mean.
    mean = per_draw.mean(1, keepdim=True)
    divergence = (per_draw * (per_draw / mean).log()).sum(-1).mean(1)
    assert torch.allclose(prediction.mutual_information, divergence, atol=1e-14)


def test_rounding_never_makes_mutual_information_negative():
    probability = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    prediction = _predict(code_probability=probability, code_entropy=entropy(probability) + 1e-7)
    assert prediction.mutual_information.tolist() == [0.0, 0.0]


def test_every_score_is_larger_for_the_more_uncertain_picture():
    # Picture 0: draws agree, near its code, far from the others. Picture 1: the opposite in every respect.
    surer = _predict(
        class_distance=torch.tensor([[0.1, 2.0], [0.9, 1.0]]),
        distance_std=torch.zeros(2, 2),
        votes=torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
        pixel_votes=torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
        n_samples=8,
        nfe=1,
        micro_batch=2,
        code_probability=torch.tensor([[0.99, 0.01], [0.5, 0.5]]),
        code_entropy=torch.tensor([0.05, 0.4]),
    )
    scores = surer.scores()
    assert set(scores) == set(UNCERTAINTY_SCORES)
    for name, score in scores.items():
        assert score.shape == (2,), name
        assert score[1] > score[0], name


def test_the_dictionary_is_valid_json_and_undefined_numbers_become_null():
    prediction = _predict(
        n_samples=torch.tensor([1, 4]),
        distance_std=torch.tensor([[math.nan] * 3, [0.1, 0.1, 0.1]]),
        sample_distance=torch.full((2, 1, 3), math.nan),
    )
    read = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
    assert read["label"] == [1, 0]
    assert read["n_samples"] == [1, 4]
    assert read["distance_std"][0] == [None] * 3
    assert read["sample_distance"] == [[[None] * 3]] * 2
    assert read["probability_source"] == "votes"


def test_rows_have_one_column_per_class_and_survive_a_csv_file():
    rows = _predict().to_rows(("normal", "early", "late"))
    assert len(rows) == 2
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    read = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [row["label_name"] for row in read] == ["early", "normal"]
    assert [row["index"] for row in read] == ["0", "1"]
    assert float(read[0]["class_distance_late"]) == pytest.approx(0.9)
    assert float(read[1]["votes_normal"]) == 1.0
    assert float(read[1]["nearest_distance"]) == pytest.approx(0.2)
    assert read[0]["n_samples"] == "4"


def test_rows_number_the_classes_when_they_have_no_names():
    row = _predict(n_samples=torch.tensor([7, 9])).to_rows()[0]
    assert row["n_samples"] == 7
    assert row["label_name"] == "1"
    assert row["probability_1"] == 0.75


def test_rows_refuse_a_wrong_number_of_names():
    with pytest.raises(ValueError, match=r"class_names must be empty or one per class \(3\); got 2"):
        _predict().to_rows(("a", "b"))


def test_an_unknown_decision_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="decision must be one of distance, pixel_votes, probability; got 'mean'"):
        _predict(decision="mean")


def test_half_of_the_code_statistics_is_refused():
    with pytest.raises(ValueError, match="must be given together"):
        _predict(code_probability=VOTES)


def test_the_length_is_the_number_of_pictures():
    assert len(_predict()) == 2


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("a", "b", "c"), ("a", "b", "c")),
        (("x", "x", "y"), ("x (0)", "x (1)", "y")),
        (("", "", ""), (" (0)", " (1)", " (2)")),
        (("source", "b", "c"), ("source (0)", "b", "c")),  # `probability_source` is another column
    ],
)
def test_no_class_loses_its_columns_whatever_the_names(names, columns):
    prediction = _predict()
    row = prediction.to_rows(names)[0]
    assert [row[f"probability_{column}"] for column in columns] == prediction.probability[0].tolist()
    assert [row[f"votes_{column}"] for column in columns] == prediction.votes[0].tolist()
    assert row["probability_source"] == prediction.probability_source
    assert row["label_name"] == names[row["label"]]


def test_a_picture_without_a_label_has_no_name_of_one():
    prediction = _predict()
    prediction = dataclasses.replace(prediction, label=torch.full_like(prediction.label, -1))
    assert {row["label_name"] for row in prediction.to_rows(("a", "b", "c"))} == {None}
