"""States are written over only where nobody else can read them, whatever a velocity field keeps of them."""

import gc
import importlib
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from msf_kernels.solvers import integrate, sole_memory, uniform_grid
from msf_kernels.solvers.sole_memory import SoleMemory

START = torch.linspace(-2, 2, 4 * 8 * 32 * 33).reshape(4, 8, 32, 33)
METHODS = ["euler", "heun", "rk4"]
integrate_module = importlib.import_module("msf_kernels.solvers.integrate")


def plain(z, t):
    return -z * (0.5 + 0.1 * z * z) + t


def sent(z):
    """What a queue of torch.multiprocessing sends: a file that another process maps."""
    file, size = z.untyped_storage()._share_fd_cpu_()
    file, shape, dtype = os.dup(file), z.shape, z.dtype

    def read():
        storage = torch.UntypedStorage._new_shared_fd_cpu(file, size)
        os.close(file)
        return torch.empty(0, dtype=dtype).set_(storage).reshape(shape)

    return read


def hooked(z):
    module, held = torch.nn.Identity(), []
    module.register_forward_hook(lambda module, args, output: held.append(args[0]))
    module(z)
    return lambda: held[0]


def late_thread(z):
    go, pool = threading.Event(), ThreadPoolExecutor(1)
    result = pool.submit(lambda z: (go.wait(60), z.clone())[1], z)
    del z

    def read():
        go.set()
        pool.shutdown()
        return result.result()

    return read


def future(z):
    held = torch.futures.Future()
    held.set_result(z)
    return held.value


def generator(z):
    def waits(z):
        yield
        yield z

    suspended = waits(z)
    next(suspended)
    return lambda: next(suspended)


def weak(z):
    ref, copy = weakref.ref(z), z.clone()
    return lambda: copy if (alive := ref()) is None else alive


def of_storage(z, held):
    shape, dtype = z.shape, z.dtype
    return lambda: torch.empty(0, dtype=dtype).set_(held).reshape(shape)


def in_cycle(z):
    cycle = {"z": z}
    cycle["self"] = cycle
    return lambda: cycle["z"]


# What a field may keep; each returns what reads it later.
KEEPERS = {
    "z": lambda z: lambda: z,
    "a view": lambda z: (lambda view: lambda: view.mT)(z.mT),
    "a slice": lambda z: (lambda parts: lambda: torch.cat(parts))(z.split(1)),
    "an alias": lambda z: (lambda alias: lambda: alias)(z.detach()),
    "other numbers": lambda z: (lambda view: lambda: view.view(torch.float32))(z.view(torch.int32)),
    "data": lambda z: (lambda alias: lambda: alias)(z.data),
    "numpy": lambda z: (lambda array: lambda: torch.from_numpy(array))(z.numpy()),
    "a memoryview": lambda z: (lambda memory: lambda: torch.from_numpy(np.asarray(memory)))(memoryview(z.numpy())),
    "a capsule": lambda z: (lambda capsule: lambda: torch.from_dlpack(capsule))(torch.utils.dlpack.to_dlpack(z)),
    "numpy by dlpack": lambda z: (lambda array: lambda: torch.from_numpy(array.copy()))(np.from_dlpack(z)),
    "the storage": lambda z: of_storage(z, z.untyped_storage()),
    "memory of another process": sent,
    "a hook": hooked,
    "a thread": late_thread,
    "a future": future,
    "a generator": generator,
    "a weak reference": weak,
    "a cycle": in_cycle,
}


@pytest.fixture(params=["no_grad", "inference_mode"])
def mode(request):
    with getattr(torch, request.param)():
        yield request.param


@pytest.fixture
def made(monkeypatch):
    """Count the memories that a solve takes."""
    counted = []

    class Counted(SoleMemory):
        def __init__(self, tensor):
            super().__init__(tensor)
            counted.append(tensor.shape)

    monkeypatch.setattr(integrate_module, "SoleMemory", Counted)
    return counted


def in_new_memory(monkeypatch, field, name, **options):
    with monkeypatch.context() as patch:
        patch.setattr(sole_memory, "_LEAST_BYTES", float("inf"))
        return integrate(field, START, uniform_grid(5), name, **options)


@pytest.mark.parametrize("keep", list(KEEPERS))
@pytest.mark.parametrize("name", METHODS)
def test_what_a_field_keeps_is_never_written_over(name, keep, mode, monkeypatch):
    kept = []

    def field(z, t):
        kept.append((z.clone(), KEEPERS[keep](z)))
        return plain(z, t)

    state = integrate(field, START.clone(), uniform_grid(5), name).state
    assert len(kept) == 5 * {"euler": 1, "heun": 2, "rk4": 4}[name]
    for was, read in kept:
        assert torch.equal(read(), was)
    assert torch.equal(state, in_new_memory(monkeypatch, plain, name).state)


RESULTS = {
    "z": lambda z: z,
    "a view": lambda z: z.flip(0).mT.mT,
    "another place of z": lambda z: z.view(4, -1).roll(1, 1).view(z.shape).detach(),
    "rows of z": lambda z: z[:1].expand(z.shape),
    "z turned": lambda z: z.view(8, 4, 32, 33).transpose(0, 1),
}


@pytest.mark.parametrize("make", list(RESULTS))
@pytest.mark.parametrize("name", METHODS)
def test_results_that_lie_in_the_state_are_read_before_it_is_written(name, make, mode, monkeypatch):
    actual = integrate(lambda z, t: RESULTS[make](z), START, uniform_grid(5), name).state
    expected = in_new_memory(monkeypatch, lambda z, t: RESULTS[make](z).clone(), name).state
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("options", [{}, {"cast_to": torch.bfloat16}, {"return_trajectory": True}], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_solve_takes_one_memory_per_place_and_ends_where_it_did(name, options, mode, made, monkeypatch):
    start = START.clone()

    def field(z, t):
        return plain(z.float(), t)

    solution = integrate(field, start, uniform_grid(5), name, **options)
    expected = 0 if "return_trajectory" in options else 1 if name == "euler" else 2
    assert len(made) == expected
    in_new = in_new_memory(monkeypatch, field, name, **options)
    assert torch.equal(solution.state, in_new.state)
    assert torch.equal(start, START)
    if solution.trajectory is not None:
        assert torch.equal(solution.trajectory, in_new.trajectory)
    again = solution.state.clone()
    integrate(field, start, uniform_grid(5), name, **options)
    assert torch.equal(solution.state, again)


def test_a_state_that_is_kept_once_costs_one_memory(made):
    kept = []

    def field(z, t):
        if len(kept) < 2:
            kept.append(z)
        return plain(z, t)

    with torch.no_grad():
        integrate(field, START, uniform_grid(6), "euler")
    assert len(made) == 2  # the start is the caller's


def test_nothing_that_sits_on_a_state_is_found_on_the_next(mode, made):
    seen = []

    def field(z, t):
        assert not hasattr(z, "mark")
        z.mark = True
        assert [ref() for ref in seen[1:]] == [None] * len(seen[1:])  # a cache by weak reference finds the start alone
        seen.append(weakref.ref(z))
        return plain(z, t)

    integrate(field, START.clone(), uniform_grid(5), "euler")
    assert len(made) == 1
    assert len(seen) == 5


def test_solves_that_record_or_transform_take_new_memory(made):
    start = START.clone().requires_grad_()
    integrate(plain, start, uniform_grid(3), "heun").state.sum().backward()
    assert start.grad.isfinite().all()
    torch.vmap(lambda z: integrate(plain, z, uniform_grid(3), "heun", backend="reference").state)(START)
    with torch.no_grad():
        integrate(plain, START[:1, :1].clone(), uniform_grid(3), "heun")  # small
        integrate(plain, torch.nn.Parameter(START), uniform_grid(3), "heun")
    assert made == []


def test_a_field_that_differentiates_the_state_reads_the_right_one():
    weight = torch.tensor(0.5, requires_grad=True)
    losses, values = [], []

    def field(z, t):
        with torch.enable_grad():
            losses.append((weight * z).square().mean())  # saves z
            values.append(z.square().mean().item())
        return plain(z, t)

    with torch.no_grad():
        integrate(field, START.clone(), uniform_grid(4), "heun")
    (grad,) = torch.autograd.grad(sum(losses), weight)
    assert grad.item() == pytest.approx(sum(values), rel=1e-5)  # d(w^2 m)/dw = 2 w m


def test_a_field_that_leaves_recording_on_is_recorded():
    weight = torch.tensor(0.5, requires_grad=True)

    def field(z, t):
        if t >= 0.5:
            torch.set_grad_enabled(True)
            return -z * weight
        return -z

    with torch.no_grad():
        state = integrate(field, START.clone(), uniform_grid(4), "euler").state
    assert state.requires_grad
    (grad,) = torch.autograd.grad(state.sum(), weight)
    half = START * 0.75**2
    expected = -2 * 0.25 * (1 - 0.25 * 0.5) * half.sum()
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("keep", [keep for keep in KEEPERS if keep != "a weak reference"])
def test_memory_that_is_held_is_not_free_and_is_free_again(keep, mode):
    memory = SoleMemory(START.clone())
    assert memory.is_free()
    read = KEEPERS[keep](memory.tensor.detach())
    assert not memory.is_free()
    read()
    del read
    gc.collect()
    # What another process has had stays its own.
    assert memory.is_free() == (keep != "memory of another process")
