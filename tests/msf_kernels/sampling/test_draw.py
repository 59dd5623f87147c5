import doctest

import pytest
import torch
from torch import Tensor

import msf_kernels.sampling.engine
import msf_kernels.sampling.flow
from msf_kernels.philox_normal import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal
from msf_kernels.sampling import (
    CapturedTrajectory,
    Mean,
    MeanEntropy,
    MeanVariance,
    SettledVote,
    Votes,
    draw,
    sample_flow,
)
from msf_kernels.solvers import HEUN, uniform_grid


def add(x: Tensor, noise: Tensor) -> Tensor:
    return x + noise


def test_samples_are_the_trajectory_at_the_documented_noise():
    inputs = torch.arange(6.0).reshape(3, 2)
    key = torch.tensor([7, 2**40 + 3, 2**31 - 1])
    result = draw(add, inputs, 70, (2,), seed=11, stream=IMAGE_STREAM, input_key=key, keep_samples=True, micro_batch=16)
    for i, low_key in enumerate([7, 3, 2**31 - 1]):
        index = (low_key << 32) + torch.arange(70)
        expected = inputs[i] + philox_normal(index, (2,), 11, stream=IMAGE_STREAM)
        assert torch.equal(result.samples["readout"][i], expected)


def test_by_default_an_input_is_keyed_by_its_number_on_the_semantic_stream():
    result = draw(add, torch.zeros(3, 2), 5, (2,), keep_samples=True)
    index = (2 << 32) + torch.arange(5)
    assert torch.equal(result.samples["readout"][2], philox_normal(index, (2,), 0, stream=SEMANTIC_STREAM))


def test_the_noise_can_be_given():
    noise = torch.randn(3, 9, 2, generator=torch.Generator().manual_seed(0))
    inputs = torch.arange(3.0).unsqueeze(1)
    result = draw(add, inputs, 9, (2,), noise=noise, keep_samples=True, micro_batch=4)
    assert torch.equal(result.samples["readout"], inputs.unsqueeze(1) + noise)


def test_noise_comes_in_the_dtype_that_was_asked_for():
    seen = []
    draw(lambda x, noise: seen.append(noise.dtype) or x, torch.zeros(1, 1), 1, (1,), noise_dtype=torch.bfloat16)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("micro_batch", [1, 5, 16, 64])
@pytest.mark.parametrize("n_samples", [1, 16, 150])
def test_default_statistics_are_the_moments_of_floating_readouts(micro_batch, n_samples):
    def trajectory(x, noise):
        return {"sum": x + noise, "sign": (noise > 0).long().sum(1)}

    result = draw(trajectory, torch.zeros(3, 2), n_samples, (2,), micro_batch=micro_batch, keep_samples=True)
    assert list(result.statistics) == ["sum"]
    samples = result.samples["sum"].double()
    torch.testing.assert_close(result.statistics["sum"]["mean"], samples.mean(1))
    if n_samples > 1:
        torch.testing.assert_close(result.statistics["sum"]["variance"], samples.var(1))
    assert result.samples["sign"].dtype == torch.int64
    assert result.n_samples.tolist() == [n_samples] * 3


def test_statistics_have_the_callers_names_and_may_share_a_readout():
    statistics = {"average": Mean("d"), "spread": MeanVariance("d"), "votes": Votes("d")}
    result = draw(lambda x, noise: {"d": x + noise}, torch.zeros(2, 3), 10, (3,), statistics=statistics)
    assert {name: set(values) for name, values in result.statistics.items()} == {
        "average": {"mean"},
        "spread": {"mean", "variance"},
        "votes": {"count", "share"},
    }
    torch.testing.assert_close(result.statistics["average"]["mean"], result.statistics["spread"]["mean"])


def test_only_the_named_readouts_are_kept():
    result = draw(lambda x, noise: {"a": x, "b": noise}, torch.zeros(2, 3), 4, (3,), keep_samples=["b"], statistics={})
    assert list(result.samples) == ["b"]
    assert result.samples["b"].shape == (2, 4, 3)
    assert result.statistics == {}


def test_inputs_may_be_tuples_and_mappings():
    inputs = (torch.arange(3.0).unsqueeze(1), torch.tensor([[10.0], [20.0], [30.0]]))
    expected = draw(lambda x, noise: x + noise, inputs[0] + inputs[1], 7, (1,), keep_samples=True)
    by_tuple = draw(lambda x, noise: x[0] + x[1] + noise, inputs, 7, (1,), keep_samples=True)
    by_name = draw(
        lambda x, noise: x["a"] + x["b"] + noise, dict(zip("ab", inputs, strict=True)), 7, (1,), keep_samples=True
    )
    assert torch.equal(by_tuple.samples["readout"], expected.samples["readout"])
    assert torch.equal(by_name.samples["readout"], expected.samples["readout"])


def test_every_micro_batch_has_the_same_size_and_padding_counts_as_evaluated():
    sizes = []
    result = draw(lambda x, noise: sizes.append(len(x)) or x, torch.zeros(3, 2), 7, (2,), micro_batch=8)
    assert sizes == [8, 8, 8]
    assert (result.micro_batch, result.n_evaluations, result.n_halvings) == (8, 24, 0)


def test_padding_repeats_valid_work():
    seen = []
    draw(lambda x, noise: seen.append(noise) or x, torch.zeros(1, 2), 3, (2,), micro_batch=8)
    assert torch.equal(seen[0][2:], seen[0][2:3].expand(6, 2))


class Promising:
    """A trajectory whose rows are promised the same bits in every batch."""

    is_batch_invariant = True
    micro_batch = 4

    def __init__(self):
        self.sizes = []

    def __call__(self, x, noise):
        self.sizes.append(len(x))
        return x + noise


def test_nothing_is_filled_up_where_bits_do_not_know_the_batch():
    promising = Promising()
    result = draw(promising, torch.zeros(3, 2), 7, (2,), micro_batch=8)
    assert promising.sizes == [8, 8, 5]
    assert (result.micro_batch, result.n_evaluations) == (8, 21)
    expected = draw(add, torch.zeros(3, 2), 7, (2,), micro_batch=8)
    assert torch.equal(result.statistics["readout"]["mean"], expected.statistics["readout"]["mean"])


def test_a_graph_is_filled_up_whatever_the_trajectory_promises():
    promising = Promising()
    draw(CapturedTrajectory(promising, make_graph=lambda run: (lambda: None, run())), torch.zeros(1, 2), 3, (2,))
    assert promising.sizes == [4]


def test_a_trajectory_may_want_a_smaller_micro_batch_than_the_machine():
    promising = Promising()
    assert draw(promising, torch.zeros(3, 2), 7, (2,)).micro_batch == 4
    promising.micro_batch = 1000
    assert draw(promising, torch.zeros(3, 2), 7, (2,)).micro_batch == 16
    assert draw(promising, torch.zeros(3, 2), 7, (2,), micro_batch=8).micro_batch == 8


def test_progress_runs_to_the_total():
    calls = []
    draw(add, torch.zeros(3, 2), 10, (2,), micro_batch=8, progress=lambda *done: calls.append(done))
    assert calls == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_progress_counts_samples_spared_by_stopping_as_done():
    calls = []
    inputs = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
    draw(
        lambda x, noise: {"distance": x + noise},
        inputs,
        100,
        (2,),
        micro_batch=8,
        stop=SettledVote(),
        progress=lambda *done: calls.append(done),
    )
    assert calls == [(100, 300), (200, 300), (300, 300)]


def meta_trajectory(x, noise):
    distance = (x - noise).abs()
    return {"distance": distance, "probability": torch.softmax(-distance, 1)}


def test_no_value_is_read_back_from_the_device():
    # Tensors on the meta device have no values: reading one raises.
    statistics = {
        "distance": MeanVariance("distance"),
        "votes": Votes(),
        "probability": Mean("probability"),
        "entropy": MeanEntropy(),
    }
    inputs = torch.zeros(5, 3, device="meta")
    result = draw(
        meta_trajectory, inputs, 150, (3,), statistics=statistics, keep_samples=True, antithetic=True, micro_batch=16
    )
    assert result.statistics["distance"]["variance"].is_meta
    assert result.samples["distance"].shape == (5, 150, 3)
    with pytest.raises(NotImplementedError, match="meta tensor"):  # a stopping rule has to look
        draw(meta_trajectory, inputs, 150, (3,), stop=SettledVote())


def test_no_gradients_are_recorded():
    weight = torch.ones(2, requires_grad=True)
    result = draw(lambda x, noise: x + weight * noise, torch.zeros(1, 2), 4, (2,), keep_samples=True)
    assert not result.samples["readout"].requires_grad


def test_an_exception_of_the_trajectory_arrives_unchanged():
    class Broken(Exception):
        pass

    def trajectory(x, noise):
        raise Broken

    with pytest.raises(Broken):
        draw(trajectory, torch.zeros(1, 2), 4, (2,))


def test_antithetic_pairs_have_opposite_noise_and_even_samples_are_the_usual_ones():
    plain = draw(lambda x, noise: noise, torch.zeros(2, 1), 9, (3,), keep_samples=True).samples["readout"]
    paired = draw(lambda x, noise: noise, torch.zeros(2, 1), 9, (3,), keep_samples=True, antithetic=True)
    paired = paired.samples["readout"]
    assert torch.equal(paired[:, ::2], plain[:, ::2])
    assert torch.equal(paired[:, 1::2], -plain[:, :8:2])


def test_a_flow_is_sampled_from_start_to_readout():
    inputs = torch.zeros(2, 1, 4, 4)
    result = sample_flow(
        lambda z, t: -z,
        inputs,
        20,
        (2, 4, 4),
        time_grid=uniform_grid(3),
        tableau=HEUN,
        readout=lambda z: {"end": z},
        keep_samples=True,
        seed=4,
    )
    dt = 1 / 3
    noise = philox_normal((1 << 32) + torch.arange(20), (2, 4, 4), 4, stream=SEMANTIC_STREAM)
    torch.testing.assert_close(result.samples["end"][1, :, 1:], noise * (1 - dt + dt**2 / 2) ** 3)
    assert (result.samples["end"][:, :, :1] == 0).all()
    assert result.nfe == 6


def test_a_flow_may_start_from_noise_alone_and_have_other_readouts():
    result = sample_flow(
        lambda z, t: torch.ones_like(z),
        torch.tensor([[1.0], [2.0]]),
        5,
        (3,),
        time_grid=(1.0, 0.0),
        start=lambda scale, noise: scale * noise,
        readout=lambda z: z.sum(1),
        keep_samples=True,
    )
    noise = philox_normal((1 << 32) + torch.arange(5), (3,), 0, stream=SEMANTIC_STREAM)
    torch.testing.assert_close(result.samples["readout"][1], (2 * noise - 1).sum(1))


def test_grids_of_single_samples_are_refused_by_a_flow():
    with pytest.raises(ValueError, match="shared by all samples"):
        sample_flow(add, torch.zeros(2, 1), 4, (1,), time_grid=torch.tensor([[0.0, 1.0], [0.0, 2.0]]))


@pytest.mark.parametrize("module", [msf_kernels.sampling.engine, msf_kernels.sampling.flow])
def test_examples_in_docstrings_run(module):
    names = {"torch": torch, "draw": draw, "sample_flow": sample_flow}
    failed, tried = doctest.testmod(module, extraglobs=names)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_samples": 0}, ValueError, "n_samples must be >= 1"),
        ({"n_samples": 2.0}, TypeError, "n_samples must be an integer"),
        ({"micro_batch": 0}, ValueError, "micro_batch must be >= 1"),
        ({"inputs": torch.zeros(0, 2)}, ValueError, "inputs must have one first axis N >= 1"),
        ({"inputs": (torch.zeros(2, 2), torch.zeros(3, 2))}, ValueError, r"got shapes \[2, 2\], \[3, 2\]"),
        ({"inputs": ()}, ValueError, "inputs must hold at least one tensor"),
        ({"inputs": [3]}, TypeError, "inputs must be a tensor, or"),
        ({"input_key": torch.zeros(2)}, TypeError, "input_key must have dtype torch.int64"),
        ({"input_key": torch.zeros(3, dtype=torch.int64)}, ValueError, "input_key must be"),
        ({"noise": torch.zeros(2, 4, 3)}, ValueError, "noise must be"),
        ({"noise": 3}, TypeError, "noise must be a tensor"),
        ({"noise": torch.zeros(2, 4, 2), "antithetic": True}, ValueError, "antithetic must be False when noise"),
        ({"stop": SettledVote(), "antithetic": True}, ValueError, "antithetic must be False with stop"),
        ({"stop": SettledVote(), "order": [0]}, ValueError, "order must be None with stop"),
        ({"stop": SettledVote()}, ValueError, "stop reads 'distance', which is not a readout"),
        ({"statistics": {"x": Mean("nothing")}}, ValueError, "'nothing', which is not a readout"),
        ({"keep_samples": ["other"]}, ValueError, "'other', which is not a readout"),
        ({"trajectory": lambda x, noise: 3}, TypeError, "must return a tensor or a mapping"),
        ({"trajectory": lambda x, noise: {"a": x, "b": 3}}, TypeError, "'b': int"),
        ({"trajectory": lambda x, noise: x[:1]}, ValueError, "readout 'readout' must have first axis B"),
        ({"trajectory": lambda x, noise: x.sum()}, ValueError, "readout 'readout' must have first axis B"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"trajectory": 3}, TypeError, r"trajectory must be callable as trajectory\(input, noise\); got int"),
        ({"progress": 3}, TypeError, "progress must be callable"),
        ({"noise_dtype": "float32"}, TypeError, "noise_dtype must be a torch.dtype; got 'float32'"),
        ({"stop": 3}, TypeError, r"stop must be a rule such as SettledVote\(\); got 3"),
        ({"stop": SettledVote}, TypeError, "stop must be a rule such as SettledVote"),
        ({"stop": lambda votes: None}, TypeError, "stop must be a rule such as SettledVote"),
        ({"statistics": [Mean("readout")]}, TypeError, "statistics must be a mapping of names to statistics; got list"),
        ({"statistics": {"x": Mean}}, TypeError, "statistics must be such as Mean"),
        ({"statistics": {"x": 3}}, TypeError, r"statistics must be such as Mean\(\); got 3 for 'x'"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    arguments = {"trajectory": add, "inputs": torch.zeros(2, 2), "n_samples": 4, "noise_shape": (2,)} | options
    with pytest.raises(error, match=message):
        draw(**arguments)
