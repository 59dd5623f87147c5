"""The registered operators behind the norm, and the tiles of its kernels; private names are used on purpose."""

from importlib import import_module

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels.group_norm_silu._call import NormCall
from msf_kernels.group_norm_silu._ops import group_norm_silu_triton
from msf_kernels.group_norm_silu._reference import group_norm_silu_reference

OPERATORS = torch.ops.msf_triton


def triton(*args, **kwargs):
    return group_norm_silu_triton(NormCall(*args, **kwargs))


def definition(*args, **kwargs):
    return group_norm_silu_reference(NormCall(*args, **kwargs))


def operator_arguments(memory_format, has_rows, dtype=torch.float32):
    """x, num_groups, weight, bias, skip, add, scale, shift."""
    generator = torch.Generator().manual_seed(0)
    n, channels, skip_channels = 2, 4, 2 if has_rows else 0
    total = channels + skip_channels

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = normal(n, channels, 3, 5).to(dtype).contiguous(memory_format=memory_format)
    parameters = normal(total), normal(total)
    if not has_rows:
        return (x, 2, *parameters, None, None, None, None)
    return (
        x,
        2,
        *parameters,
        normal(n, skip_channels, 3, 5).to(dtype),
        normal(n, total),
        normal(1, total),
        normal(n, total),
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("has_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_operators_pass_opcheck(memory_format, has_rows, dtype):
    arguments = operator_arguments(memory_format, has_rows, dtype)
    torch.library.opcheck(OPERATORS.group_norm_silu_fwd, (*arguments, 1e-5, True))
    out, mean, rstd = OPERATORS.group_norm_silu_fwd(*arguments, 1e-5, True)
    torch.library.opcheck(OPERATORS.group_norm_silu_bwd, (torch.randn_like(out), mean, rstd, *arguments, True))


@pytest.mark.parametrize("silu", [True, False])
def test_without_a_gpu_and_an_interpreter_the_operators_compute_the_definition_and_its_gradients(monkeypatch, silu):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x, num_groups, *tensors = operator_arguments(torch.channels_last, True)
    inputs = [tensor.double().requires_grad_() for tensor in (x, *tensors)]

    def run(function):
        x, weight, bias, skip, add, scale, shift = inputs
        out = function(x, num_groups, weight, bias, skip=skip, add=add, scale=scale, shift=shift, silu=silu)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    results, definitions = run(triton), run(definition)
    assert results[0].stride() == definitions[0].stride()
    for got, expected in zip(results, definitions, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_flops_are_counted_forward_and_backward():
    x, num_groups, *tensors = operator_arguments(torch.contiguous_format, False)
    with FlopCounterMode(display=False) as counter:
        triton(x.requires_grad_(), num_groups, *tensors[:2]).sum().backward()
    values = 2 * 4 * 3 * 5
    assert counter.get_total_flops() == values * (6 + 4) + values * (11 + 10)
    with FlopCounterMode(display=False) as counter:
        triton(x.detach(), num_groups, *tensors[:2], silu=False)
    assert counter.get_total_flops() == values * 6


def test_a_call_without_gradients_is_one_operator_and_a_call_with_them_one_per_direction():
    x, num_groups, *tensors = operator_arguments(torch.channels_last, False)
    with torch.profiler.profile() as profile:
        triton(x.requires_grad_(), num_groups, *tensors[:2]).sum().backward()
    names = [event.name for event in profile.events() if event.name.startswith("msf_triton::")]
    assert names == ["msf_triton::group_norm_silu_fwd", "msf_triton::group_norm_silu_bwd"]


@pytest.mark.slow
@pytest.mark.compiler
def test_the_first_call_of_a_process_compiles_into_one_graph_forward_and_backward(run_fresh):
    run_fresh(
        "import torch; torch.manual_seed(0)\n"
        "from msf_kernels import group_norm_silu\n"
        "from msf_kernels.group_norm_silu._call import NormCall\n"
        "from msf_kernels.group_norm_silu._ops import group_norm_silu_triton\n"
        "def triton(*args, **kwargs):\n"
        "    return group_norm_silu_triton(NormCall(*args, **kwargs))\n"
        "def loss(function, x, weight, bias, skip, add):\n"
        "    return function(x, 3, weight, bias, skip=skip, add=add, scale=add, shift=add).square().sum()\n"
        "for function in (triton, group_norm_silu):\n"
        "    compiled = torch.compile(loss, fullgraph=True)\n"
        "    for n in (2, 3):\n"
        "        inputs = [torch.randn(n, 4, 3, 5).contiguous(memory_format=torch.channels_last), torch.randn(6),\n"
        "                  torch.randn(6), torch.randn(n, 2, 3, 5), torch.randn(n, 6)]\n"
        "        inputs = [x.requires_grad_() for x in inputs]\n"
        "        got, expected = compiled(function, *inputs), loss(function, *inputs)\n"
        "        torch.testing.assert_close(got, expected)\n"
        "        pairs = zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs))\n"
        "        for one, other in pairs:\n"
        "            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)\n"
    )


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("n_pixels", "n_channels", "num_groups", "itemsize", "expected"),
    [
        # pixels, channels, whole groups of a tile, chunks of pixels
        (1024, 128, 32, 2, (1024, 8, 2, 1)),  # 16 bytes of channels, so that two tiles share a multiprocessor
        (256, 128, 32, 2, (256, 16, 4, 1)),  # 32 bytes of channels
        (1024, 128, 32, 4, (1024, 8, 2, 1)),
        (2048, 128, 32, 2, (2048, 16, 4, 1)),
        (4096, 128, 32, 2, (4096, 8, 2, 1)),  # does not fit with 32 bytes, but with 16
        (784, 320, 32, 2, (1024, 16, 1, 1)),
        (65536, 128, 32, 2, (512, 16, 4, 128)),
        (64, 6, 2, 2, (64, 8, 2, 1)),
        (64, 2048, 1, 2, (4, 2048, 1, 16)),
    ],
)
def test_tiles_hold_whole_groups_and_all_pixels_while_they_fit(n_pixels, n_channels, num_groups, itemsize, expected):
    from msf_kernels.group_norm_silu._triton_tile import plan_tiles

    plan = plan_tiles(n_pixels, n_channels, num_groups, itemsize, 32768)
    blocks = plan.config.blocks
    assert (blocks["BLOCK_PIXELS"], blocks["BLOCK_CHANNELS"], blocks["GROUPS"], plan.n_chunks) == expected
    assert plan.n_blocks * blocks["GROUPS"] >= num_groups
    assert blocks["GROUPS"] * blocks["CHANNELS_PER_GROUP"] <= blocks["BLOCK_CHANNELS"]


@pytest.mark.interpreter
def test_one_tile_and_many_chunks_give_the_same_numbers(monkeypatch):
    x, num_groups, *tensors = operator_arguments(torch.channels_last, True)
    inputs = [tensor.requires_grad_() for tensor in (x, *tensors)]

    def run():
        x, weight, bias, skip, add, scale, shift = inputs
        out = triton(x, num_groups, weight, bias, skip=skip, add=add, scale=scale, shift=shift)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    in_one_tile = run()
    # By importlib: as an attribute of the package, `group_norm_silu` is the function.
    for name, value in (
        ("_triton_fwd.MAX_VALUES", 0),
        ("_triton_bwd.MAX_VALUES", 0),
        ("_triton_tile.CHUNK_VALUES", 32),
    ):
        module, _, constant = name.partition(".")
        monkeypatch.setattr(import_module(f"msf_kernels.group_norm_silu.{module}"), constant, value)
    for one, many in zip(in_one_tile, run(), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
        assert not torch.equal(one, torch.zeros_like(one))


@pytest.mark.interpreter
def test_offsets_beyond_two_to_the_31_elements_are_reached():
    # Items, channels and pixels far apart in a large reservation of which only a few pages are ever touched.
    far = 2**29
    storage = torch.empty(5 * far, dtype=torch.float16)
    x = storage.as_strided((2, 2, 2, 2), (1, 4 * far, 2, 4))
    x.copy_(torch.arange(16.0).reshape(2, 2, 2, 2).sin())
    weight, bias = torch.ones(2), torch.zeros(2)
    got = triton(x, 1, weight, bias)
    torch.testing.assert_close(got, definition(x.contiguous(), 1, weight, bias))

    from msf_kernels._triton.offsets import offset_type

    assert str(offset_type(x)) == "int64"
    assert str(offset_type(x[:, :1], None)) == "int32"
