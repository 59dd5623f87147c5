"""The model of an evaluation on a GPU: what is read from machine code, and what a launch is said to take."""

import pytest

from benchmarks.gpu_launches import Launch
from benchmarks.gpu_model import Kernel, Machine, main_loop, predict
from benchmarks.rows import ROOT

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;            /* 0x0 */
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12] ;
        /*0040*/              @P0  BRA 0x10 ;
        /*0050*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0060*/              @!P1 BRA.DIV UR4, 0x0 ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA 0x80;
"""


def test_the_main_loop_is_the_innermost_one_with_the_matrix_instructions():
    assert main_loop(SASS) == (4, 2, 9)
    assert main_loop(SASS.replace("HGMMA", "FFMA"))[1] == 0
    assert main_loop("") == (0, 0, 0)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "held"), [(128, 0, 8, 2), (101, 128, 8, 2), (32, 98304, 8, 2)]
)
def test_a_multiprocessor_holds_what_registers_threads_and_shared_memory_allow(registers, shared, warps, held):
    assert Kernel(registers, shared, 0, 0, 0).per_processor(warps, Machine()) == held


class Case:
    """A matrix product in four rounds of blocks."""

    label, signature_key, is_matmul, num_warps, n_programs = "product", "", True, 8, 4 * 132
    constexprs = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}  # noqa: RUF012


def test_a_product_takes_the_longest_of_its_limits():
    machine, flops = Machine(), 4 * 132 * 10 * 2 * 128 * 128 * 64.0  # ten steps per block
    launch = Launch("msf_triton::x_fwd", ((4, 8, 2, 2), (8, 8), (4, 8, 2, 2)), 1, flops, 1000, (Case(),))
    found = predict(launch, {("product", ""): Kernel(128, 0, 4, 200, 300)}, machine)
    assert found.limits["memory"] == pytest.approx(1000 / machine.memory)
    assert found.limits["matrix units"] == pytest.approx(flops / machine.matmul)
    assert found.limits["instructions"] == pytest.approx(4 * 10 * 200 * 8 / 4 / machine.clock)
    assert found.limits["cache"] == pytest.approx(4 * 10 * 256 * 64 * 2 * 132 / machine.cache)
    assert (found.seconds, found.bound) == (found.limits["cache"], "cache")
    assert found.extra_bytes == 2 * 2 * 4 * 8 * 2 * 2  # the bias: one more read and write of the result


def test_the_page_says_that_it_predicts():
    text = (ROOT / "docs" / "gpu-model.md").read_text()
    assert "**Predictions, not measurements.**" in text
    assert "| 64 | 110 |" in text
