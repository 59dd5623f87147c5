"""The registered operators behind the combination; private names are used on purpose."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels.rk_combine._ops import rk_combine_triton

OPERATORS = torch.ops.msf_triton


def maps(n, dtype=torch.float32, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(n)
    return [
        torch.randn(3, 2, 4, 5, generator=generator).to(dtype).contiguous(memory_format=memory_format) for _ in range(n)
    ]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dt_items", [None, torch.tensor([0.1, -0.2, 0.3])])
def test_the_operators_pass_opcheck(dt_items, memory_format):
    state, *slopes = maps(3, memory_format=memory_format)
    slopes = [slopes[0].half(), slopes[1].contiguous()]
    arguments = (state, slopes, [0.5, 0.25], 0.3, dt_items)
    torch.library.opcheck(OPERATORS.rk_combine_fwd, arguments)
    torch.library.opcheck(OPERATORS.rk_combine_cast_fwd, (*arguments, torch.float16))
    torch.library.opcheck(OPERATORS.rk_combine_out, (*arguments, torch.empty_like(state), None))
    torch.library.opcheck(OPERATORS.rk_combine_out, (*arguments, torch.empty_like(state), torch.empty_like(slopes[0])))
    torch.library.opcheck(OPERATORS.rk_combine_bwd, (state, [0.5, 0.25], 0.3, dt_items, [0, 2]))
    torch.library.opcheck(OPERATORS.rk_combine_bwd_dt, (state, slopes, [0.5, 0.25]))


def test_flops_are_counted_forward_and_backward():
    state, *slopes = maps(3)
    slopes[0].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        rk_combine_triton(state, slopes, [0.5, 0.25], 0.1).sum().backward()
    assert counter.get_total_flops() == 120 * 2 * 3 + 120 * 2


@pytest.mark.slow
@pytest.mark.compiler
def test_the_first_call_of_a_process_compiles_into_one_graph_forward_and_backward(run_fresh):
    run_fresh(
        "import torch; torch.manual_seed(0)\n"
        "from msf_kernels import rk_combine\n"
        "from msf_kernels.rk_combine._ops import rk_combine_triton\n"
        # Else the compiler leaves out the rounding to bfloat16 where it sees it, in the reference.
        "import torch._inductor.config; torch._inductor.config.emulate_precision_casts = True\n"
        "def loss(function, state, slope, dt, step):\n"
        "    combined, cast = function(state, [slope, slope], [0.5, 0.25], dt, cast_to=torch.bfloat16)\n"
        "    moved = function(combined, [slope], [1.0], step)\n"
        "    return moved.square().sum() + cast.float().sum()\n"
        "for function in (rk_combine_triton, rk_combine):\n"
        "    compiled = torch.compile(loss, fullgraph=True)\n"
        "    for step in (0.1, -0.3, 0.7):\n"
        "        inputs = [torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_(),\n"
        "                  torch.randn(4, 3, 5, 6).requires_grad_(), torch.rand(4).requires_grad_()]\n"
        "        got, expected = compiled(function, *inputs, step), loss(function, *inputs, step)\n"
        "        torch.testing.assert_close(got, expected)\n"
        "        torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs))\n"
    )


@pytest.mark.slow
def test_an_update_in_place_compiles_into_one_graph(run_fresh):
    run_fresh(
        "import torch; torch.manual_seed(0)\n"
        "from msf_kernels.rk_combine._ops import rk_combine_triton\n"
        "def advance(state, slope):\n"
        "    return rk_combine_triton(state, [slope], [1.0], 0.1, out=state, cast_to=torch.bfloat16)[1]\n"
        "state, slope = torch.randn(2, 3, 4), torch.randn(2, 3, 4)\n"
        "expected = state + 0.1 * slope\n"
        "cast = torch.compile(advance, fullgraph=True)(state, slope)\n"
        "torch.testing.assert_close(state, expected)\n"
        "torch.testing.assert_close(cast, expected.bfloat16())\n"
    )
