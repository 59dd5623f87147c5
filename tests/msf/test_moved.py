"""Old module names lead to the modules of today, and say so."""

import importlib
import sys

import pytest

from msf._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_is_found_by_its_old_name_with_a_warning(old):
    for name in [name for name in sys.modules if name == old or name.startswith(f"{old}.")]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__spec__.name == MOVED[old]
    del sys.modules[old]


def test_other_names_are_still_unknown():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("msf.no_such_module")
