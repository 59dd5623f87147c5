import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """An initial value problem with a known end state; `start` and `end` are fp64 [N, n]."""

    name: str
    field: Callable[[Tensor, float | Tensor], Tensor]
    start: Tensor
    end: Tensor
    t_start: float
    t_end: float


def as_column(t: float | Tensor) -> float | Tensor:
    return t[:, None] if isinstance(t, Tensor) and t.ndim else t


def decay_to_sine() -> Problem:
    # y = (y0 + 1/2) e^-t + (sin t - cos t) / 2
    y0 = torch.tensor([[1.0], [-2.0], [0.3]], dtype=torch.float64)
    end = (y0 + 0.5) * math.exp(-2.0) + (math.sin(2.0) - math.cos(2.0)) / 2

    def field(z, t):
        return (torch.sin(as_column(t)) if isinstance(t, Tensor) else math.sin(t)) - z

    return Problem("decay to a sine", field, y0, end, 0.0, 2.0)


def bell() -> Problem:
    # y' = -2 t y^2, y = 1 / (t^2 + c)
    c = torch.tensor([[1.0], [2.0], [0.7]], dtype=torch.float64)
    return Problem(
        "bell, nonlinear and time-dependent",
        lambda z, t: -2 * as_column(t) * z.square(),
        1 / (c + 1.0),
        1 / (c + 4.0),
        -1.0,
        2.0,
    )


def logistic() -> Problem:
    y0 = torch.tensor([[0.1], [0.5], [1.7]], dtype=torch.float64)
    end = 1 / (1 + (1 / y0 - 1) * math.exp(-2.0))
    return Problem("logistic", lambda z, t: z * (1 - z), y0, end, 0.0, 2.0)


def kepler() -> Problem:
    e, t_end = 0.3, 1.5

    def place(t):
        anomaly = t
        for _ in range(50):  # Newton's method for Kepler's equation
            anomaly -= (anomaly - e * math.sin(anomaly) - t) / (1 - e * math.cos(anomaly))
        c, s = math.cos(anomaly), math.sin(anomaly)
        rate, minor = 1 / (1 - e * c), math.sqrt(1 - e * e)
        return torch.tensor([[c - e, minor * s, -s * rate, minor * c * rate]], dtype=torch.float64)

    def field(z, t):
        position, velocity = z[:, :2], z[:, 2:]
        return torch.cat([velocity, -position / position.norm(dim=1, keepdim=True) ** 3], dim=1)

    return Problem("Kepler orbit", field, place(0.0), place(t_end), 0.0, t_end)


def rotation() -> Problem:
    start = torch.tensor([[1.0, 0.0], [0.6, -2.0]], dtype=torch.float64)
    c, s = math.cos(5.0), math.sin(5.0)
    turn = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    matrix = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    return Problem("rotation", lambda z, t: z @ matrix, start, start @ turn, 0.0, 5.0)


PROBLEMS = [decay_to_sine(), bell(), kepler(), rotation(), logistic()]


@pytest.fixture(params=PROBLEMS, ids=lambda problem: problem.name)
def problem(request) -> Problem:
    return request.param


# The logistic curve's error constant changes sign on the way, so an order cannot be fitted to it above round-off.
@pytest.fixture(params=PROBLEMS[:4], ids=lambda problem: problem.name)
def regular_problem(request) -> Problem:
    return request.param


class Recorder:
    """A velocity field that keeps the times and states of its calls."""

    def __init__(self, field):
        self.field = field
        self.times = []
        self.states = []

    def __call__(self, z, t, *context):
        self.times.append(t)
        self.states.append(z)
        return self.field(z, t, *context)


@pytest.fixture
def recorder():
    return Recorder


@pytest.fixture
def van_der_pol():
    def field(z, t, damping=10.0):
        x, v = z[..., 0], z[..., 1]
        return torch.stack([v, damping * (1 - x**2) * v - x], dim=-1)

    return field
