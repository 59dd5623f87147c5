"""The suite that compares decisions: every candidate has every figure, and peers are what they are called."""

import importlib.util
import math

import pytest
import torch
from torch.nn import functional

from benchmarks.context import Context
from benchmarks.peers import Unavailable, resnet
from benchmarks.rows import RowWriter
from benchmarks.suites import decisions
from msf.data import ImageDataset, Split

CPU = torch.device("cpu")
METRICS = {
    *decisions.FIGURES, "aurc", "aurc:nearest_distance", "training", "evaluations", "processor time",
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """Run a job as quickly as it can be."""

    def run():
        monkeypatch.setattr(decisions, "SEEDS", (0,))
        monkeypatch.setattr(decisions, "_N_TIMED", 1)
        monkeypatch.setattr(resnet, "N_PASSES", 2)
        context = Context(CPU, RowWriter("decisions", CPU), quick=True)
        next(iter(decisions.jobs())).measure(context)
        return context.writer.rows

    return run


def test_without_torchvision_ours_is_measured_and_the_reason_is_a_row(measured, monkeypatch):
    def missing(*_, **__):
        raise Unavailable("torchvision cannot be imported")

    monkeypatch.setattr(resnet, "_models", missing)
    rows = measured()
    assert {row.metric for row in rows if row.variant == "ours"} == METRICS
    assert [row.note for row in rows if row.variant == "resnet18"] == ["torchvision cannot be imported"]


@pytest.mark.slow
def test_every_candidate_has_every_figure(measured):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    rows = measured()
    found = {}
    for row in rows:
        assert row.median is not None, row
        assert math.isfinite(row.median), row
        found.setdefault(row.variant, set()).add(row.metric)
    assert set(found) == {"ours", "resnet18", "resnet18-temperature", "resnet18-mc-dropout", "resnet18-ensemble-3"}
    assert all(metrics == METRICS for metrics in found.values())
    by_name = {(row.variant, row.metric): row for row in rows}
    assert by_name["resnet18-temperature", "accuracy"].median == by_name["resnet18", "accuracy"].median
    assert by_name["resnet18-mc-dropout", "evaluations"].median == 2
    assert by_name["resnet18-ensemble-3", "evaluations"].median == 3
    assert "(" in by_name["ours", "accuracy"].note.partition("seed 0: ")[2]


def test_several_members_are_averaged_and_their_disagreement_is_kept():
    members = [torch.tensor([[0.9, 0.1], [1.0, 0.0]]), torch.tensor([[0.3, 0.7], [1.0, 0.0]])]
    prediction = resnet.as_prediction(members)
    torch.testing.assert_close(prediction.probability, torch.tensor([[0.6, 0.4], [1.0, 0.0]]).double())
    assert prediction.label.tolist() == [0, 0]
    torch.testing.assert_close(prediction.votes, torch.tensor([[0.5, 0.5], [1.0, 0.0]]).double())
    assert prediction.mutual_information[0] > 0.1
    assert prediction.mutual_information[1] == 0
    torch.testing.assert_close(prediction.scores()["least_confidence"], torch.tensor([0.4, 0.0], dtype=torch.float64))


class Scaled(torch.nn.Module):
    """Logits that are right probabilities, made three times too sure; pictures are their own logits."""

    def forward(self, pictures):
        return 3 * (pictures[:, 0, 0, :2] + 1) * 2


def test_the_temperature_undoes_what_makes_a_network_too_sure():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4000, 2, 2, 1), generator=generator, dtype=torch.uint8)
    wanted = (images[:, 0, :, 0].float() / 127.5) * 2
    labels = torch.multinomial(functional.softmax(wanted, 1), 1, generator=generator)[:, 0]
    split = Split(images, labels)
    data = ImageDataset(
        name="x", train=split, val=split, test=split, class_names=("a", "b"), flips=False, is_ordinal=False,
        licence="", citation="", fingerprint="x",
    )  # fmt: skip
    assert resnet.temperature_of(Scaled(), data) == pytest.approx(3.0, rel=0.15)


def test_dropout_is_random_only_where_it_is_asked_to_be():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4))
    images = torch.full((8, 2, 2, 1), 200, dtype=torch.uint8)
    split = Split(images, torch.zeros(8, dtype=torch.long))
    data = ImageDataset(
        name="x", train=split, val=split, test=split, class_names=("a", "b"), flips=False, is_ordinal=False,
        licence="", citation="", fingerprint="x",
    )  # fmt: skip
    torch.manual_seed(0)
    assert torch.equal(resnet.logits(network, split, data), resnet.logits(network, split, data))
    first = resnet.logits(network, split, data, is_random=True)
    assert not torch.equal(first, resnet.logits(network, split, data, is_random=True))
    assert not network[2].training
