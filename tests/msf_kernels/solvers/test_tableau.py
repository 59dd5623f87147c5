import dataclasses
import math
import re

import pytest

from msf_kernels.solvers import (
    BOSH3,
    DOPRI5,
    EULER,
    FEHLBERG2,
    HEUN,
    MIDPOINT,
    RK4,
    Tableau,
    get_tableau,
)
from msf_kernels.solvers.tableau import _BUILT_IN

ALL = list(_BUILT_IN.values())


@pytest.mark.parametrize("tableau", ALL, ids=lambda t: t.name)
def test_every_built_in_is_found_by_name_and_consistent(tableau):
    assert get_tableau(tableau.name) is tableau
    for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
        assert math.isclose(sum(row), node, abs_tol=1e-14)
    assert math.isclose(sum(tableau.weights), 1.0, abs_tol=1e-14)
    if tableau.error_weights is not None:
        assert math.isclose(sum(tableau.error_weights), 0.0, abs_tol=1e-14)


def test_first_same_as_last_is_derived():
    assert [t.name for t in ALL if t.is_first_same_as_last] == ["bosh3", "dopri5"]


def test_fixed_steps_leave_out_the_evaluation_that_only_serves_the_error_estimate():
    assert [len(t.fixed_step_stages) for t in (DOPRI5, BOSH3, FEHLBERG2, RK4)] == [6, 3, 3, 4]


def test_stages_skip_zero_weights():
    last = RK4.stages[3]
    assert (last.node, last.sources, last.weights) == (1.0, (2,), (1.0,))
    assert MIDPOINT.solution.sources == (1,)


def test_the_midpoint_of_the_fifth_order_pair_satisfies_its_own_order_conditions():
    b = DOPRI5.midpoint_weights
    c = DOPRI5.nodes
    for power in range(4):
        moment = sum(weight * node**power for weight, node in zip(b, c, strict=True))
        assert math.isclose(moment, 0.5 ** (power + 1) / (power + 1), abs_tol=1e-12)


def test_sequences_of_numbers_become_tuples_of_floats():
    tableau = Tableau("list", nodes=[0, 1], matrix=[[], [1]], weights=[0.5, 0.5], order=2)
    assert tableau == dataclasses.replace(HEUN, name="list")
    hash(tableau)


def test_tableaux_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EULER.order = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": ()}, "nodes must hold at least one evaluation"),
        ({"matrix": ((), (1.0, 0.0))}, "matrix must be explicit, row i with i entries for 2 nodes; got rows of [0, 2]"),
        ({"matrix": ((1.0,), (1.0,))}, "matrix must be explicit"),
        ({"matrix": ((), (0.9,))}, "matrix row 1 must sum to 1.0; got 0.9"),
        ({"nodes": (0.1, 1.0)}, "matrix row 0 must sum to 0.1; got 0.0"),
        ({"weights": (0.5, 0.6)}, "weights must sum to 1.0; got 1.1"),
        ({"weights": (0.5, math.nan)}, "weights must be finite"),
        ({"weights": (1.0,)}, "weights must have 2 entries; got 1"),
        ({"order": 0}, "order must be >= 1; got 0"),
        ({"order": 3}, "weights must satisfy the order conditions up to 3; one of order 3 gives"),
        ({"weights": (0.4, 0.6)}, "weights must satisfy the order conditions up to 2; one of order 2 gives 0.6"),
        ({"error_weights": (-0.5, 0.6), "embedded_order": 1}, "error_weights must sum to 0.0; got"),
        ({"error_weights": (-0.5, 0.5)}, "error_weights and embedded_order must be given together"),
        (
            {"error_weights": (-0.5, 0.5), "embedded_order": 2},
            "weights - error_weights must satisfy the order conditions up to 2",
        ),
        ({"midpoint_weights": (0.5, 0.5)}, "midpoint_weights must sum to 0.5; got 1.0"),
    ],
)
def test_a_wrong_tableau_is_refused_with_the_coefficient_that_is_wrong(change, message):
    with pytest.raises(ValueError, match="heun: " + re.escape(message)):
        dataclasses.replace(HEUN, **change)


@pytest.mark.parametrize("tableau", ALL, ids=lambda t: t.name)
def test_no_built_in_satisfies_the_conditions_of_a_higher_order_than_it_declares(tableau):
    with pytest.raises(ValueError, match=f"order conditions up to {tableau.order + 1}"):
        dataclasses.replace(tableau, order=tableau.order + 1)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"tableau must be one of bosh3, dopri5, euler, .*; got 'rk5'"):
        get_tableau("rk5")
