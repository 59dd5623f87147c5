import pytest
import torch

from msf.flow.solver import FlowSolver
from msf.network.unet import UNet
from msf_kernels.philox_normal import IMAGE_STREAM, philox_normal


def test_generation_equals_the_authors_code(golden):
    tensors = golden.tensors
    channels = tensors["velocity_in"].shape[1]
    network = UNet(golden.network_config, channels, channels)
    network.load_state_dict(golden.network_tensors)
    solver = FlowSolver(network.eval(), n_steps=5, method="euler", flow="joint", dtype=torch.float32)
    with torch.no_grad():
        picture = solver.to_picture(tensors["generate_noise"], tensors["mask"])
    image_channels = tensors["image"].shape[1]
    torch.testing.assert_close(picture, tensors["generate_euler5_state"][:, :image_channels], atol=1e-4, rtol=0)
    assert solver.nfe == 5


@pytest.mark.parametrize("kind", ["joint", "conditional"])
def test_a_picture_is_what_a_plain_loop_gives(make_flow, kind):
    flow = make_flow(code="simplex", time_coupling="independent")
    labels = torch.tensor([2, 0, 1, 1])
    pictures = flow.generate(labels, n_steps=3, seed=5, flow=kind)
    image = philox_normal(torch.arange(4) << 32, (1, 8, 8), 5, stream=IMAGE_STREAM)
    semantic = flow.code.encode(labels, 8, 8)
    with torch.no_grad():
        for t in (0.0, 1 / 3, 2 / 3):
            times = torch.tensor([[t, t if kind == "joint" else 0.0]])
            v = flow.network(torch.cat([image, semantic], 1), times)
            image = image + v[:, :1] / 3
            if kind == "joint":
                semantic = semantic + v[:, 1:] / 3
    torch.testing.assert_close(pictures, ((image + 1) / 2).clamp(0, 1), atol=2e-5, rtol=0)
    assert pictures.dtype == torch.float32


def test_equal_labels_give_different_pictures(make_flow):
    pictures = make_flow().generate([1, 1, 1], n_steps=2)
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])


def test_the_first_pictures_do_not_depend_on_how_many_follow_or_on_other_labels(make_flow):
    flow = make_flow()
    few = flow.generate([0, 1], n_steps=2, micro_batch=2)
    many = flow.generate([0, 1, 2, 2, 0], n_steps=2, micro_batch=2)
    assert torch.equal(many[:2], few)
    assert torch.equal(flow.generate([0, 2], n_steps=2, micro_batch=2)[0], few[0])


def test_the_seed_changes_pictures_and_given_noise_replaces_it(make_flow):
    flow = make_flow()
    assert not torch.equal(flow.generate([0, 1], n_steps=2, seed=1), flow.generate([0, 1], n_steps=2, seed=2))
    noise = philox_normal(torch.arange(2) << 32, (1, 8, 8), 1, stream=IMAGE_STREAM)
    assert torch.equal(flow.generate([0, 1], n_steps=2, seed=9, noise=noise), flow.generate([0, 1], n_steps=2, seed=1))


def test_pictures_are_clamped_to_zero_and_one(make_flow):
    flow = make_flow(image_channels=3)
    pictures = flow.generate([0, 1, 2], n_steps=2, noise=3 * torch.ones(3, 3, 8, 8))
    assert pictures.shape == (3, 3, 8, 8)
    assert pictures.min() >= 0
    assert pictures.max() == 1


def test_dequantisation_starts_from_a_noisy_code_and_is_seeded(make_flow):
    flow = make_flow()
    clean = flow.generate([0, 1], n_steps=2)
    noisy = flow.generate([0, 1], n_steps=2, dequantise=True)
    assert 0 < (clean - noisy).abs().max() < 0.1
    assert torch.equal(noisy, flow.generate([0, 1], n_steps=2, dequantise=True))


def test_progress_counts_pictures(make_flow):
    calls = []
    make_flow().generate(
        [0] * 5, n_steps=1, micro_batch=2, progress=lambda n_done, n_total: calls.append((n_done, n_total))
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("labels", "arguments", "error", "message"),
    [
        ([0, 3], {}, ValueError, r"labels must be in \[0, 3\)"),
        ([-1], {}, ValueError, r"labels must be in \[0, 3\)"),
        ([], {}, ValueError, "labels must hold at least one label; got none"),
        ([0.5], {}, TypeError, "labels must be .* whole numbers; got "),
        ([[0, 1]], {}, TypeError, "labels must be .* whole numbers; got "),
        ([0], {"noise": torch.zeros(1, 3, 8, 8)}, ValueError, r"noise must be .* = \[1, 1, 8, 8\]; got \[1, 3, 8, 8\]"),
        ([0], {"noise": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, TypeError, "noise must be floating point"),
    ],
)
def test_bad_arguments_are_refused_with_what_was_wanted(make_flow, labels, arguments, error, message):
    with pytest.raises(error, match=message):
        make_flow().generate(labels, n_steps=1, **arguments)


def test_exact_conditional_generation_has_the_means_and_variance_of_the_classes_and_the_joint_flow_has_more_variance(
    make_exact_flow,
):
    flow, mixture = make_exact_flow("simplex")
    per_class = 400
    labels = torch.arange(4).repeat_interleave(per_class)
    arguments = {"n_steps": 48, "method": "heun", "micro_batch": len(labels)}

    def residual(kind):
        return flow.generate(labels, flow=kind, **arguments).double() * 2 - 1 - mixture.means[labels]

    conditional = residual("conditional")
    mean_error = conditional.unflatten(0, (4, per_class)).mean(1)
    assert mean_error.abs().max() < 4.5 * mixture.sigma / per_class**0.5
    variance_error = mixture.sigma**2 * (2 / conditional.numel()) ** 0.5
    assert abs(conditional.square().mean() - mixture.sigma**2) < 4 * variance_error

    # Both flows start from the same noise, so pictures are compared in pairs.
    excess = (residual("joint").square() - conditional.square()).flatten(1).mean(1)
    assert excess.mean() > 4 * excess.std() / len(labels) ** 0.5


@pytest.mark.parametrize("dequantise", [False, True])
def test_a_picture_follows_its_key_and_not_its_place(make_flow, dequantise):
    flow = make_flow()
    settings = {"n_steps": 2, "dequantise": dequantise, "micro_batch": 4}
    pictures = flow.generate([0, 1, 2], key=torch.tensor([7, 2**31 - 1, 9]), **settings)
    others = flow.generate([2, 0], key=torch.tensor([9, 7]), **settings)
    assert torch.equal(others, pictures[[2, 0]])
    assert not torch.equal(flow.generate([0, 0], key=torch.tensor([7, 8]), **settings)[1], pictures[0])
    assert torch.equal(flow.generate([0, 1], **settings), flow.generate([0, 1], key=torch.arange(2), **settings))


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (torch.tensor([1.0]), TypeError, "key must be int64; got torch.float32"),
        (torch.tensor([1, 2]), ValueError, r"key must be \[N\] = \[1\], one per label; got \[2\]"),
        (torch.tensor([2**31]), ValueError, "key must be in .*; got values from 2147483648"),
        ([1], TypeError, "key must be a torch tensor"),
    ],
)
def test_keys_that_are_none_are_refused(make_flow, key, error, message):
    with pytest.raises(error, match=message):
        make_flow().generate([0], key=key)
