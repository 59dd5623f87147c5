"""The public surface as text, one line per name: `python tests/public_surface.py` writes the snapshots anew.

A snapshot lists what a module's `__all__` names: functions with parameters and defaults, classes with their
constructors, methods, properties and fields, constants with their values. Annotations are left to the type checker.
"""

import dataclasses
import enum
import functools
import importlib
import inspect
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name("public_surface")
MODULES = ("msf", "msf_kernels", "msf_kernels.sampling", "msf_kernels.solvers")


def surface(module_name):
    """Return the lines of a module's snapshot."""
    module = importlib.import_module(module_name)
    return [line for name in sorted(module.__all__) for line in _lines(name, getattr(module, name))]


def snapshot(module_name):
    """Return the file of a module's snapshot."""
    return FOLDER / f"{module_name}.txt"


def _lines(name, value):
    if inspect.isclass(value):
        yield f"class {name}{_bases(value)}{_signature(value)}"
        yield from (f"    {line}" for member in sorted(_members(value)) for line in _member(value, member))
    elif callable(value) and not dataclasses.is_dataclass(value):
        yield f"{name}{_signature(value)}"
    else:
        yield f"{name} = {_shown(value)}"


def _bases(owner):
    if owner.__bases__ == (object,):
        return ""
    return "(" + ", ".join(base.__name__ for base in owner.__bases__) + ")"


def _members(owner):
    bases = [base for base in owner.__mro__ if base.__module__.split(".")[0] in ("msf", "msf_kernels")]
    own = {name for base in bases for name in vars(base)}
    fields = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()
    return {name for name in own | fields if not name.startswith("_")}


def _member(owner, name):
    value = inspect.getattr_static(owner, name, None)
    if isinstance(value, (staticmethod, classmethod)):
        yield f"{type(value).__name__} {name}{_signature(value.__func__)}"
    elif isinstance(value, (property, functools.cached_property)):
        yield f"property {name}"
    elif inspect.isfunction(value):
        yield f"{name}{_signature(value)}"
    elif isinstance(value, enum.Enum):
        yield f"{name} = {value.value!r}"
    else:
        yield f"field {name}"


def _signature(function):
    if inspect.isclass(function) and (issubclass(function, enum.Enum) or getattr(function, "_is_protocol", False)):
        return ""  # nobody calls these, and Python's versions differ in what they would take
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=parameter.default if parameter.default is parameter.empty else _Shown(parameter.default),
        )
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


class _Shown:
    """A default whose representation is the snapshot's."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return _shown(self.value)


def _shown(value):
    """Return a value in a line, without what differs between machines and versions."""
    if dataclasses.is_dataclass(value) and hasattr(value, "name"):
        return f"<{type(value).__name__} {value.name}>"
    if dataclasses.is_dataclass(value):
        return f"<{type(value).__name__}>"
    if isinstance(value, enum.Enum):
        return str(value)
    if inspect.isfunction(value):
        return f"<function {value.__name__}>"
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text or len(text) > 100 else text


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    FOLDER.mkdir(exist_ok=True)
    for name in MODULES:
        snapshot(name).write_text("\n".join(surface(name)) + "\n")
