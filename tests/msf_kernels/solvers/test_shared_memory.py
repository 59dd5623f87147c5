"""Whatever memory a velocity field uses for its results, solves are right; and it cannot edit the state unseen."""

import numpy as np
import pytest
import torch

from msf_kernels.solvers import (
    get_tableau,
    integrate,
    integrate_adaptive,
    odeint,
    tableau,
    uniform_grid,
)
from msf_kernels.solvers.odeint import ADAPTIVE_METHODS, FIXED_METHODS

NAMES = sorted(tableau._BUILT_IN)
PAIRS = [name for name in NAMES if get_tableau(name).error is not None]


def plain(z, t):
    per_item = t[:, None] if isinstance(t, torch.Tensor) and t.ndim else t
    return -z * (0.5 + 0.1 * z * z) + per_item


class Buffered:
    """`plain`, written into memory of its own, one of several buffers after the other."""

    def __init__(self, n_buffers=1, write="torch", overlap=0, spare=0):
        self.n_buffers, self.write, self.overlap, self.spare = n_buffers, write, overlap, spare
        self.n_calls = 0
        self.memory = {}

    def buffer(self, value):
        key = value.shape, value.dtype
        if key not in self.memory:
            size = value.numel()
            pool = torch.zeros(size * self.n_buffers + self.spare, dtype=value.dtype)
            step = size - self.overlap
            self.memory[key] = [pool[i * step : i * step + size].view(value.shape) for i in range(self.n_buffers)]
        return self.memory[key][self.n_calls % self.n_buffers]

    def __call__(self, z, t):
        value = plain(z, t)
        out = self.buffer(value)
        self.n_calls += 1
        if self.write == "numpy":  # an edit that PyTorch does not count, as a replayed CUDA graph
            np.copyto(out.numpy(), value.numpy())
        else:
            out.copy_(value)
        return out


def constant_result():
    kept = torch.linspace(-1, 1, 12).reshape(4, 3)
    return lambda z, t: kept


def scratch_then_other():
    """The result of a call is destroyed by the next, which returns other memory."""
    held = []

    def field(z, t):
        for old in held:
            old.fill_(torch.nan)
        result = plain(z, t).clone()
        held.append(result)
        return result

    return field


FIELDS = {
    "one buffer": lambda: Buffered(),
    "one buffer, uncounted": lambda: Buffered(write="numpy"),
    "two buffers": lambda: Buffered(2),
    "three buffers": lambda: Buffered(3, write="numpy"),
    "overlapping buffers": lambda: Buffered(3, write="numpy", overlap=1),
    "destroyed later": scratch_then_other,
}
START = torch.linspace(-2, 2, 12).reshape(4, 3)


@pytest.fixture(params=list(FIELDS))
def field(request):
    return FIELDS[request.param]()


@pytest.fixture(params=["grad", "inference"])
def mode(request):
    with {"grad": torch.enable_grad, "inference": torch.inference_mode}[request.param]():
        yield request.param


def skip_uncountable(request, mode):
    if mode == "inference" and request.node.callspec.params.get("field") == "destroyed later":
        pytest.skip("PyTorch counts no edits in inference mode; documented")


@pytest.mark.parametrize("is_per_sample", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_fixed_steps_do_not_depend_on_where_the_field_writes(name, is_per_sample, field, mode, request):
    skip_uncountable(request, mode)
    grid = torch.linspace(0, 1, 5).expand(4, 5) if is_per_sample else uniform_grid(4)
    expected = integrate(plain, START, grid, name, return_trajectory=True)
    for _ in range(2):
        actual = integrate(field, START, grid, name, return_trajectory=True)
        assert torch.equal(actual.state, expected.state)
        assert torch.equal(actual.trajectory, expected.trajectory)


@pytest.mark.parametrize("first_step", [None, 0.1])
@pytest.mark.parametrize("name", PAIRS)
def test_adaptive_steps_do_not_depend_on_where_the_field_writes(name, first_step, field, mode, request):
    skip_uncountable(request, mode)
    options = {"rtol": 1e-4, "atol": 1e-5, "first_step": first_step, "output_times": [0.2, 0.7, 1.0]}
    expected = integrate_adaptive(plain, START, 0.0, 1.0, name, **options)
    actual = integrate_adaptive(field, START, 0.0, 1.0, name, **options)
    assert torch.equal(actual.state, expected.state)
    assert torch.equal(actual.trajectory, expected.trajectory)
    assert torch.equal(actual.n_accepted, expected.n_accepted)


@pytest.mark.parametrize("options", [None, {"per_sample": True}])
@pytest.mark.parametrize("method", [*FIXED_METHODS, *ADAPTIVE_METHODS])
def test_odeint_does_not_depend_on_where_func_writes(method, options, field):
    if options and method in FIXED_METHODS:
        pytest.skip("an option of adaptive methods")
    t = torch.tensor([0.0, 0.3, 1.0])
    arguments = {"method": method, "rtol": 1e-4, "atol": 1e-5, "options": options}
    expected = odeint(lambda t, y: plain(y, t), START, t, **arguments)
    assert torch.equal(odeint(lambda t, y: field(y, t), START, t, **arguments), expected)


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])  # bosh3 is interpolated otherwise there
def test_odeint_with_a_buffer_agrees_with_torchdiffeq(method):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    t, field = torch.linspace(0, 1, 5).double(), Buffered()
    arguments = {"method": method, "rtol": 1e-7, "atol": 1e-9}
    ours = odeint(lambda t, y: field(y, t), START.double(), t, **arguments)
    # torchdiffeq's own first step still reads what its probe has written over, so it gets a field with memory to spare.
    theirs = torchdiffeq.odeint(lambda t, y: plain(y, t), START.double(), t, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: lambda z, t: z, lambda: lambda z, t: z.flip(0), constant_result])
@pytest.mark.parametrize("name", NAMES)
def test_results_that_are_the_state_or_always_the_same_are_taken(name, make):
    field = make()
    expected = integrate(lambda z, t: field(z, t).clone(), START, uniform_grid(3), name).state
    assert torch.equal(integrate(field, START, uniform_grid(3), name).state, expected)
    if name in PAIRS:
        expected = integrate_adaptive(lambda z, t: field(z, t).clone(), START, 0.0, 1.0, name).state
        assert torch.equal(integrate_adaptive(field, START, 0.0, 1.0, name).state, expected)


def test_the_evaluations_that_are_made_once_more_are_counted():
    field = Buffered()
    assert integrate(field, START, uniform_grid(3), "heun").nfe == field.n_calls == 8  # one step's two more
    alone = Buffered()
    solution = integrate_adaptive(alone, START[:1], 0.0, 1.0, "dopri5", first_step=0.1)
    assert solution.nfe.item() == alone.n_calls
    fresh = integrate_adaptive(plain, START[:1], 0.0, 1.0, "dopri5", first_step=0.1)
    assert solution.nfe.item() == fresh.nfe.item() + 7


def test_gradients_through_a_field_that_returns_its_argument_are_right():
    z = START.double().requires_grad_()
    (grad,) = torch.autograd.grad(integrate(lambda z, t: z, z, uniform_grid(2), "heun").state.sum(), z)
    torch.testing.assert_close(grad, torch.full_like(z, 1.625**2))


EDITS = {
    "all": lambda z: z.mul_(0.5),
    "a view": lambda z: z[:, :1].zero_(),
    "indexing": lambda z: z.__setitem__((0, 0), 3.0),
    "out": lambda z: torch.add(z, 1.0, out=z),
}


@pytest.mark.parametrize("at", [0.0, 0.5])
@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_edits_the_state_is_refused(name, edit, at):
    def field(z, t):
        if (float(t.max()) if isinstance(t, torch.Tensor) else t) >= at:
            EDITS[edit](z)
        return -z

    with pytest.raises(ValueError, match="velocity_field must not change z in place"):
        integrate(field, START.clone(), uniform_grid(4), name)
    with pytest.raises(ValueError, match="velocity_field must not change z in place"):
        integrate(field, START.clone(), torch.linspace(0, 1, 5).expand(4, 5), name)
    if name in PAIRS:
        with pytest.raises(ValueError, match="velocity_field must not change z in place"):
            integrate_adaptive(field, START.clone(), 0.0, 1.0, name)


@pytest.mark.parametrize("method", [*FIXED_METHODS, *ADAPTIVE_METHODS])
def test_odeint_refuses_a_func_that_edits_y_in_its_own_words(method):
    with pytest.raises(ValueError, match="func must not change y in place"):
        odeint(lambda t, y: -y.mul_(0.5), START.clone(), torch.tensor([0.0, 1.0]), method=method)
    with pytest.raises(ValueError, match="func must not change y in place"):
        odeint(lambda t, y: (-y[0].mul_(0.5), y[1]), (START.clone(), START), torch.tensor([0.0, 1.0]), method=method)


def test_edits_of_earlier_states_and_of_times_are_seen():
    kept = []

    def edits_an_earlier_state(z, t):
        kept.append(z)
        if len(kept) == 5:
            kept[1].zero_()
        return -z

    with pytest.raises(ValueError, match="must not change z"):
        integrate(edits_an_earlier_state, START.clone(), uniform_grid(6), "euler", return_trajectory=True)

    def edits_time(z, t):
        t.add_(1.0)
        return -z

    with pytest.raises(ValueError, match="must not change t in place"):
        integrate(edits_time, START, torch.linspace(0, 1, 5).repeat(4, 1), "heun")
    with pytest.raises(ValueError, match="must not change t in place"):
        integrate_adaptive(edits_time, START, 0.0, 1.0)


def test_no_result_shares_memory_with_the_start():
    y0 = START.clone()
    results = [
        odeint(lambda t, y: -y, y0, torch.tensor([0.0])),
        odeint(lambda t, y: -y, (y0, y0), torch.tensor([0.0]))[0],
        odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), method="euler"),
        integrate(lambda z, t: -z, y0, uniform_grid(2), return_trajectory=True).trajectory,
        integrate_adaptive(lambda z, t: -z, y0, 0.0, 1.0, output_times=[0.0, 1.0]).trajectory,
    ]
    for result in results:
        result.fill_(7.0)
    assert torch.equal(y0, START)


def test_transforms_of_torch_func_still_pass_through():
    def end(z):
        return integrate(lambda z, t: -z * z, z, uniform_grid(3), "rk4", backend="reference").state

    z = START.double()
    torch.testing.assert_close(torch.vmap(end)(z), end(z))
    (expected,) = torch.autograd.grad(end(z.requires_grad_()).sum(), z)
    torch.testing.assert_close(torch.func.grad(lambda z: end(z).sum())(z.detach()), expected)
