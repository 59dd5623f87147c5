"""What a new uncertainty score must do, asked of the toy: run where it was added, not collected here."""

import torch

from msf.judge.metrics import prediction_metrics
from msf.judge.uncertainty import Draws, make_prediction


def test_it_is_in_every_output_and_higher_where_a_prediction_is_less_certain():
    votes = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    draws = Draws(class_distance=1 - votes, distance_std=0 * votes, votes=votes, pixel_votes=votes)
    prediction = make_prediction(draws, n_samples=2, nfe=1, micro_batch=2)
    assert prediction.scores()["gini"].tolist() == [0.0, 0.5]
    assert "gini" in prediction_metrics(prediction, torch.tensor([0, 1]))["scores"]
