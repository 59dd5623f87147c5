"""The attention block: definition, fused halves, formats, refusals."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels import attention_block, explain

DTYPES = [torch.float32, torch.float16]
BACKENDS = ["reference", "composed", "triton"]
OPERATORS = torch.ops.msf_triton


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(channels, dtype=torch.float32):
    """Norm weight and bias, then weight and bias of both projections."""
    vectors = [seeded(size, seed=i, dtype=dtype) for i, size in enumerate((channels, channels, 3 * channels, channels))]
    weights = [seeded(size, channels, seed=9, dtype=dtype) / channels**0.5 for size in (3 * channels, channels)]
    return vectors[0], vectors[1], weights[0], vectors[2], weights[1], vectors[3]


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_the_definition_is_pytorchs_layers_one_by_one(order):
    x, (norm_weight, norm_bias, *projections) = seeded(2, 12, 3, 5, dtype=torch.float64), parameters(12, torch.float64)
    heads, dim = 3, 4
    h = functional.group_norm(x, 4, norm_weight, norm_bias).flatten(2).transpose(1, 2)
    qkv = functional.linear(h, *projections[:2])
    axes = (2, 15, heads, 3, dim) if order == "legacy" else (2, 15, 3, heads, dim)
    q, k, v = (part.transpose(1, 2) for part in qkv.view(axes).unbind(3 if order == "legacy" else 2))
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = x + functional.linear(mixed, *projections[2:]).transpose(1, 2).reshape(x.shape)
    for backend in ("reference", "composed"):
        got = attention_block(x, norm_weight, norm_bias, *projections, 4, heads, order=order, backend=backend)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_is_channels_last_whatever_the_input(need_backend, backend):
    need_backend("attention_block", backend)
    x = seeded(2, 8, 3, 4)
    results = [
        attention_block(given, *parameters(8), 2, 2, backend=backend)
        for given in (x, x.to(memory_format=torch.channels_last), x.repeat_interleave(2, dim=1)[:, ::2])
    ]
    assert all(result.is_contiguous(memory_format=torch.channels_last) for result in results)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operators_pass_opcheck(dtype):
    x, weight = seeded(2, 8, 3, 4, dtype=dtype), seeded(24, 8, dtype=dtype)
    torch.library.opcheck(OPERATORS.attention_block_projection, (x, weight, seeded(24), None))
    torch.library.opcheck(OPERATORS.attention_block_projection, (x, weight[:8], None, x))


def test_without_a_gpu_and_an_interpreter_the_operators_compute_the_definition(monkeypatch):
    from msf_kernels.attention_block._call import BlockCall
    from msf_kernels.attention_block._ops import attention_block_triton

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = seeded(2, 8, 3, 4, dtype=torch.float64)
    arguments = (x, *parameters(8, torch.float64), 2, 2)
    got, expected = attention_block_triton(BlockCall(*arguments)), attention_block(*arguments, backend="reference")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert got.stride() == expected.stride()


@pytest.mark.interpreter
def test_flops_are_those_of_three_products_and_the_attention():
    x, n_tokens = seeded(2, 8, 3, 4), 12
    with FlopCounterMode(display=False) as counter:
        attention_block(x, *parameters(8), 2, 2, backend="triton")
    counts = {str(name).rpartition(".")[2]: flops for name, flops in counter.get_flop_counts()["Global"].items()}
    assert counts["attention_block_projection"] == 2 * 2 * n_tokens * 8 * (24 + 8)


@pytest.mark.parametrize("backend", ["composed", "reference", pytest.param("triton", marks=pytest.mark.interpreter)])
def test_a_call_is_traced_into_one_graph(backend):
    def block(x, *parameters):
        return attention_block(x, *parameters, 2, 2, backend=backend)

    x = seeded(2, 8, 3, 4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(x, *parameters(8)), block(x, *parameters(8)))


def test_the_reference_and_the_composition_are_differentiable():
    x = seeded(1, 4, 2, 2, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, *parameters(4, torch.float64))]
    for backend in ("reference", "composed"):
        assert torch.autograd.gradcheck(
            lambda *tensors, name=backend: attention_block(*tensors, 2, 2, backend=name), inputs
        )


@pytest.mark.interpreter
def test_the_kernels_refuse_gradients_and_what_they_were_not_made_for():
    x = seeded(1, 4, 2, 2)
    reasons = explain("attention_block", x.requires_grad_(), *parameters(4), 2, 2)["triton"]
    assert reasons == ['has no gradient: use the other backends in training (backend="reference"), or torch.no_grad()']
    with pytest.raises(RuntimeError, match="float64 is left to the other backends"):
        attention_block(x.detach().double(), *parameters(4, torch.float64), 2, 2, backend="triton")


X = torch.zeros(2, 8, 3, 4)


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "message"),
    [
        ({0: X[0]}, {}, ValueError, r"x must be \[N, C, H, W\]; got shape"),
        ({1: None}, {}, TypeError, r"norm_weight must be a tensor \[C\]; got NoneType"),
        ({2: torch.zeros(7)}, {}, ValueError, r"norm_bias must be \[C\] = \[8\]; got shape \[7\]"),
        ({3: torch.zeros(24, 8, 1)}, {}, ValueError, r"qkv_weight must be \[3C, C\]; got shape \[24, 8, 1\]"),
        ({3: torch.zeros(24, 8).half()}, {}, TypeError, "qkv_weight must have the dtype of x"),
        ({4: torch.zeros(8)}, {}, ValueError, r"qkv_bias must be \[3C\] = \[24\]; got shape \[8\]"),
        ({5: torch.zeros(24, 8)}, {}, ValueError, r"proj_weight must be \[C, C\] = \[8, 8\]; got shape"),
        ({7: 3}, {}, ValueError, "num_groups must divide the channels of x, 8; got 3"),
        ({8: 3}, {}, ValueError, "num_heads must divide the channels of x, 8; got 3"),
        ({}, {"order": "old"}, ValueError, "order must be one of legacy, new; got 'old'"),
        ({}, {"order": 1}, TypeError, "order must be a string; got int"),
        ({}, {"eps": -1.0}, ValueError, "eps must be finite and > 0; got -1.0"),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(change, kwargs, error, message):
    arguments = [X, *parameters(8), 2, 2]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(error, match=message):
        attention_block(*arguments, **kwargs)
