import pytest
import torch

from msf.flow.solver import image_field, semantic_field
from msf_kernels.testing import GaussianMixtureFlow

MIXTURE = GaussianMixtureFlow(
    means=torch.tensor([[0.4, -0.2], [-0.5, 0.1], [0.1, 0.6]], dtype=torch.float64)[:, :, None, None],
    codes=torch.tensor([[1.0], [-1.0], [0.3]], dtype=torch.float64)[:, :, None, None],
    sigma=0.5,
)


class _Recorder:
    """A network that notes what it is asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, z, t):
        self.calls.append((z, t))
        return 2 * z


def _state(n=3):
    return torch.randn(n, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_state_in_bfloat16_does_not_round_the_times():
    recorder = _Recorder()
    z = _state()
    low = z.bfloat16()
    t = torch.tensor([0.123456789] * 3)
    assert semantic_field(recorder, z[:, :2].float())(low[:, 2:], 0.123456789).dtype == torch.bfloat16
    image_field(recorder, z[:, 2:].float())(low[:, :2], t)
    assert recorder.calls[0][1][0, 1] == t[0]
    assert torch.equal(recorder.calls[1][1][:, 0], t)
    for state, times in recorder.calls:
        assert times.dtype == torch.float32
        assert torch.equal(state, low)


@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25)], ids=["number", "0-dim"])
def test_a_shared_time_is_one_pair_of_times_not_one_per_item(t):
    recorder = _Recorder()
    z = _state()
    semantic_field(recorder, z[:, :2])(z[:, 2:], t)
    image_field(recorder, z[:, 2:])(z[:, :2], t)
    assert torch.equal(recorder.calls[0][1], torch.tensor([[1.0, 0.25]], dtype=torch.float64))
    assert torch.equal(recorder.calls[1][1], torch.tensor([[0.25, 0.0]], dtype=torch.float64))
    for state, _ in recorder.calls:
        assert torch.equal(state, z)


def test_one_time_per_item_becomes_one_pair_per_item():
    recorder = _Recorder()
    z, t = _state(), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    semantic_field(recorder, z[:, :2])(z[:, 2:], t)
    image_field(recorder, z[:, 2:])(z[:, :2], t)
    assert recorder.calls[0][1].tolist() == [[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]]
    assert recorder.calls[1][1].tolist() == [[0.1, 0.0], [0.2, 0.0], [0.3, 0.0]]


def test_held_streams_give_the_exact_conditional_velocities():
    z = _state()
    for t in (0.9, 0.3, torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)):
        semantic = semantic_field(MIXTURE.velocity_field, z[:, :2])(z[:, 2:], t)
        assert torch.equal(semantic, MIXTURE.held_image_field(z, t)[:, 2:])
        image = image_field(MIXTURE.velocity_field, z[:, 2:])(z[:, :2], t)
        assert torch.equal(image, MIXTURE.held_semantic_field(z, t)[:, :2])


def test_holding_a_stream_differs_from_the_joint_flow():
    z = _state()
    joint = MIXTURE.velocity_field(z, 0.5)
    assert not torch.allclose(semantic_field(MIXTURE.velocity_field, z[:, :2])(z[:, 2:], 0.5), joint[:, 2:], atol=1e-2)
    assert not torch.allclose(image_field(MIXTURE.velocity_field, z[:, 2:])(z[:, :2], 0.5), joint[:, :2], atol=1e-2)


def test_at_the_start_of_classification_both_flows_agree():
    z = _state()
    joint = MIXTURE.velocity_field(z, 1.0)
    assert torch.equal(semantic_field(MIXTURE.velocity_field, z[:, :2])(z[:, 2:], 1.0), joint[:, 2:])
