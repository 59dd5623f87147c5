"""Fixed-step solvers of other libraries: n Heun or Euler steps of a field over [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Unavailable, require

Field = Callable[[Tensor], Tensor]
Run = Callable[[Tensor], Tensor]


def torchdiffeq_heun(field: Field, n_steps: int) -> Run:
    return _torchdiffeq(field, n_steps, "heun2")


def torchdiffeq_euler(field: Field, n_steps: int) -> Run:
    return _torchdiffeq(field, n_steps, "euler")


def _torchdiffeq(field: Field, n_steps: int, method: str) -> Run:
    odeint = require("torchdiffeq").odeint

    def run(z: Tensor) -> Tensor:
        ends = torch.tensor([0.0, 1.0], device=z.device)
        state: Tensor = odeint(lambda t, z: field(z), z, ends, method=method, options={"step_size": 1 / n_steps})[-1]
        return state

    return run


def torchode_heun(field: Field, n_steps: int) -> Run:
    return _torchode(field, n_steps, "Heun")


def torchode_euler(field: Field, n_steps: int) -> Run:
    return _torchode(field, n_steps, "Euler")


def _torchode(field: Field, n_steps: int, method: str) -> Run:
    torchode = require("torchode")

    def run(z: Tensor) -> Tensor:
        flat = z.flatten(1)  # its states are [batch, features]
        term = torchode.ODETerm(lambda t, z: field(z))
        solver = torchode.AutoDiffAdjoint(getattr(torchode, method)(term=term), torchode.FixedStepController())
        n = len(flat)
        ends = torch.zeros(n, device=z.device), torch.ones(n, device=z.device)
        problem = torchode.InitialValueProblem(y0=flat, t_start=ends[0], t_end=ends[1])
        solution = solver.solve(problem, dt0=torch.full((n,), 1 / n_steps, device=z.device))
        state: Tensor = solution.ys[:, -1].view_as(z)
        return state

    return run


def diffusers_euler(field: Field, n_steps: int) -> Run:
    """Flow-matching Euler loop of diffusers, whose noise level runs from 1 to 0: the field is integrated backwards."""
    scheduler_class = require("diffusers").FlowMatchEulerDiscreteScheduler

    def run(z: Tensor) -> Tensor:
        scheduler = scheduler_class(num_train_timesteps=1000)
        scheduler.set_timesteps(sigmas=[1 - step / n_steps for step in range(n_steps)], device=z.device)
        for timestep in scheduler.timesteps:
            z = scheduler.step(-field(z), timestep, z, return_dict=False)[0]
        return z

    return run


def diffusers_heun(field: Field, n_steps: int) -> Run:
    scheduler_class = require("diffusers").FlowMatchHeunDiscreteScheduler

    def run(z: Tensor) -> Tensor:
        scheduler = scheduler_class(num_train_timesteps=1000)
        scheduler.set_timesteps(n_steps, device=z.device)
        for timestep in scheduler.timesteps:
            z = scheduler.step(-field(z), timestep, z, return_dict=False)[0]
        return z

    return run


def zuko_heun(field: Field, n_steps: int) -> Run:
    """Say why zuko is no peer: its integrator is adaptive."""
    require("zuko")
    raise Unavailable("zuko.utils.odeint has no fixed-step method, only adaptive Dormand-Prince")


def zuko_dopri5(field: Field) -> Run:
    odeint = require("zuko.utils", "zuko").odeint

    def run(z: Tensor) -> Tensor:
        state: Tensor = odeint(lambda t, z: field(z), z, 0.0, 1.0, phi=(), atol=1e-6, rtol=1e-5)
        return state

    return run


def torchdiffeq_dopri5(field: Field) -> Run:
    odeint = require("torchdiffeq").odeint

    def run(z: Tensor) -> Tensor:
        ends = torch.tensor([0.0, 1.0], device=z.device)
        state: Tensor = odeint(lambda t, z: field(z), z, ends, method="dopri5", atol=1e-6, rtol=1e-5)[-1]
        return state

    return run
