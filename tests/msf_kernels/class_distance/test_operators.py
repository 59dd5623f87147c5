"""The registered operators behind the read-out; private names are used on purpose."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels.class_distance._ops import class_distance_triton

OPERATORS = torch.ops.msf_triton


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("needs_codes", [True, False])
def test_the_operators_pass_opcheck(needs_codes, memory_format):
    semantic = torch.randn(2, 3, 4, 5).half().contiguous(memory_format=memory_format)
    codes, grad = torch.randn(6, 3), torch.randn(2, 6)
    torch.library.opcheck(OPERATORS.class_distance_fwd, (semantic, codes))
    torch.library.opcheck(OPERATORS.class_distance_bwd, (grad, semantic, codes, needs_codes))


def test_flops_are_counted_forward_and_backward():
    semantic, codes = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(6, 3)
    with FlopCounterMode(display=False) as counter:
        class_distance_triton(semantic, codes)[0].sum().backward()
    assert counter.get_total_flops() == 6 * (3 * 120 + 2 * 40) + 6 * (6 * 120 + 3 * 40)


@pytest.mark.slow
@pytest.mark.compiler
def test_the_first_call_of_a_process_compiles_into_one_graph_forward_and_backward(run_fresh):
    run_fresh(
        "import torch; torch.manual_seed(0)\n"
        "from msf_kernels import class_distance\n"
        "from msf_kernels.class_distance._ops import class_distance_triton\n"
        "def loss(function, semantic, codes):\n"
        "    distance, votes = function(semantic, codes)\n"
        "    return (distance * votes).sum()\n"
        "for function in (class_distance_triton, class_distance):\n"
        "    compiled = torch.compile(loss, fullgraph=True)\n"
        "    for n in (4, 3):\n"
        "        inputs = [torch.randn(n, 3, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_(),\n"
        "                  torch.randn(4, 3).requires_grad_()]\n"
        "        got, expected = compiled(function, *inputs), loss(function, *inputs)\n"
        "        torch.testing.assert_close(got, expected)\n"
        "        torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs))\n"
    )
