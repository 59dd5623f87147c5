import pytest
import torch

from msf.config import ClassifySettings, GenerateSettings
from msf.flow.solver import FlowSolver, image_field, semantic_field
from msf_kernels.solvers import cubic_grid, uniform_grid
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


@pytest.mark.parametrize(
    ("grid", "smallest", "largest"), [(ClassifySettings().grid, 0.0, 0.04), ("uniform", 0.15, 1.0)]
)
def test_votes_of_sixteen_euler_steps_are_the_posterior_at_the_working_size_on_the_default_grid(
    grid, smallest, largest
):
    """Four classes, codes that are constant over 1024 places.

    Across places only their mean tells the codes apart, and it has the distribution of one place whose codes are
    sqrt(1024) times as large: so one place is solved.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 4, 1, 1, dtype=torch.float64, generator=generator)
    codes = 32 * torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    mixture = GaussianMixtureFlow(means, codes, sigma=1.0)
    pictures, n_draws = mixture.sample(8, generator)[0], 20_000
    noise = torch.randn(8 * n_draws, 3, 1, 1, dtype=torch.float64, generator=generator)
    solver = FlowSolver(
        mixture.velocity_field, n_steps=16, method="euler", flow="conditional", grid=grid, dtype=torch.float32
    )
    semantic = solver.to_code(pictures.repeat_interleave(n_draws, 0), noise)[:, :, 0, 0]
    votes = torch.cdist(semantic, codes).argmin(1).reshape(8, n_draws)
    share = torch.nn.functional.one_hot(votes, 4).double().mean(1)
    assert smallest < (share - mixture.posterior(pictures)).abs().max() < largest


def test_the_grid_of_a_classification_is_its_setting_and_generations_are_uniform():
    grids = {}
    for settings in (ClassifySettings(n_steps=4), ClassifySettings(n_steps=4, grid="uniform"), GenerateSettings()):
        recorder = _Recorder()
        solver = FlowSolver.of(recorder, settings)
        solver.to_code(_state()[:, :2], _state()[:, 2:])
        classified = [float(torch.as_tensor(t).flatten()[0]) for _, t in recorder.calls]
        recorder.calls.clear()
        solver.to_picture(_state()[:, :2], _state()[:, 2:])
        generated = [float(torch.as_tensor(t).flatten()[0]) for _, t in recorder.calls]
        assert generated == pytest.approx(uniform_grid(settings.n_steps)[:-1])
        grids[solver.identity] = classified
    assert len(grids) == 3, "the grid is part of what decides the results"
    cubic, uniform, _ = grids.values()
    assert cubic == pytest.approx(cubic_grid(4, 1.0, 0.0)[:-1])
    assert uniform == pytest.approx(uniform_grid(4, 1.0, 0.0)[:-1])


def test_at_the_start_of_classification_both_flows_agree():
    z = _state()
    joint = MIXTURE.velocity_field(z, 1.0)
    assert torch.equal(semantic_field(MIXTURE.velocity_field, z[:, :2])(z[:, 2:], 1.0), joint[:, 2:])
