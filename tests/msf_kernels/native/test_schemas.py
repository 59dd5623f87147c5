"""The schemas that stand in the sources of the library are those of the table; private names are used on purpose."""

import re
from pathlib import Path

import pytest
import torch

from msf_kernels import _ext
from msf_kernels._schemas import NATIVE, SHARED

BINDINGS = Path(__file__).parents[3] / "csrc" / "bindings.cpp"


def defined_in_the_sources():
    """Return `{name: signature}` of every `m.def` of the bindings, whose string literals may be several."""
    text = re.sub(r"//[^\n]*", "", BINDINGS.read_text())
    found = {}
    for call in re.findall(r"m\.def\(\s*((?:\"[^\"]*\"\s*)+)\)", text):
        name, bracket, rest = "".join(re.findall(r"\"([^\"]*)\"", call)).partition("(")
        found[name] = bracket + rest
    assert len(found) == text.count("m.def(")
    return found


def implemented_in_the_sources():
    return set(re.findall(r"m\.impl\(\"(\w+)\"", BINDINGS.read_text()))


def parsed(name, schema):
    return str(torch._C.parse_schema(f"family::{name}{schema}"))


def test_the_bindings_agree_with_the_table():
    """Also tells which entry is missing where."""
    table = {name: parsed(name, schema) for name, schema in (SHARED | NATIVE).items()}
    assert {name: parsed(name, schema) for name, schema in defined_in_the_sources().items()} == table


def test_everything_that_is_defined_is_implemented():
    assert implemented_in_the_sources() == set(defined_in_the_sources())


def test_no_schema_is_in_the_table_twice():
    assert not set(SHARED) & set(NATIVE)


@pytest.mark.parametrize("name", SHARED)
def test_both_families_register_the_schema_of_the_table(native, name):
    for family in ("msf_triton", "msf_native"):
        schema = str(getattr(getattr(torch.ops, family), name).default._schema)
        assert schema == str(torch._C.parse_schema(f"{family}::{name}{SHARED[name]}"))


@pytest.mark.parametrize(
    "other", ["(Tensor semantic, Tensor codes, int extra) -> (Tensor, Tensor)", "(Tensor codes) -> Tensor"]
)
def test_a_library_of_other_sources_is_refused_by_name(native, monkeypatch, other):
    assert _ext._other_sources("_C.so") is None
    monkeypatch.setitem(_ext.SHARED, "class_distance_fwd", other)
    assert re.search(r"_C.so is of other sources .*class_distance_fwd.*: reinstall", _ext._other_sources("_C.so"))


def test_a_library_without_an_operator_is_refused(native, monkeypatch):
    monkeypatch.setitem(_ext.NATIVE, "new_operator", "() -> bool")
    assert "new_operator() -> bool is absent there" in _ext._other_sources("_C.so")
