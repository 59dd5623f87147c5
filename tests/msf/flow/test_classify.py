import itertools
import math

import pytest
import torch

import msf.flow.classify
from msf.codes.label_codes import project_on_simplex
from msf.config import ClassifySettings
from msf.data.images import ValueRangeWarning
from msf.flow.classify import content_key
from msf.flow.solver import FlowSolver
from msf.judge.uncertainty import InvalidPredictionError, entropy
from msf_kernels.philox_normal import SEMANTIC_STREAM, philox_normal
from msf_kernels.sampling import SettledVote
from msf_kernels.solvers import cubic_grid


@pytest.fixture
def pictures():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _noise(key, n_samples, channels, seed):
    index = (key[:, None] << 32) + torch.arange(n_samples)
    return philox_normal(index.flatten(), (channels, 8, 8), seed, stream=SEMANTIC_STREAM).unflatten(0, index.shape)


@pytest.mark.parametrize(("n_steps", "method", "nfe"), [(1, "euler", 1), (2, "heun", 4)])
def test_a_prediction_is_what_plain_loops_over_pictures_and_draws_give(make_flow, pictures, n_steps, method, nfe):
    flow = make_flow(code="simplex")
    n_samples, seed = 6, 11
    prediction = flow.classify(
        pictures, n_samples=n_samples, n_steps=n_steps, method=method, seed=seed, keep_samples=True
    )

    noise = _noise(content_key(pictures), n_samples, 2, seed)
    grid = cubic_grid(n_steps, 1.0, 0.0)
    distances, pixel_votes, weights = [], [], []
    with torch.no_grad():
        for i in range(5):
            z = torch.cat([pictures[i].expand(n_samples, -1, -1, -1), noise[i]], 1)
            for t, end in itertools.pairwise(grid):
                slope = flow.velocity_field(z, t)
                if method == "heun":
                    slope = (slope + flow.velocity_field(z + (end - t) * slope, end)) / 2
                z = z + (end - t) * slope
            per_pixel = (z[:, None, 1:] - flow.code.codes[None, :, :, None, None]).norm(dim=2).flatten(2)
            distances.append(per_pixel.mean(-1))
            pixel_votes.append(torch.nn.functional.one_hot(per_pixel.argmin(1), 3).double().mean(1))
            weights.append(flow.code.weights(z[:, 1:]).double())
    distances, pixel_votes, weights = (torch.stack(v) for v in (distances, pixel_votes, weights))

    torch.testing.assert_close(prediction.sample_distance, distances, atol=2e-5, rtol=0)
    torch.testing.assert_close(prediction.class_distance, distances.double().mean(1), atol=2e-5, rtol=0)
    torch.testing.assert_close(prediction.distance_std, distances.double().std(1), atol=2e-5, rtol=0)
    torch.testing.assert_close(prediction.pixel_votes, pixel_votes.mean(1), atol=1e-2, rtol=0)
    votes = torch.nn.functional.one_hot(distances.argmin(2), 3).double().mean(1)
    assert torch.equal(prediction.votes, votes)
    assert torch.equal(prediction.label, distances.double().mean(1).argmin(1))
    assert prediction.nfe == nfe
    assert prediction.n_samples == n_samples
    if n_steps == 1:
        assert prediction.probability_source == "mean_code"
        # The mean of the weights is projected once; the entropy inside a draw is that of its own distribution.
        expected = project_on_simplex(weights.mean(1))
        torch.testing.assert_close(prediction.probability, expected, atol=2e-5, rtol=0)
        per_draw = project_on_simplex(weights.flatten(0, 1)).unflatten(0, (5, n_samples))
        torch.testing.assert_close(prediction.expected_entropy, entropy(per_draw).mean(1), atol=1e-4, rtol=0)
        disagreement = entropy(per_draw.mean(1)) - entropy(per_draw).mean(1)
        torch.testing.assert_close(prediction.mutual_information, disagreement, atol=2e-4, rtol=0)
        assert (expected - per_draw.mean(1)).abs().max() > 1e-3, "the two orders should differ here"
    else:
        assert prediction.probability_source == "votes"
        assert torch.equal(prediction.probability, votes)


def test_the_conditional_flow_holds_the_picture(make_flow, pictures):
    flow = make_flow(code="simplex", time_coupling="independent")
    prediction = flow.classify(pictures, n_samples=3, n_steps=2, flow="conditional", seed=3, keep_samples=True)
    noise = _noise(content_key(pictures), 3, 2, 3)
    with torch.no_grad():
        for i in range(5):
            image, semantic = pictures[i].expand(3, -1, -1, -1), noise[i]
            for t, end in ((1.0, 0.875), (0.875, 0.0)):
                v = flow.network(torch.cat([image, semantic], 1), torch.tensor([[1.0, t]]))
                semantic = semantic + (end - t) * v[:, 1:]
            expected = flow.code.distance(semantic)[0]
            torch.testing.assert_close(prediction.sample_distance[i], expected, atol=2e-5, rtol=0)
    # The first of two cubic steps is too short for the picture to dissolve.
    joint, held = (
        flow.classify(pictures, n_samples=3, n_steps=2, grid="uniform", flow=name, seed=3, keep_samples=True)
        for name in ("joint", "conditional")
    )
    assert not torch.allclose(joint.sample_distance, held.sample_distance, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["joint", "conditional"])
def test_a_prediction_is_the_same_bits_alone_and_among_others(make_flow, pictures, dtype, kind):
    flow = make_flow(time_coupling="independent").to(dtype=dtype)
    arguments = {"n_samples": 5, "n_steps": 2, "method": "heun", "flow": kind, "micro_batch": 4, "keep_samples": True}
    together = flow.classify(pictures, **arguments)
    shuffled = flow.classify(pictures[[3, 0, 4]], **arguments)
    alone = flow.classify(pictures[3:4], **arguments)
    assert torch.equal(together.sample_distance[[3, 0, 4]], shuffled.sample_distance)
    assert torch.equal(together.sample_distance[3:4], alone.sample_distance)
    for name in ("class_distance", "distance_std", "votes", "pixel_votes", "probability", "margin"):
        assert torch.equal(getattr(together, name)[[3, 0, 4]], getattr(shuffled, name)), name
        assert torch.equal(getattr(together, name)[3:4], getattr(alone, name)), name


def test_more_draws_begin_with_the_same_draws(make_flow, pictures):
    flow = make_flow()
    few = flow.classify(pictures, n_samples=3, micro_batch=4, keep_samples=True)
    many = flow.classify(pictures, n_samples=8, micro_batch=4, keep_samples=True)
    assert torch.equal(many.sample_distance[:, :3], few.sample_distance)
    assert not torch.equal(many.sample_distance[:, 3:6], few.sample_distance)


def test_the_seed_changes_the_draws_and_equal_pictures_share_them(make_flow, pictures):
    flow = make_flow()
    twice = pictures[[2, 2]]
    first, again, other = (
        flow.classify(twice, n_samples=4, seed=seed, keep_samples=True).sample_distance for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first, other)


def test_given_noise_replaces_the_seed(make_flow, pictures):
    flow = make_flow()
    noise = _noise(content_key(pictures), 4, 3, 0)
    by_seed = flow.classify(pictures, n_samples=4, keep_samples=True)
    given = flow.classify(pictures, n_samples=4, noise=noise, seed=99, keep_samples=True)
    assert torch.equal(by_seed.sample_distance, given.sample_distance)
    swapped = flow.classify(pictures, n_samples=4, noise=noise.flip(1), keep_samples=True)
    torch.testing.assert_close(swapped.sample_distance.flip(1), given.sample_distance, atol=1e-6, rtol=0)


def test_a_split_larger_than_one_part_gives_the_same_prediction(make_flow, pictures, monkeypatch):
    flow = make_flow()
    arguments = {"n_samples": 3, "micro_batch": 4, "keep_samples": True}
    calls = []
    whole = flow.classify(pictures, **arguments, noise=_noise(torch.arange(5), 3, 3, 7))
    monkeypatch.setattr(msf.flow.classify, "_PREPARED_BYTES", 2 * 4 * 64)
    parts = flow.classify(
        pictures,
        **arguments,
        noise=_noise(torch.arange(5), 3, 3, 7),
        progress=lambda n_done, n_total: calls.append((n_done, n_total)),
    )
    assert torch.equal(whole.sample_distance, parts.sample_distance)
    assert torch.equal(whole.class_distance, parts.class_distance)
    assert [total for _, total in calls] == [15] * len(calls)
    done = [n for n, _ in calls]
    assert done == sorted(done)
    assert done[-1] == 15
    assert len(done) >= 5


def test_settled_pictures_stop_early(make_flow, pictures):
    flow = make_flow()
    prediction = flow.classify(pictures, n_samples=128, stop=SettledVote(alpha=0.05), micro_batch=16)
    assert prediction.n_samples.shape == (5,)
    assert prediction.n_samples.dtype == torch.int64
    assert (prediction.n_samples < 128).any()
    full = flow.classify(pictures, n_samples=128)
    settled = prediction.n_samples < 128
    assert torch.equal(prediction.votes[settled].argmax(1), full.votes[settled].argmax(1))
    # What the rule promises is about the class with most votes, so that is the label, whatever rule was asked for.
    stopped = flow.classify(pictures, n_samples=16, n_steps=2, stop=SettledVote(alpha=0.3), decision="pixel_votes")
    assert torch.equal(stopped.label, stopped.votes.argmax(1))
    assert (stopped.decision, stopped.probability_source) == ("votes", "stopped_votes")
    full = flow.classify(pictures, n_samples=4, n_steps=2)
    assert (full.decision, full.probability_source) == ("distance", "votes")


def test_the_votes_of_a_stopped_prediction_are_those_that_its_rule_counts(make_flow, pictures):
    flow = make_flow(code="simplex")
    rule = SettledVote(alpha=0.3, reads="pixel_votes", rule="argmax")
    prediction = flow.classify(pictures, n_samples=16, stop=rule, micro_batch=16)
    full = flow.classify(pictures, n_samples=16, micro_batch=16)
    assert torch.equal(prediction.label, prediction.votes.argmax(1))
    assert prediction.probability_source == "mean_code"
    assert not torch.equal(prediction.votes, full.votes)
    assert prediction.to_rows()[0]["n_samples"] == int(prediction.n_samples[0])


def test_antithetic_pairs_use_opposite_noise(make_flow, pictures):
    flow = make_flow()
    pairs = flow.classify(pictures, n_samples=4, antithetic=True, keep_samples=True)
    noise = _noise(content_key(pictures), 4, 3, 0)
    noise[:, 1::2] = -noise[:, ::2]
    given = flow.classify(pictures, n_samples=4, noise=noise, keep_samples=True)
    torch.testing.assert_close(pairs.sample_distance, given.sample_distance, atol=1e-5, rtol=0)


def test_every_form_of_a_picture_gives_the_same_prediction(make_flow):
    flow = make_flow()
    levels = torch.randint(0, 256, (2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    forms = (levels, levels[..., None], (levels.float() / 127.5 - 1)[:, None])
    first, *others = (flow.classify(form, n_samples=3, keep_samples=True).sample_distance for form in forms)
    for other in others:
        assert torch.equal(first, other)


def test_pictures_are_resized_to_the_working_size(make_flow):
    levels = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    assert len(make_flow().classify(levels, n_samples=2)) == 2


def test_samples_are_kept_only_on_demand(make_flow, pictures):
    assert make_flow().classify(pictures, n_samples=2).sample_distance is None


def test_one_draw_has_no_spread(make_flow, pictures):
    prediction = make_flow().classify(pictures, n_samples=1)
    assert prediction.distance_std.isnan().all()
    assert prediction.to_dict()["distance_std"][0] == [None] * 3


def test_a_content_key_depends_on_the_picture_alone(pictures):
    keys = content_key(pictures)
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == 5
    assert int(keys.min()) >= 0
    assert int(keys.max()) < 2**31
    assert torch.equal(content_key(pictures.flip(0)), keys.flip(0))
    assert torch.equal(content_key(pictures.to(memory_format=torch.channels_last)), keys)
    changed = pictures.clone()
    changed[2, 0, 3, 3] += 1e-6
    assert (content_key(changed) != keys).tolist() == [False, False, True, False, False]


def test_content_keys_are_spread_evenly():
    pictures = torch.arange(4096, dtype=torch.float32).reshape(4096, 1, 1, 1) / 4096
    counts = (content_key(pictures) >> 27).bincount(minlength=16)
    chi_square = ((counts - 256.0) ** 2 / 256).sum()
    assert chi_square < 15 + 4 * math.sqrt(2 * 15)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(0, 1, 8, 8)}, ValueError, "images must hold at least one picture; got none"),
        ({"images": torch.full((1, 1, 8, 8), math.nan)}, ValueError, r"must be finite and in \[-1, 1\]"),
        ({"images": torch.zeros(1, 3, 8, 8)}, ValueError, "3 channels"),
        (
            {"images": torch.zeros(1, 1, 8, 8, dtype=torch.int32)},
            TypeError,
            "images must be uint8, uint16, or floating point",
        ),
        ({"noise": torch.zeros(5, 3, 3, 8, 8)}, ValueError, r"noise must be .* = \[5, 2, 3, 8, 8\]; got \[5, 3, 3"),
        ({"noise": torch.zeros(5, 2, 3, 8, 8, dtype=torch.int64)}, TypeError, "noise must be floating point"),
        ({"n_samples": 0}, ValueError, "n_samples must be"),
        ({"decision": "mean"}, ValueError, "decision must be one of"),
        ({"micro_batch": 0}, ValueError, "micro_batch must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"antithetic": True, "stop": SettledVote()}, ValueError, "antithetic"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_with_what_was_wanted(make_flow, pictures, change, error, message):
    with pytest.raises(error, match=message):
        make_flow().classify(**({"images": pictures, "n_samples": 2} | change))


def test_one_exact_step_with_a_simplex_code_returns_the_posterior(make_exact_flow):
    flow, mixture = make_exact_flow("simplex")
    images, _ = mixture.sample(50, torch.Generator().manual_seed(5))
    images = images.clamp(-1, 1)
    prediction = flow.classify(images, n_samples=2)
    posterior = mixture.posterior(images.float().double())
    assert prediction.probability_source == "mean_code"
    assert 0.2 < (posterior.amax(1) < 0.9).double().mean() < 0.95, "the pictures should be ambiguous"
    torch.testing.assert_close(prediction.probability, posterior, atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.predictive_entropy, entropy(posterior), atol=1e-4, rtol=0)
    assert prediction.mutual_information.max() < 1e-4
    by_probability = flow.classify(images, n_samples=2, decision="probability")
    assert torch.equal(by_probability.label, posterior.argmax(1))


def test_one_exact_step_with_a_dependent_code_votes_unanimously_where_the_truth_is_undecided(make_exact_flow):
    flow, mixture = make_exact_flow("rgb")
    images = mixture.sample(50, torch.Generator().manual_seed(5))[0].clamp(-1, 1)
    prediction = flow.classify(images, n_samples=16)
    posterior = mixture.posterior(images.float().double())
    assert prediction.probability_source == "votes"
    assert torch.equal(prediction.votes.amax(1), torch.ones(50, dtype=torch.float64))
    assert (prediction.probability - posterior).abs().max() > 0.4


def test_votes_of_the_conditional_flow_match_the_posterior_and_those_of_the_joint_flow_are_less_confident(
    make_exact_flow,
):
    flow, mixture = make_exact_flow("simplex")
    images = mixture.sample(8, torch.Generator().manual_seed(6))[0].clamp(-1, 1)
    posterior = mixture.posterior(images.float().double())
    n_samples = 1000
    arguments = {"n_samples": n_samples, "n_steps": 32, "method": "heun", "micro_batch": 2000}
    conditional = flow.classify(images, flow="conditional", **arguments)
    assert conditional.probability_source == "votes"
    standard_error = (posterior * (1 - posterior) / n_samples).sqrt().clamp_min(1 / n_samples)
    assert ((conditional.probability - posterior).abs() / standard_error).max() < 4

    joint = flow.classify(images, flow="joint", **arguments)
    likeliest = posterior.argmax(1, keepdim=True)
    shortfall = (posterior - joint.probability).gather(1, likeliest)
    pooled_error = standard_error.gather(1, likeliest).square().sum().sqrt() / len(images)
    assert shortfall.mean() > 4 * pooled_error


def test_generated_pictures_are_classified_in_their_own_range(make_flow):
    flow = make_flow()
    made = flow.generate([0, 1, 2], n_steps=2)
    settings = ClassifySettings(n_samples=3, keep_samples=True)
    expected = flow.classify(made * 2 - 1, settings, value_range="signed").sample_distance
    assert torch.equal(flow.classify(made, settings, value_range="unit").sample_distance, expected)
    with pytest.warns(ValueRangeWarning, match="nothing below 0.*say value_range='unit'"):
        flow.classify(made, settings)
    with pytest.raises(
        ValueError, match=r"must be finite and in \[0, 1\].*outside in picture 1 \(value_range 'unit'\)"
    ):
        flow.classify(torch.stack([made[0], made[1] - 1]), settings, value_range="unit")


def test_numpy_arrays_are_taken_as_tensors_are(make_flow, pictures):
    flow, settings = make_flow(), ClassifySettings(n_samples=2, keep_samples=True)
    noise = _noise(torch.arange(5), 2, 3, 7)
    expected = flow.classify(pictures, settings, noise=noise).sample_distance
    assert torch.equal(flow.classify(pictures.numpy(), settings, noise=noise.numpy()).sample_distance, expected)
    levels = ((pictures + 1) * 127.5).round().byte()[:, 0]
    assert torch.equal(
        flow.classify(levels.numpy(), settings).class_distance, flow.classify(levels, settings).class_distance
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named_and_the_predictions_of_the_others_are_kept(make_flow, pictures, bad, monkeypatch):
    flow, settings = make_flow(), ClassifySettings(n_samples=4, micro_batch=4)
    expected = flow.classify(pictures, settings)
    noise = torch.zeros(5, 4, 3, 8, 8)
    noise[3, 2, 1, 0, 0] = bad
    with pytest.raises(ValueError, match="noise must be finite; got NaN or infinite values for picture 3"):
        flow.classify(pictures, settings, noise=noise)
    to_code = FlowSolver.to_code

    def broken(solver, image, noise):
        wrong = torch.isin(image.flatten(1).sum(1), pictures[[1, 3]].flatten(1).sum(1))
        return torch.where(wrong[:, None, None, None], bad, to_code(solver, image, noise))

    monkeypatch.setattr(FlowSolver, "to_code", broken)
    with pytest.raises(InvalidPredictionError, match=r"got others for picture 1 \(2 of 5 pictures\)") as caught:
        flow.classify(pictures, settings)
    assert caught.value.invalid == [1, 3]
    kept, good = caught.value.prediction, [0, 2, 4]
    assert kept.label[[1, 3]].tolist() == [-1, -1]
    assert torch.equal(kept.label[good], expected.label[good])
    assert torch.equal(kept.class_distance[good], expected.class_distance[good])
    assert torch.equal(kept.probability[good], expected.probability[good])
    assert kept.class_distance[[1, 3]].isnan().all()


def test_weights_that_are_not_finite_end_in_an_error_in_both_directions(make_flow, pictures):
    flow = make_flow()
    with torch.no_grad():
        flow.network.out.conv.bias[0] = math.nan
    with pytest.raises(InvalidPredictionError, match=r"picture 0 \(5 of 5 pictures\)"):
        flow.classify(pictures, n_samples=2, n_steps=2)
    with pytest.raises(ValueError, match="the network must give finite values; got others for picture 0"):
        flow.generate([0, 1], n_steps=2)
