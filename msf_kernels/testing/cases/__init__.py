"""Inputs on which every implementation of an operator is held to its definition.

The fixed ones are the shapes on which kernels break: one value, prime sizes, a batch as large as the map is high, sizes
that fill no block, other memory formats, empty axes. Random ones draw sizes and options from a seed. An operator's
cases are the module of its name; an operator without one is an error, not a gap.
"""

from __future__ import annotations

import importlib
import random
from importlib.util import find_spec
from types import ModuleType

from msf_kernels.testing.case import OperatorCase


def fixed_cases(operator: str) -> list[OperatorCase]:
    """Return the fixed cases of an operator.

    Raises:
        ValueError: The operator has no cases.
    """
    return list(_module(operator).fixed())


def random_case(operator: str, seed: int) -> OperatorCase:
    """Return a case whose sizes and options follow from the seed.

    Raises:
        ValueError: The operator has no cases.
    """
    case: OperatorCase = _module(operator).randomised(random.Random(f"{operator} {seed}"), f"random {seed}")
    return case


def _module(operator: str) -> ModuleType:
    name = f"{__name__}.{operator}"
    if find_spec(name) is None:
        raise ValueError(f"operator must have cases in the module {name}; got {operator!r}")
    return importlib.import_module(name)
