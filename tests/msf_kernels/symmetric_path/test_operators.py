"""The registered operators behind the path; private names are used on purpose."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels.symmetric_path._ops import symmetric_path_triton

OPERATORS = torch.ops.msf_triton


def maps(memory_format=torch.contiguous_format, dtype=torch.float32):
    return [torch.randn(2, k, 3, 5).to(dtype).contiguous(memory_format=memory_format) for k in (2, 3, 5, 5)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("t_shape", [(2,), (2, 2)])
def test_the_operators_pass_opcheck(t_shape, memory_format):
    image, semantic, grad_z, grad_dz = maps(memory_format, torch.float16)
    t = torch.rand(t_shape)
    torch.library.opcheck(OPERATORS.symmetric_path_fwd, (image, semantic, t, torch.arange(2), 2**62, 1e-4))
    torch.library.opcheck(OPERATORS.symmetric_path_bwd, (grad_z, grad_dz, t, 1e-4, 2))


def test_flops_are_counted_forward_and_backward():
    image, semantic, *_ = maps()
    with FlopCounterMode(display=False) as counter:
        z, _ = symmetric_path_triton(
            image.requires_grad_(), semantic, torch.rand(2), sample_index=torch.arange(2), seed=0
        )
        z.sum().backward()
    assert counter.get_total_flops() == 150 * 5 + 150 * 3


@pytest.mark.slow
@pytest.mark.compiler
def test_the_first_call_of_a_process_compiles_into_one_graph_forward_and_backward(run_fresh):
    run_fresh(
        "import torch; torch.manual_seed(0)\n"
        "from msf_kernels import symmetric_path\n"
        "from msf_kernels.symmetric_path._ops import symmetric_path_triton\n"
        "def loss(function, image, semantic, t, index, seed):\n"
        "    z, dz = function(image, semantic, t, sample_index=index, seed=seed)\n"
        "    return z.square().sum() + dz.abs().sum()\n"
        "for function in (symmetric_path_triton, symmetric_path):\n"
        "    compiled = torch.compile(loss, fullgraph=True)\n"
        "    for seed in (1, 2**62, 5):\n"
        "        image = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()\n"
        "        rest = (torch.rand(4), torch.arange(4), seed)\n"
        "        got, expected = compiled(function, image, image, *rest), loss(function, image, image, *rest)\n"
        "        torch.testing.assert_close(got, expected)\n"
        "        torch.testing.assert_close(torch.autograd.grad(got, image), torch.autograd.grad(expected, image))\n"
    )
