"""The CUDA kernels run on the CPU, in orders and under sanitizers that a GPU does not have; docs/cuda-emulation.md."""

import platform
import shutil
import subprocess
import sys

import pytest

from tests.cuda_emulation import library
from tests.cuda_emulation.library import ADDRESS, ALIGNMENT, CSRC, THREAD

pytestmark = [pytest.mark.emulation, pytest.mark.slow]

OPERATORS = ("rk_combine", "philox_normal", "philox_words", "symmetric_path", "class_distance", "group_norm_silu")


@pytest.fixture(scope="session")
def objects(tmp_path_factory, worker_id):
    """Folder of what is compiled once for all tests, and by one of their processes."""
    if sys.platform != "linux":
        pytest.skip(f"the emulation needs Linux; this is {platform.system()}")
    if library.find_compiler() is None:
        pytest.skip("the emulation needs GCC's C++ compiler")
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "cuda_emulation"
    folder.mkdir(exist_ok=True)
    return folder


def run_selftest(mode, folder, orders, operators, *arguments, replacement=None):
    """Build the library and return the finished self-test."""
    if mode.runtime and library.find_runtime(mode.runtime) is None:
        pytest.skip(f"the compiler has no {mode.runtime}")
    emulated = library.build(mode, folder, replacement)
    command = [sys.executable, "-m", "tests.cuda_emulation.run_selftest", str(emulated), orders]
    return subprocess.run(
        [*command, "--op", *operators, *arguments],
        cwd=CSRC.parent,
        env=mode.environment,
        capture_output=True,
        text=True,
    )


def all_passed(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed, 0 refused" in done.stdout
    for operator in OPERATORS:
        assert f"\n{operator} " in done.stdout


def test_every_row_passes_and_the_order_of_threads_and_blocks_changes_no_bit(objects):
    all_passed(run_selftest(ALIGNMENT, objects, "forward,reverse", OPERATORS))


def test_no_kernel_leaves_its_memory(objects):
    # Kernels know elements of four and of two bytes; both formats of two bytes are the same memory.
    arguments = ("--dtype", "float32", "bfloat16", "--seeds", "1")
    all_passed(run_selftest(ADDRESS, objects, "random", OPERATORS, *arguments))


def test_no_two_threads_race(objects):
    all_passed(run_selftest(THREAD, objects, "random", OPERATORS, "--dtype", "float32", "--seeds", "1"))


FAULTS = {
    # Of values that are written again before all threads have read them; here they are read in time in every order.
    "a barrier less": (
        *(THREAD, "class_distance", "launch.cuh"),
        *("  __syncthreads();  // the previous use of `shared` is over\n", "", "data race"),
    ),
    "a bound off by one": (
        *(ADDRESS, "group_norm_silu", "group_norm_silu.cu"),
        *("p < args.n_pixels; p += lane.pixel_step) total", "p <= args.n_pixels; p += lane.pixel_step) total"),
        "heap-buffer-overflow",
    ),
    "an alignment test that always says yes": (
        *(ALIGNMENT, "symmetric_path", "launch.cuh"),
        *("reinterpret_cast<uintptr_t>(pointer) % 16 == 0", "pointer != nullptr", "misaligned address"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(objects, tmp_path, fault):
    mode, operator, file, written, instead, found = FAULTS[fault]
    copy = tmp_path / "cuda"
    shutil.copytree(CSRC / "cuda", copy)
    text = (copy / file).read_text()
    assert text.count(written) == 1
    (copy / file).write_text(text.replace(written, instead))
    arguments = ("--dtype", "float32", "--seeds", "0")
    done = run_selftest(mode, objects, "forward", [operator], *arguments, replacement=copy / f"{operator}.cu")
    assert done.returncode == 66, done.stdout + done.stderr
    assert found in done.stderr


@pytest.fixture(scope="session")
def misuse(objects):
    """Run a kernel that does what none may do, and return the finished process."""
    program = library.build_program(objects, library.HERE / "misuse.cu")
    return lambda name, **more: subprocess.run(
        [program], env={**ALIGNMENT.environment, **more, "MISUSE": name}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("early return", "waits for threads that have returned"),
        ("two barriers", "threads of one block wait at "),
        ("shuffle of some", "waits for a thread that has returned"),
        ("shuffle without itself", "a lane calls a shuffle that does not name it"),
    ],
)
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_what_a_gpu_may_not_survive_ends_the_process(misuse, name, message, order):
    done = misuse(name, MSF_EMULATED_ORDER=order)
    assert done.returncode == 70
    assert message in done.stderr


@pytest.mark.parametrize("name", ["no block", "too many blocks", "too many threads"])
def test_an_impossible_launch_is_an_error_and_runs_nothing(misuse, name):
    assert misuse(name).stdout == "invalid configuration argument: 0 0 0 0\n"


def test_shared_memory_holds_nothing_of_the_block_before(misuse):
    assert misuse("shared before written").stdout == "no error: -nan -nan 0 0\n"


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_shuffle_exchanges_what_the_lanes_had_when_they_came(misuse, order):
    # 0 + ... + 31 and 32 + ... + 63
    done = misuse("sum of a warp", MSF_EMULATED_ORDER=order)
    assert done.stdout == "no error: 496 1520 496 1520\n"
