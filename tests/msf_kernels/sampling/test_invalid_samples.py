"""NaN, infinity and labels that are none never vote, never settle, and end in an error that keeps the other inputs."""

import re

import numpy as np
import pytest
import torch

from msf_kernels.sampling import (
    CapturedTrajectory,
    InvalidSamplesError,
    Mean,
    MeanEntropy,
    MeanVariance,
    SettledVote,
    Votes,
    draw,
    sample_flow,
)

BAD = [float("nan"), float("inf"), -float("inf")]
INPUTS = torch.tensor([[0.0, 5.0, 9.0], [5.0, 0.0, 9.0], [9.0, 5.0, 0.0], [1.0, 0.0, 2.0]])
STATISTICS = {
    "moments": MeanVariance("distance"),
    "mean": Mean("distance"),
    "votes": Votes("distance"),
    "entropy": MeanEntropy("probability"),
}


def distances(x, noise):
    distance = x + 0.01 * noise
    return {"distance": distance, "probability": torch.softmax(-distance, 1)}


def spoiled(value, inputs=(1, 2), above=1.5):
    """Spoil the first class of some inputs where the noise is large."""

    def trajectory(x, noise):
        readout = distances(x, noise)
        is_bad = torch.stack([(x == INPUTS[i]).all(1) for i in inputs]).any(0) & (noise[:, 2] > above)
        readout["distance"] = torch.where(is_bad[:, None] & (torch.arange(3) == 0), value, readout["distance"])
        return readout

    return trajectory


def first_bad(value, i):
    clean = draw(lambda x, noise: noise, INPUTS, 150, (3,), keep_samples=True).samples["readout"]
    return int((clean[i, :, 2] > 1.5).nonzero()[0])


@pytest.mark.parametrize("micro_batch", [5, 64])
@pytest.mark.parametrize("value", BAD)
def test_the_first_offending_input_and_sample_are_named_and_the_others_are_kept(value, micro_batch):
    options = {"statistics": STATISTICS, "keep_samples": "distance", "micro_batch": micro_batch}
    with pytest.raises(InvalidSamplesError) as caught:
        draw(spoiled(value), INPUTS, 150, (3,), **options)
    error, clean = caught.value, draw(distances, INPUTS, 150, (3,), **options)
    sample = first_bad(value, 1)
    assert (error.input_index, error.sample_index, error.readout) == (1, sample, "distance")
    assert f"readout 'distance' must be finite; sample {sample} of input 1 is not so" in str(error)
    assert error.result.first_invalid.tolist() == [-1, sample, first_bad(value, 2), -1]
    for name, results in clean.statistics.items():
        for key, expected in results.items():
            actual = error.result.statistics[name][key]
            assert torch.equal(actual[[0, 3]], expected[[0, 3]])
            if actual.is_floating_point():
                assert bool(actual[[1, 2]].isnan().all())
    assert torch.equal(error.result.samples["distance"][[0, 3]], clean.samples["distance"][[0, 3]])
    assert clean.first_invalid.tolist() == [-1] * 4


@pytest.mark.parametrize("rule", ["argmin", "argmax"])
@pytest.mark.parametrize("value", BAD)
def test_a_stopping_rule_never_settles_on_what_is_not_finite(value, rule):
    n_seen = []

    def trajectory(x, noise):
        n_seen.append(len(x))
        return spoiled(value, above=-10.0)(x, noise)

    with pytest.raises(InvalidSamplesError) as caught:
        draw(trajectory, INPUTS, 256, (3,), stop=SettledVote(0.05, "distance", rule), micro_batch=8)
    result = caught.value.result
    assert result.settled.tolist() == [True, False, False, True]
    assert result.first_invalid.tolist() == [-1, 0, 0, -1]
    assert sum(n_seen) <= 4 * 32  # an invalid input draws no more samples
    decision = SettledVote(0.05, "distance", rule).start(1, torch.zeros(1, 3), 64)
    values = torch.tensor([0.0, 1.0, 2.0]).repeat(1, 32, 1)
    values[0, 3, 1] = value
    assert decision.update(torch.tensor([0]), values).tolist() == [False]
    assert decision.update(torch.tensor([0]), torch.zeros(1, 32, 3)).tolist() == [False]


def test_a_users_own_rule_cannot_settle_it_either():
    class Always:
        reads = "distance"

        def checkpoints(self, n_samples):
            return [4]

        def start(self, n_inputs, readout, n_samples):
            return self

        def update(self, rows, values):
            return torch.ones(len(rows), dtype=torch.bool)

    with pytest.raises(InvalidSamplesError) as caught:
        draw(spoiled(float("nan"), above=-10.0), INPUTS, 20, (3,), stop=Always())
    assert caught.value.result.settled.tolist() == [True, False, False, True]


@pytest.mark.parametrize("label", [-1.0, 3.0, 1.5, 2.0**31, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_labels_that_are_none_are_an_error_and_not_dropped(label, dtype):
    if dtype == torch.int64 and (label != label or label != int(label)):
        pytest.skip("no integer")

    def trajectory(x, noise):
        return {"label": torch.where(x[:, 0] == 9.0, label, 1.0).to(dtype)}

    statistics = {"votes": Votes("label", "label", 3)}
    stop = SettledVote(0.05, "label", "label", 3)
    for options in (
        {"statistics": statistics},
        {"statistics": statistics, "stop": stop},
        {"statistics": {}, "stop": stop},
    ):
        with pytest.raises(InvalidSamplesError, match="sample 0 of input 2 is not so") as caught:
            draw(trajectory, INPUTS, 64, (3,), **options)
        if "votes" in options["statistics"]:
            votes = caught.value.result.statistics["votes"]
            assert votes["count"][2].tolist() == [0, 0, 0]
            assert votes["count"][0, 1] == caught.value.result.n_samples[0]
            assert bool(votes["share"][2].isnan().all())


def test_probabilities_below_zero_have_no_entropy():
    with pytest.raises(
        InvalidSamplesError, match="'probability' must hold no negative probability; sample 0 of input 3"
    ):
        draw(
            lambda x, noise: {"probability": torch.where(x == 1.0, -0.1, 0.5)},
            INPUTS,
            4,
            (3,),
            statistics={"entropy": MeanEntropy()},
        )


def test_accumulators_alone_let_no_nan_vote():
    values = torch.tensor([[[1.0, torch.nan, 2.0]] * 4, [[1.0, 0.5, 2.0]] * 4])
    accumulator = Votes("distance").start(2, values[:, 0])
    accumulator.update(torch.tensor([0, 1]), values)
    results = accumulator.finish()
    assert results["count"].tolist() == [[0, 0, 0], [0, 4, 0]]
    assert bool(results["share"][0].isnan().all())
    assert results["share"][1].tolist() == [0, 1, 0]


def test_nan_in_inputs_noise_and_fields_is_found_and_captured_draws_find_it_too():
    inputs = INPUTS.clone()
    inputs[2, 1] = torch.nan
    with pytest.raises(InvalidSamplesError, match="sample 0 of input 2"):
        draw(distances, inputs, 9, (3,))
    noise = torch.zeros(4, 9, 3)
    noise[3, 5, 0] = torch.inf
    with pytest.raises(InvalidSamplesError, match="sample 5 of input 3"):
        draw(distances, INPUTS, 9, (3,), noise=noise)
    with pytest.raises(InvalidSamplesError, match="sample 0 of input 0"):
        sample_flow(lambda z, t: z / 0.0, INPUTS, 9, (3,), time_grid=(0.0, 1.0))
    captured = CapturedTrajectory(distances, lambda function: (lambda: None, function()))
    with pytest.raises(InvalidSamplesError, match="sample 0 of input 2"):
        draw(captured, inputs, 6, (3,), micro_batch=8)  # the second and third micro-batch by the graph


def test_readouts_that_nobody_uses_may_be_anything():
    result = draw(
        lambda x, noise: {"a": x, "b": x * torch.nan}, INPUTS, 3, (3,), statistics={"a": Mean("a")}, keep_samples="a"
    )
    assert result.first_invalid.tolist() == [-1] * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"a": x[:, :1]},
        lambda x: {"a": x, "b": x},
        lambda x: {},
        lambda x: {"b": x},
        lambda x: {"a": x.double()},
    ],
)
def test_a_readout_that_changes_on_the_way_is_refused(change):
    calls = []

    def trajectory(x, noise):
        calls.append(1)
        return {"a": x} if len(calls) < 3 else change(x)

    with pytest.raises(ValueError, match=r"in every micro-batch|for every micro-batch"):
        draw(trajectory, INPUTS, 8, (3,), micro_batch=8)


def test_a_micro_batch_beyond_the_work_is_lowered_to_it_but_small_ones_are_filled_up():
    sizes = []

    def trajectory(x, noise):
        sizes.append(len(x))
        return x

    result = draw(trajectory, INPUTS, 50, (3,), micro_batch=10**9)
    assert sizes == [200]
    assert (result.micro_batch, result.n_evaluations) == (200, 200)
    for micro_batch, work, expected in ((10**9, 2, 64), (64, 1, 64), (16, 1, 16), (100, 25, 100), (128, 25, 100)):
        sizes.clear()
        assert draw(trajectory, INPUTS, work, (3,), micro_batch=micro_batch).micro_batch == expected
        assert set(sizes) == {expected}
    assert draw(lambda x, n: x, INPUTS.to("meta"), 1, (3,), micro_batch=10**9).micro_batch == 1024


def test_numbers_and_arrays_of_numpy_and_single_names_are_taken():
    key, noise = np.arange(4), np.zeros((4, 5, 3), dtype=np.float32)
    options = {"micro_batch": np.int64(8), "keep_samples": "readout"}
    ours = draw(
        lambda x, n: x + n, INPUTS.numpy(), np.int64(5), np.array([3]), seed=np.int32(7), input_key=key, **options
    )
    plain = draw(lambda x, n: x + n, INPUTS, 5, (3,), seed=7, keep_samples=True, micro_batch=8)
    assert torch.equal(ours.samples["readout"], plain.samples["readout"])
    given = draw(lambda x, n: x + n, INPUTS.numpy(), 5, [3], noise=noise, **options)
    assert torch.equal(given.samples["readout"], INPUTS[:, None].expand(4, 5, 3))
    assert SettledVote(np.float32(0.05), first=np.int64(8)).first == 8


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"noise_shape": 3}, TypeError, "noise_shape must be a sequence of sizes, such as (3,); got 3"),
        ({"noise_shape": (2.0,)}, TypeError, "noise_shape must be an integer; got float"),
        ({"noise_shape": (-1,)}, ValueError, "noise_shape must hold sizes >= 0; got [-1]"),
        ({"keep_samples": 3}, TypeError, "keep_samples must be True, False or names of readouts; got 3"),
        ({"keep_samples": "other"}, ValueError, "keep_samples names 'other', which is not a readout"),
        ({"seed": "1"}, TypeError, "seed must be an integer; got str"),
        ({"micro_batch": 2.0}, TypeError, "micro_batch must be an integer; got float"),
        ({"inputs": 3}, TypeError, "inputs must be a tensor, or a tuple or mapping of tensors; got a int"),
    ],
)
def test_wrong_arguments_are_named(options, error, text):
    arguments = {"trajectory": lambda x, n: x, "inputs": INPUTS, "n_samples": 4, "noise_shape": (3,)} | options
    with pytest.raises(error, match=re.escape(text)):
        draw(**arguments)


@pytest.mark.parametrize("buffer", ["input", "same"])
def test_readouts_in_memory_that_is_used_again_are_kept_as_they_were(buffer):
    held = torch.zeros(8, 3)

    def trajectory(x, noise):
        return x.add_(noise) if buffer == "input" else held.copy_(x + noise)

    options = {"keep_samples": True, "micro_batch": 8}
    expected = draw(lambda x, noise: x + noise, INPUTS, 21, (3,), **options)
    actual = draw(trajectory, INPUTS, 21, (3,), **options)
    assert torch.equal(actual.samples["readout"], expected.samples["readout"])
    assert torch.equal(actual.statistics["readout"]["mean"], expected.statistics["readout"]["mean"])
