"""The registered operators behind the attention, and the blocks of its kernels; private names are used on purpose."""

from importlib import import_module

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels.spatial_attention._ops import spatial_attention_triton
from msf_kernels.spatial_attention._reference import spatial_attention_reference

OPERATORS = torch.ops.msf_triton


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("order", ["legacy", "new"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_operators_pass_opcheck(order, dtype):
    for qkv in (seeded(2, 5, 48, dtype=dtype), seeded(2, 48, 5, dtype=dtype).transpose(1, 2)):
        torch.library.opcheck(OPERATORS.spatial_attention_fwd, (qkv, 2, order))
        out, lse = OPERATORS.spatial_attention_fwd(qkv, 2, order)
        for grad in (torch.ones_like(out), seeded(2, 16, 5, dtype=dtype).transpose(1, 2)):
            torch.library.opcheck(OPERATORS.spatial_attention_bwd, (grad, out, lse, qkv, 2, order))


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_without_a_gpu_and_an_interpreter_the_operators_compute_the_definition_and_its_gradient(monkeypatch, order):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    qkv = seeded(2, 7, 48, dtype=torch.float64).requires_grad_()
    upstream = seeded(2, 7, 16, seed=1, dtype=torch.float64)
    results = []
    for function in (spatial_attention_triton, spatial_attention_reference):
        out = function(qkv, 2, order=order)
        results.append((out, torch.autograd.grad(out, qkv, upstream)[0]))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("backend", ["formula", pytest.param("kernel", marks=pytest.mark.interpreter)])
def test_the_saved_log_sum_exp_is_to_base_two(monkeypatch, backend):
    monkeypatch.setenv("TRITON_INTERPRET", "1" if backend == "kernel" else "0")
    qkv = seeded(2, 70, 48)
    _, lse = OPERATORS.spatial_attention_fwd(qkv, 1, "new")
    q, k, _ = qkv.double().chunk(3, dim=2)
    expected = torch.logsumexp(q @ k.transpose(1, 2) / 4, dim=-1) / torch.tensor(2.0).double().log()
    torch.testing.assert_close(lse, expected[:, None].float(), rtol=1e-6, atol=1e-6)


def test_flops_are_counted_as_pytorch_counts_its_own_attention():
    qkv = seeded(2, 6, 48).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        spatial_attention_triton(qkv, 2).sum().backward()
    product = 2 * 2 * 6 * 6 * 16
    assert counter.get_total_flops() == (2 + 5) * product

    q, k, v = qkv.detach().view(2, 6, 2, 3, 8).permute(3, 0, 2, 1, 4)
    with FlopCounterMode(display=False) as own, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        functional.scaled_dot_product_attention(q, k, v)
    assert own.get_total_flops() == 2 * product


def test_a_call_is_one_operator_per_direction():
    qkv = seeded(2, 6, 48).requires_grad_()
    with torch.profiler.profile() as profile:
        spatial_attention_triton(qkv, 2).sum().backward()
    names = [event.name for event in profile.events() if event.name.startswith("msf_triton::")]
    assert names == ["msf_triton::spatial_attention_fwd", "msf_triton::spatial_attention_bwd"]


@pytest.mark.slow
@pytest.mark.compiler
def test_the_first_call_of_a_process_compiles_into_one_graph_forward_and_backward(run_fresh):
    run_fresh(
        "import torch; torch.manual_seed(0)\n"
        "from msf_kernels import spatial_attention\n"
        "from msf_kernels.spatial_attention._ops import spatial_attention_triton\n"
        "def loss(function, qkv, order):\n"
        "    return function(qkv, 2, order=order).square().sum()\n"
        "for function in (spatial_attention_triton, spatial_attention):\n"
        "    compiled = torch.compile(loss, fullgraph=True)\n"
        "    for n, order in ((2, 'legacy'), (3, 'legacy'), (3, 'new')):\n"
        "        qkv = torch.randn(n, 48, 7).transpose(1, 2).requires_grad_()\n"
        "        got, expected = compiled(function, qkv, order), loss(function, qkv, order)\n"
        "        torch.testing.assert_close(got, expected)\n"
        "        pairs = zip(torch.autograd.grad(got, qkv), torch.autograd.grad(expected, qkv))\n"
        "        for one, other in pairs:\n"
        "            torch.testing.assert_close(one, other)\n"
    )


@pytest.mark.interpreter
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("head_dim", [16, 32, 40, 64, 96, 128])
@pytest.mark.parametrize("n_tokens", [1, 16, 49, 64, 128, 196, 256, 1024])
def test_whole_rows_are_taken_where_they_fit(n_tokens, head_dim, capability):
    from msf_kernels.spatial_attention._triton_fwd import _row_block

    whole_row = _row_block(torch.bfloat16, n_tokens, head_dim, capability)
    fits = n_tokens <= 128 or (n_tokens == 256 and head_dim in (16, 32, 64) and capability >= 90)
    assert (whole_row is not None) == fits
    assert whole_row is None or (whole_row >= max(16, n_tokens) and whole_row < 2 * max(16, n_tokens))


@pytest.mark.interpreter
@pytest.mark.parametrize("n_tokens", [17, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_whole_rows_and_the_running_maximum_give_the_same_numbers(monkeypatch, n_tokens, dtype):
    qkv = seeded(2, n_tokens, 96, dtype=dtype) * 3
    whole = OPERATORS.spatial_attention_fwd(qkv, 2, "legacy")
    monkeypatch.setattr(import_module("msf_kernels.spatial_attention._triton_fwd"), "_row_block", lambda *_args: None)
    monkeypatch.setattr(import_module("msf_kernels.spatial_attention._triton_fwd"), "_online_configs", _blocks_of_16)
    running = OPERATORS.spatial_attention_fwd(qkv, 2, "legacy")
    # The two round the exponents of 2 at different places, each in float32: a relative error of eps times the exponent.
    largest_exponent = float(whole[1].abs().max())
    tolerance = 8 * torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps * largest_exponent
    for one, other in zip(whole, running, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def _blocks_of_16(*_args):
    from msf_kernels._triton.launch import KernelConfig

    return (KernelConfig({"BLOCK_Q": 16, "BLOCK_KV": 16}),)


@pytest.mark.interpreter
@pytest.mark.parametrize("n_shares", [1, 3])
def test_the_queries_of_a_head_can_be_shared_out(monkeypatch, n_shares):
    qkv = seeded(2, 60, 96)
    expected = spatial_attention_reference(qkv, 2)
    monkeypatch.setattr(import_module("msf_kernels.spatial_attention._triton_fwd"), "WANTED_PROGRAMS", 4 * n_shares)
    torch.testing.assert_close(spatial_attention_triton(qkv, 2), expected)


@pytest.mark.interpreter
def test_offsets_beyond_two_to_the_31_elements_are_reached():
    # Items and tokens far apart in a large reservation of which only a few pages are ever touched.
    far = 2**30
    storage = torch.empty(5 * far, dtype=torch.float16)
    qkv = storage.as_strided((2, 3, 48), (48, 2 * far, 1))
    qkv.copy_(seeded(2, 3, 48))
    got = spatial_attention_triton(qkv.requires_grad_(), 1)
    near = qkv.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = spatial_attention_triton(near, 1)
    assert torch.equal(got, expected)
    upstream = seeded(2, 3, 16, seed=1, dtype=torch.float16)
    assert torch.equal(torch.autograd.grad(got, qkv, upstream)[0], torch.autograd.grad(expected, near, upstream)[0])
