"""Finding, loading and not finding the extension; private names are used on purpose."""

import torch

from msf_kernels import _ext


def test_importing_the_package_loads_no_library(run_fresh):
    printed = run_fresh(
        "import torch, msf_kernels\n"
        "print(len(torch.ops.loaded_libraries))\n"
        "msf_kernels.backends()\n"
        "from msf_kernels import _ext\n"
        "print(len(torch.ops.loaded_libraries) == (0 if _ext.machine_reasons() else 1))\n"
    )
    assert printed.split() == ["0", "True"]


def test_without_a_library_the_reason_says_how_to_build_it_and_calls_are_served_by_the_reference(run_fresh):
    printed = run_fresh(
        "import torch\n"
        "from msf_kernels import BackendUnavailableError, _ext, backends, rk_combine\n"
        "_ext._find = lambda: None\n"
        "print(backends()['rk_combine']['native'])\n"
        "x = torch.ones(2, 3)\n"
        "print(rk_combine(x, [x], [1.0], 0.5).mean().item())\n"
        "try:\n"
        "    rk_combine(x, [x], [1.0], 0.5, backend='native')\n"
        "except BackendUnavailableError as error:\n"
        "    print(error.reasons['native'])\n"
        "print(torch.compile(lambda x: rk_combine(x, [x], [1.0], 0.5), fullgraph=True, backend='eager')(x).mean())\n"
    )
    reason, served, refused, compiled = printed.splitlines()
    assert "is not built" in reason
    assert "MSF_BUILD_NATIVE=1" in reason
    assert served == "1.5"
    assert refused == reason
    assert "1.5" in compiled


def test_a_library_that_does_not_load_is_a_reason_and_no_crash(tmp_path, monkeypatch):
    broken = tmp_path / "_C.abi3.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_ext, "_find", lambda: broken)
    monkeypatch.setattr(_ext, "_library", None)
    monkeypatch.setattr(_ext, "_failure", None)
    (reason,) = _ext.machine_reasons()
    assert reason.startswith("the native extension _C.abi3.so failed to load: ")


def test_a_cuda_tensor_needs_a_library_that_was_built_with_cuda(monkeypatch):
    class CudaTensor:
        device = torch.device("cuda")

    monkeypatch.setattr(_ext, "_has_cuda_kernel", lambda name: False)
    assert _ext.tensor_reasons("rk_combine_fwd", (CudaTensor(), None)) == [
        "built without CUDA: reinstall with nvcc on PATH and a CUDA build of torch"
    ]
    monkeypatch.setattr(_ext, "_has_cuda_kernel", lambda name: True)
    assert _ext.tensor_reasons("rk_combine_fwd", (CudaTensor(), None)) == []
