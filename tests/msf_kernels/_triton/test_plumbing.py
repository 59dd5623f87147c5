"""When Triton kernels serve, how they are launched, and that they compile without a GPU; private names on purpose."""

import pytest
import torch

from msf_kernels._triton.machine import is_interpreting, machine_reasons, tensor_reasons


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("ON", True), ("0", False), ("", False), ("no", False)]
)
def test_the_interpreter_is_recognised_as_triton_recognises_it(monkeypatch, value, expected):
    monkeypatch.setattr("msf_kernels._triton.machine._HAS_TRITON", True)
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert is_interpreting() is expected


def test_a_missing_triton_is_the_reason(monkeypatch):
    monkeypatch.setattr("msf_kernels._triton.machine._HAS_TRITON", False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert machine_reasons() == ["triton is not installed"]
    assert not is_interpreting()


def test_a_missing_device_is_the_reason_where_kernels_are_compiled(monkeypatch):
    monkeypatch.setattr("msf_kernels._triton.machine._HAS_TRITON", True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert machine_reasons() == ["needs a CUDA device (or TRITON_INTERPRET=1 for tests)"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert machine_reasons() == []


def test_every_reason_against_the_tensors_is_listed(monkeypatch):
    monkeypatch.setattr("msf_kernels._triton.machine._HAS_TRITON", True)
    tensors = [torch.zeros(2, dtype=torch.float64), torch.zeros(2, device="meta")]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    reasons = tensor_reasons(tensors)
    assert reasons[0] == "Triton takes tensors on cuda; got cpu, meta"
    assert "float64" in reasons[1]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert tensor_reasons([torch.zeros(2)]) == []
    assert tensor_reasons([torch.zeros(2)], [torch.bfloat16]) == ["Triton's interpreter is wrong in bfloat16"]
    assert tensor_reasons(tensors[1:])[0] == "Triton's interpreter takes tensors on cpu; got meta"


@pytest.mark.interpreter
def test_a_launch_uses_the_first_configuration_and_skips_an_empty_grid():
    from msf_kernels._triton.launch import KernelConfig, launch

    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda **arguments: launched.append((grid, arguments["BLOCK"], arguments["x"]))

    configs = (KernelConfig({"BLOCK": 4}), KernelConfig({"BLOCK": 8}))
    launch(Kernel(), configs, lambda blocks: (blocks["BLOCK"], 2), configuration_key=1, x=7)
    launch(Kernel(), configs, lambda blocks: (0,), configuration_key=1, x=7)
    assert launched == [((4, 2), 4, 7)]


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU that this machine does not have."""

    device = torch.device("cuda", 1)


@pytest.mark.interpreter
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (0.5, x)], ids=["tensor", "tensors in a tuple"])
def test_a_launch_runs_on_the_device_of_its_tensors_and_leaves_the_current_one_as_it_was(monkeypatch, wrap):
    from msf_kernels._triton import launch

    current, launched, timed = [0], [], []

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            self.before, current[0] = current[0], self.device.index

        def __exit__(self, *_error):
            current[0] = self.before

    class Kernel:
        def __getitem__(self, grid):
            return lambda **arguments: launched.append((current[0], arguments["BLOCK"]))

    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    x = torch.zeros(2).as_subclass(OnGpu)
    configs = (launch.KernelConfig({"BLOCK": 4}), launch.KernelConfig({"BLOCK": 8}))
    launch.launch(Kernel(), configs, lambda blocks: (1,), first=None, n=2, x=wrap(x))
    assert (launched, current) == ([(1, 4)], [0])
    launch.launch(Kernel(), configs, lambda blocks: (1,), x=wrap(torch.zeros(2)))
    assert launched.pop() == (0, 4)

    # Where all are timed, they are timed there as well, and remembered for that device.
    def do_bench(run):
        timed.append(current[0])
        run()
        return -launched[-1][1]

    monkeypatch.setattr(launch, "_tries_all", lambda: True)
    monkeypatch.setattr(launch.triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(launch, "_fastest", {})
    kernel = Kernel()
    launch.launch(kernel, configs, lambda blocks: (1,), configuration_key="key", x=wrap(x))
    assert (timed, launched[-1], current) == ([1, 1], (1, 8), [0])
    assert list(launch._fastest) == [(kernel, 1, "key")]

    def fails(blocks):
        raise RuntimeError("no grid")

    with pytest.raises(RuntimeError, match="no grid"):
        launch.launch(kernel, configs, fails, x=wrap(x))
    assert current == [0]


def test_no_kernel_is_launched_past_the_guard():
    """Every launch goes through `launch`: no other file indexes a kernel by its grid and calls it."""
    import ast
    from pathlib import Path

    import msf_kernels

    root = Path(msf_kernels.__file__).parent
    subscripted = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    }
    assert {name for name in subscripted if "triton" in name} == {"_triton/launch.py"}


@pytest.mark.interpreter
def test_all_configurations_are_tried_by_either_name_of_the_variable(monkeypatch):
    from msf_kernels._triton import launch

    monkeypatch.setattr(launch, "is_interpreting", lambda: False)
    assert not launch._tries_all()
    monkeypatch.setenv("MSF_KERNELS_TUNE", "1")
    with pytest.warns(DeprecationWarning, match="MSF_KERNELS_TUNE is now MSF_KERNELS_TRY_CONFIGURATIONS"):
        assert launch._tries_all()
    monkeypatch.delenv("MSF_KERNELS_TUNE")
    monkeypatch.setenv("MSF_KERNELS_TRY_CONFIGURATIONS", "1")
    assert launch._tries_all()


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["philox_normal", "symmetric_path", "rk_combine", "class_distance"])
def test_every_kernel_compiles_for_three_architectures_without_a_gpu(run_fresh, operator):
    pytest.importorskip("triton", reason="triton is not installed")
    printed = run_fresh(
        f"from msf_kernels.{operator}._triton import aot_cases\n"
        "kernels = {case.kernel.__name__: case for case in aot_cases(90)}\n"
        "for name, case in kernels.items():\n"
        "    for capability in (80, 90, 100):\n"
        "        assert len(case.compile(capability).asm['cubin']) > 1000\n"
        "    print(name)\n"
    )
    assert f"_{operator}_fwd_kernel" in printed.split()


@pytest.mark.slow
def test_configurations_are_few_and_named_apart(run_fresh):
    pytest.importorskip("triton", reason="triton is not installed")
    run_fresh(
        "import importlib\n"
        "for operator in ('philox_normal', 'symmetric_path', 'rk_combine', 'class_distance'):\n"
        "    module = importlib.import_module(f'msf_kernels.{operator}._triton')\n"
        "    assert len(getattr(module, 'CONFIGS', ())) <= 6\n"
        "    labels = [case.label for case in module.aot_cases(90)]\n"
        "    assert labels and len(set(labels)) == len(labels), labels\n"
    )
