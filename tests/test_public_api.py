"""The public surface is complete, exact and documented."""

import difflib
import importlib
import inspect
import pkgutil
import re

import pytest

import msf
import msf_kernels
from tests.public_surface import FOLDER, MODULES, snapshot, surface

OPERATORS = sorted(msf_kernels.backends())


def public_modules():
    for package in (msf, msf_kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part.startswith("_") for part in module.name.split(".")):
                yield module.name


def sort_key(name):
    """Constants, classes, then the rest, as the linter sorts them: numbers in names by their value."""
    pieces = [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]
    return not name.isupper(), not name[0].isupper(), pieces


@pytest.mark.parametrize("module", MODULES)
def test_the_surface_is_exactly_the_snapshot(module):
    """A name, parameter or default that is added, removed or changed shows here as a line of a diff."""
    recorded = snapshot(module).read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(recorded, surface(module), "snapshot", "code", lineterm="", n=0))
    assert not difference, f"{module}: if this is meant, run `python tests/public_surface.py`\n{difference}"


def test_every_snapshot_is_of_a_module():
    assert {path.stem for path in FOLDER.iterdir()} == set(MODULES)


@pytest.mark.filterwarnings("ignore:.*the old name goes with the next release:DeprecationWarning")
@pytest.mark.parametrize("name", ["msf", "msf_kernels", *public_modules()])
def test_all_is_sorted_unique_and_resolves(name):
    module = importlib.import_module(name)
    exported = list(getattr(module, "__all__", []))
    assert exported == sorted(set(exported), key=sort_key)
    assert all(hasattr(module, entry) for entry in exported)


@pytest.mark.parametrize("name", OPERATORS)
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
    assert set(table) <= set(msf_kernels.__all__)
    assert all(table[name]["reference"] == [] for name in table)


def test_the_flow_is_found_at_the_top_of_the_package():
    from msf.medsymmflow import MedSymmFlow

    assert msf.MedSymmFlow is MedSymmFlow
