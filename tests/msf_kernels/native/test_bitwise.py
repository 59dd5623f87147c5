"""The same bits whatever the batch, the number of threads and (from AVX2 on) the instruction set."""

import os
import subprocess
import sys

import pytest
import torch

from msf_kernels import class_distance, group_norm_silu, philox_normal, rk_combine, symmetric_path

pytestmark = pytest.mark.usefixtures("native")


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


# name -> (inputs whose first axis is the item, call on them)
X, SKIP, IMAGE = normal(6, 64, 40, 40), normal(6, 64, 40, 40), normal(6, 3, 40, 40)
WEIGHT, BIAS, CODES = normal(128), normal(128), normal(7, 3)
CALLS = {
    "group norm": (
        (X, SKIP),
        lambda x, skip: group_norm_silu(x, 32, WEIGHT, BIAS, skip=skip, backend="native"),
    ),
    "group norm, channels-last": (
        (X.contiguous(memory_format=torch.channels_last), SKIP),
        lambda x, skip: group_norm_silu(x, 32, WEIGHT, BIAS, skip=skip, backend="native"),
    ),
    "class distance": ((normal(6, 3, 120, 120),), lambda x: torch.cat(class_distance(x, CODES, backend="native"))),
    "combination": (
        (X, SKIP, torch.linspace(-1, 1, 6)),
        lambda state, slope, dt: rk_combine(state, [slope, state], [0.3, 0.7], dt, backend="native"),
    ),
    "noise": (
        (torch.tensor([5, 2**40, 3, 0, 2**62, 77]),),
        lambda index: philox_normal(index, (3, 37, 41), 11, backend="native"),
    ),
    "path": (
        (IMAGE, IMAGE.flip(0), torch.linspace(0, 1, 6), torch.arange(6)),
        lambda image, semantic, t, index: torch.cat(
            symmetric_path(image, semantic, t, sample_index=index, seed=3, backend="native")
        ),
    ),
}


@pytest.fixture
def threads():
    """Set the number of threads for the test only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CALLS)
def test_an_item_has_the_same_bits_alone_and_in_any_batch(name):
    inputs, call = CALLS[name]
    together = call(*inputs)
    n_parts = together.shape[0] // inputs[0].shape[0]
    reordered = call(*(x.flip(0) for x in inputs))
    for item in range(6):
        alone = call(*(x[item : item + 1] for x in inputs))
        for part in range(n_parts):
            assert torch.equal(alone[part], together[part * 6 + item])
            assert torch.equal(alone[part], reordered[part * 6 + 5 - item])


@pytest.mark.parametrize("name", CALLS)
def test_the_number_of_threads_changes_no_bit_forward_or_backward(name, threads):
    inputs, call = CALLS[name]
    results = []
    for n_threads in (1, 2, 5):
        threads(n_threads)
        leaves = [x.detach().requires_grad_(x.is_floating_point() and x.dim() > 1) for x in inputs]
        out = call(*leaves)
        wanted = [x for x in leaves if x.requires_grad]
        results.append([out, *(torch.autograd.grad(out.square().sum(), wanted) if wanted else ())])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradients_of_the_parameters_do_not_depend_on_the_number_of_threads(memory_format, threads):
    x = X.contiguous(memory_format=memory_format)
    gradients = []
    for n_threads in (1, 2, 5):
        threads(n_threads)
        weight, bias = WEIGHT[:64].clone().requires_grad_(), BIAS[:64].clone().requires_grad_()
        out = group_norm_silu(x, 32, weight, bias, backend="native")
        gradients.append(torch.autograd.grad(out, (weight, bias), SKIP))
    assert all(torch.equal(a, b) for others in gradients[1:] for a, b in zip(gradients[0], others, strict=True))


PROGRAM = """
import hashlib, torch
import msf_kernels as m
from msf_kernels.conv3x3 import convolve_transformed, transform_weight
generator = torch.Generator().manual_seed(0)
x, codes = torch.randn(3, 24, 11, 13, generator=generator), torch.randn(5, 24, generator=generator)
index = torch.arange(3)
results = [m.philox_normal(index, (3, 40, 40), 5, backend="native")]
for values in (x, x.contiguous(memory_format=torch.channels_last), x.bfloat16(), x.half(), x.double()):
    leaf = values.clone(memory_format=torch.preserve_format).requires_grad_()
    if values.dtype != torch.float64:
        out = m.group_norm_silu(leaf, 8, codes[0], codes[1], backend="native")
        results += [out, *torch.autograd.grad(out.float().square().sum(), leaf)]
    distance, votes = m.class_distance(leaf, codes, backend="native")
    results += [distance, votes, *torch.autograd.grad(distance.square().sum(), leaf)]
    results += m.rk_combine(values, [values, values], [0.3, 0.4], 0.7, cast_to=torch.bfloat16, backend="native")
    results += m.symmetric_path(values, values, index / 3, sample_index=index, seed=1, backend="native")
for channels, size in ((5, 9), (70, 8), (200, 5)):
    maps = torch.randn(3, channels, size, size, generator=generator)
    weight = torch.randn(40, channels, 3, 3, generator=generator)
    for options in ({}, {"stride": 2}, {"upsample": True}):
        results.append(m.conv3x3(maps, weight, None, **options, backend="native"))
    pointwise = transform_weight(weight[..., :1, :1].contiguous(), size, size)
    results.append(convolve_transformed(maps, pointwise, None))
digest = hashlib.sha256()
for result in results:
    digest.update(result.detach().double().contiguous().numpy().tobytes())
print(len(results), digest.hexdigest())
"""


def run_at_level(level, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "MSF_CPU_LEVEL": level}
    )
    if "MSF_CPU_LEVEL must be" in done.stderr and level != "sse9":
        pytest.skip(f"this CPU has no {level}")
    return done


@pytest.mark.slow
def test_avx2_and_avx512_give_the_same_bits():
    wide, narrow = (run_at_level(level, "-c", PROGRAM) for level in ("avx512", "avx2"))
    assert wide.returncode == 0, wide.stderr
    assert wide.stdout == narrow.stdout


@pytest.mark.slow
@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_lower_levels_keep_the_error_budget(level):
    done = run_at_level(
        level, "-m", "msf_kernels.selftest", "--backend", "native", "--dtype", "float32", "--seeds", "10"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_level_that_does_not_exist_is_refused_by_name():
    done = run_at_level("sse9", "-c", PROGRAM)
    assert done.returncode != 0
    assert "MSF_CPU_LEVEL must be baseline, avx2 or avx512" in done.stderr
