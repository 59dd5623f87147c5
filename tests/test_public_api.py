"""The public surface is complete, exact and documented."""

import importlib
import inspect
import pkgutil

import pytest

import msf
import msf_kernels

SURFACE = {
    "msf_kernels": {
        "BackendUnavailableError", "backends", "class_distance", "explain", "group_norm_silu", "philox_normal",
        "rk_combine", "spatial_attention", "symmetric_path", "use_backend",
    },
    "msf_kernels.solvers": {
        "BOSH3", "DOPRI5", "EULER", "HEUN", "HEUN_EULER", "MIDPOINT", "RK4", "RK4_38", "Solution", "Tableau",
        "get_tableau", "grid_from_step_size", "integrate", "odeint", "uniform_grid",
    },
}  # fmt: skip
OPERATORS = {
    "attention_block", "class_distance", "conv3x3", "group_norm_silu", "norm_affine", "philox_normal",
    "prepared_convolution", "rk_combine", "spatial_attention", "symmetric_path",
}  # fmt: skip


def public_modules():
    for package in (msf, msf_kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part.startswith("_") for part in module.name.split(".")):
                yield module.name


@pytest.mark.parametrize(("module", "names"), SURFACE.items())
def test_the_promised_names_are_there(module, names):
    assert names <= set(importlib.import_module(module).__all__)


@pytest.mark.parametrize("name", ["msf_kernels", *public_modules()])
def test_all_is_sorted_unique_and_resolves(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    assert all(hasattr(module, entry) for entry in exported)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_documents_arguments_results_errors_numerics_and_source(name):
    function = getattr(msf_kernels, name)
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Numerics:", "Source:"):
        assert section in text, f"{name} lacks {section}"
    parameters = inspect.signature(function).parameters
    assert parameters["backend"].default == "auto"
    for parameter in parameters:
        assert f"{parameter}:" in text, f"{name} does not document {parameter}"


def test_every_operator_has_a_reference_that_can_always_serve():
    table = msf_kernels.backends()
    assert set(table) >= OPERATORS
    assert all(table[name]["reference"] == [] for name in table)


def test_the_flow_is_found_at_the_top_of_the_package():
    from msf.medsymmflow import MedSymmFlow

    assert msf.MedSymmFlow is MedSymmFlow
