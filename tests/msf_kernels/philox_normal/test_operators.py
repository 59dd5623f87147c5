"""The registered operators behind the noise; private names are used on purpose."""

import importlib

import pytest
import torch

from msf_kernels.philox_normal import philox_normal

# By its full name: the attribute msf_kernels.philox_normal is the function.
_ops = importlib.import_module("msf_kernels.philox_normal._ops")

OPERATORS = torch.ops.msf_triton


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "shape"), [(3, [2, 3, 5]), (0, [4]), (2, [])])
def test_the_operator_passes_opcheck(n, shape, dtype):
    torch.library.opcheck(OPERATORS.philox_normal_fwd, (torch.arange(n), shape, 2**62, 7, dtype))


def test_the_operator_of_the_words_passes_opcheck():
    torch.library.opcheck(OPERATORS.philox_words_fwd, (torch.arange(12).view(4, 3).T, torch.arange(4)[::2]))


def test_the_cpu_body_is_the_definition_where_triton_compiles(run_fresh):
    run_fresh(
        "import torch\n"
        "from msf_kernels import philox_normal\n"
        "from msf_kernels.philox_normal._ops import philox_normal_triton\n"
        "index = torch.arange(5)\n"
        "expected = philox_normal(index, (3, 7), 9, stream=2, backend='reference')\n"
        "assert torch.equal(philox_normal_triton(index, (3, 7), 9, stream=2), expected)\n"
    )


@pytest.mark.slow
@pytest.mark.compiler
def test_inductor_gives_the_same_bits_as_the_first_call_of_a_process_and_for_every_seed(run_fresh):
    # Inductor computes array offsets in 32 bits; were a counter taken for one, its products would overflow.
    run_fresh(
        "import torch\n"
        "from msf_kernels import philox_normal\n"
        "def draw(index, seed): return philox_normal(index, (6, 32, 32), seed, stream=1, backend='reference')\n"
        "compiled = torch.compile(draw, fullgraph=True)\n"
        "index = torch.arange(4) * 2**33\n"
        "for seed in (7, 8, 2**40 + 3, 2**63 - 1, 0, 1):\n"
        "    got = compiled(index, seed)\n"
        "    assert torch.equal(got, draw(index, seed)), seed\n"
        "assert torch._dynamo.utils.counters['stats']['unique_graphs'] <= 3\n"
    )


@pytest.mark.compiler
def test_the_operator_compiles_into_one_graph_with_a_symbolic_seed(run_fresh):
    run_fresh(
        "import torch\n"
        "from msf_kernels.philox_normal._ops import philox_normal_triton as draw\n"
        "compiled = torch.compile(lambda index, seed: 2 * draw(index, (3, 5), seed), fullgraph=True, dynamic=True)\n"
        "for n, seed in ((2, 5), (3, 2**62 + 1), (7, 6)):\n"
        "    index = torch.arange(n)\n"
        "    assert torch.equal(compiled(index, seed), 2 * draw(index, (3, 5), seed))\n"
    )


def test_an_explicit_backend_is_refused_with_its_reason_where_triton_compiles(run_fresh):
    pytest.importorskip("triton")
    run_fresh(
        "import torch, msf_kernels\n"
        "try:\n"
        "    msf_kernels.philox_normal(torch.arange(2), (3,), 0, backend='triton')\n"
        "except msf_kernels.BackendUnavailableError as error:\n"
        "    text = str(error)\n"
        "    assert 'triton: needs a CUDA device' in text or 'takes tensors on cuda; got cpu' in text, text\n"
        "else:\n"
        "    raise AssertionError('served')\n"
    )


def test_automatic_choice_never_takes_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_ops, "_normal_fwd", lambda *_: pytest.fail("the interpreter ran"))
    assert philox_normal(torch.arange(2), (3,), 0).shape == (2, 3)
