"""Butcher tableaux of explicit Runge-Kutta methods, checked when they are made.

Nothing here touches a tensor: coefficients are Python floats, so a step's weights never have to come back from a
device. Any explicit method can be written as a `Tableau` and given to the solvers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

# Coefficients are rounded to fp64, so sums of a few of them are off by a few units in the last place of the largest.
_TOLERANCE = 1e-13

# A rooted tree is the sorted tuple of the subtrees that hang on its root.
_Tree: TypeAlias = "tuple[_Tree, ...]"


@dataclass(frozen=True)
class Stage:
    """One evaluation of the velocity field inside a step.

    Args:
        node: The evaluation's place in the step, in units of the step.
        sources: Indices of the earlier slopes that its state is made of, ascending.
        weights: Their weights, none of them zero.
    """

    node: float
    sources: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method, optionally with an embedded error estimate.

    With slopes `k_i = f(t + nodes_i h, z + h sum_j matrix_ij k_j)`, a step gives `z + h sum_i weights_i k_i` and
    the error estimate `h sum_i error_weights_i k_i`.

    Args:
        name: Name for messages.
        nodes: [R] places of the R evaluations in the step; the first is 0.
        matrix: R rows; row i holds the i weights of the earlier slopes, so the first is empty. Rows sum to `nodes`.
        weights: [R]; sum to one.
        order: Declared order of convergence; every order condition up to it is checked.
        error_weights: [R] weights of the solution minus those of the embedded one; sum to zero. None: no estimate.
        embedded_order: Order of the embedded solution, checked likewise; None exactly when `error_weights` is.
        midpoint_weights: [R] weights that give the state at the middle of the step, for interpolation between steps;
            sum to one half. None: interpolate from the slopes at both ends.

    Raises:
        ValueError: A check fails; the text names the coefficient, what it must satisfy and its value.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, chapter II.
    """

    name: str
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int
    error_weights: tuple[float, ...] | None = None
    embedded_order: int | None = None
    midpoint_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Turn any sequences of numbers into tuples of floats, then check every coefficient."""
        object.__setattr__(self, "matrix", tuple(tuple(map(float, row)) for row in self.matrix))
        for label, values in self._vectors():
            object.__setattr__(self, label, tuple(map(float, values)))
        self._check_shape()
        self._check_sums()
        self._check_order("weights", self.weights, self.order)
        if self.error_weights is not None and self.embedded_order is not None:
            embedded = tuple(w - e for w, e in zip(self.weights, self.error_weights, strict=True))
            self._check_order("weights - error_weights", embedded, self.embedded_order)
        # Computed now, not at first use, which torch.compile could not trace: it takes a lock.
        _ = self.is_first_same_as_last, self.fixed_step_stages, self.solution, self.error

    @property
    def n_stages(self) -> int:
        """Number of slopes in the tableau."""
        return len(self.nodes)

    @cached_property
    def is_first_same_as_last(self) -> bool:
        """Whether the last slope is taken at the end of the step, and so is the first slope of the next one."""
        return (
            self.n_stages > 1
            and self.nodes[-1] == 1.0
            and self.weights[-1] == 0.0
            and self.matrix[-1] == self.weights[:-1]
        )

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every evaluation, with zero weights left out."""
        return tuple(_stage(node, row) for node, row in zip(self.nodes, self.matrix, strict=True))

    @cached_property
    def fixed_step_stages(self) -> tuple[Stage, ...]:
        """The evaluations that the solution needs: trailing ones that only serve the error estimate are dropped."""
        return self.stages[: max(self.solution.sources) + 1]

    @cached_property
    def solution(self) -> Stage:
        """The update at the end of the step, as the state of an evaluation there."""
        return _stage(1.0, self.weights)

    @cached_property
    def error(self) -> Stage | None:
        """The error estimate in the same form; None without one."""
        return None if self.error_weights is None else _stage(1.0, self.error_weights)

    def _check_shape(self) -> None:
        if not self.nodes:
            raise ValueError(f"{self.name}: nodes must hold at least one evaluation; got none")
        lengths = [len(row) for row in self.matrix]
        if lengths != list(range(self.n_stages)):
            raise ValueError(
                f"{self.name}: matrix must be explicit, row i with i entries for {self.n_stages} nodes; "
                f"got rows of {lengths}"
            )
        if (self.error_weights is None) != (self.embedded_order is None):
            raise ValueError(f"{self.name}: error_weights and embedded_order must be given together")
        for label, values in self._vectors():
            if len(values) != self.n_stages:
                raise ValueError(f"{self.name}: {label} must have {self.n_stages} entries; got {len(values)}")
        for label, values in [*self._vectors(), *((f"matrix row {i}", row) for i, row in enumerate(self.matrix))]:
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{self.name}: {label} must be finite; got {values}")
        for label, order in (("order", self.order), ("embedded_order", self.embedded_order)):
            if order is not None and order < 1:
                raise ValueError(f"{self.name}: {label} must be >= 1; got {order}")

    def _check_sums(self) -> None:
        rows = zip(self.matrix, self.nodes, strict=True)
        wanted = [(f"matrix row {i}", row, node) for i, (row, node) in enumerate(rows)]
        wanted.append(("weights", self.weights, 1.0))
        if self.error_weights is not None:
            wanted.append(("error_weights", self.error_weights, 0.0))
        if self.midpoint_weights is not None:
            wanted.append(("midpoint_weights", self.midpoint_weights, 0.5))
        for label, values, total in wanted:
            if abs(math.fsum(values) - total) > _TOLERANCE * max(1.0, *map(abs, values), 1.0):
                raise ValueError(f"{self.name}: {label} must sum to {total}; got {math.fsum(values)}")

    def _check_order(self, label: str, weights: tuple[float, ...], order: int) -> None:
        largest = max(1.0, *(abs(value) for row in self.matrix for value in row), *map(abs, weights))
        for size, tree in _rooted_trees(order):
            value = math.fsum(w * phi for w, phi in zip(weights, self._elementary_weights(tree), strict=True))
            if abs(value - 1.0 / _density(tree)) > _TOLERANCE * largest**size:
                raise ValueError(
                    f"{self.name}: {label} must satisfy the order conditions up to {order}; one of order {size} "
                    f"gives {value} instead of {1.0 / _density(tree)}"
                )

    def _elementary_weights(self, tree: _Tree) -> list[float]:
        product = [1.0] * self.n_stages
        for subtree in tree:
            inner = self._elementary_weights(subtree)
            sums = [math.fsum(a * phi for a, phi in zip(row, inner, strict=False)) for row in self.matrix]
            product = [p * s for p, s in zip(product, sums, strict=True)]
        return product

    def _vectors(self) -> list[tuple[str, tuple[float, ...]]]:
        named = [("nodes", self.nodes), ("weights", self.weights)]
        if self.error_weights is not None:
            named.append(("error_weights", self.error_weights))
        if self.midpoint_weights is not None:
            named.append(("midpoint_weights", self.midpoint_weights))
        return named


def get_tableau(name: str) -> Tableau:
    """Return a built-in tableau by name.

    Args:
        name: That of a tableau, such as `"heun"` or `"dopri5"`, or another one that is in use for it: `"rk4_classic"`,
            `"heun2"`, `"adaptive_heun"`. `"rk4"` is the classic method here; in `odeint` it is the 3/8 rule, as in
            torchdiffeq. `"rk4_classic"` and `"rk4_38"` mean the same in both.

    Raises:
        TypeError: Not a string.
        ValueError: Unknown name; the text lists the known ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"tableau must be a Tableau or the name of one; got {type(name).__name__}")
    tableau = _BUILT_IN.get(name) or _OTHER_NAMES.get(name)
    if tableau is None:
        raise ValueError(f"tableau must be one of {', '.join((*sorted(_BUILT_IN), *_OTHER_NAMES))}; got {name!r}")
    return tableau


def as_tableau(tableau: Tableau | str) -> Tableau:
    """Return a tableau as it is, and a name as the tableau that it means; raises as `get_tableau`."""
    return tableau if isinstance(tableau, Tableau) else get_tableau(tableau)


def _stage(node: float, weights: tuple[float, ...]) -> Stage:
    used = tuple((j, weight) for j, weight in enumerate(weights) if weight != 0.0)
    return Stage(node, tuple(j for j, _ in used), tuple(weight for _, weight in used))


def _rooted_trees(order: int) -> Iterator[tuple[int, _Tree]]:
    """All rooted trees with up to `order` vertices: one order condition each."""
    trees: set[_Tree] = {()}
    for size in range(1, order + 1):
        yield from ((size, tree) for tree in sorted(trees))
        trees = {grown for tree in trees for grown in _with_one_more_leaf(tree)}


def _with_one_more_leaf(tree: _Tree) -> Iterator[_Tree]:
    yield tuple(sorted((*tree, ())))
    for i, subtree in enumerate(tree):
        for grown in _with_one_more_leaf(subtree):
            yield tuple(sorted((*tree[:i], grown, *tree[i + 1 :])))


def _size(tree: _Tree) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: _Tree) -> int:
    return _size(tree) * math.prod(map(_density, tree))


EULER = Tableau("euler", nodes=(0.0,), matrix=((),), weights=(1.0,), order=1)

MIDPOINT = Tableau("midpoint", nodes=(0.0, 0.5), matrix=((), (0.5,)), weights=(0.0, 1.0), order=2)

HEUN = Tableau("heun", nodes=(0.0, 1.0), matrix=((), (1.0,)), weights=(0.5, 0.5), order=2)

HEUN3 = Tableau(
    "heun3",
    nodes=(0.0, 1 / 3, 2 / 3),
    matrix=((), (1 / 3,), (0.0, 2 / 3)),
    weights=(1 / 4, 0.0, 3 / 4),
    order=3,
)

RK4 = Tableau(
    "rk4",
    nodes=(0.0, 0.5, 0.5, 1.0),
    matrix=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
)

RK4_38 = Tableau(
    "rk4_38",
    nodes=(0.0, 1 / 3, 2 / 3, 1.0),
    matrix=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    weights=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    order=4,
)

HEUN_EULER = Tableau(
    "heun_euler",
    nodes=(0.0, 1.0),
    matrix=((), (1.0,)),
    weights=(0.5, 0.5),
    order=2,
    error_weights=(-0.5, 0.5),
    embedded_order=1,
)

FEHLBERG2 = Tableau(
    "fehlberg2",
    nodes=(0.0, 1 / 2, 1.0),
    matrix=((), (1 / 2,), (1 / 256, 255 / 256)),
    weights=(1 / 512, 255 / 256, 1 / 512),
    order=2,
    error_weights=(-1 / 512, 0.0, 1 / 512),
    embedded_order=1,
)

# Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, Applied Mathematics Letters 2 (1989).
BOSH3 = Tableau(
    "bosh3",
    nodes=(0.0, 1 / 2, 3 / 4, 1.0),
    matrix=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    weights=(2 / 9, 1 / 3, 4 / 9, 0.0),
    order=3,
    error_weights=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    embedded_order=2,
)

_DOPRI5_WEIGHTS = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_DOPRI5_EMBEDDED = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
# The quartic term of the fourth-order continuous extension, Hairer, Norsett and Wanner I, section II.6.
_DOPRI5_QUARTIC = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)

# Dormand and Prince, A family of embedded Runge-Kutta formulae, J. Comp. Appl. Math. 6 (1980).
DOPRI5 = Tableau(
    "dopri5",
    nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    matrix=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_WEIGHTS[:-1],
    ),
    weights=_DOPRI5_WEIGHTS,
    order=5,
    error_weights=tuple(w - e for w, e in zip(_DOPRI5_WEIGHTS, _DOPRI5_EMBEDDED, strict=True)),
    embedded_order=4,
    # The extension at the middle: cubic Hermite there is (z_0 + z_1) / 2 + h (k_first - k_last) / 8.
    midpoint_weights=tuple(
        w / 2 + d / 16 + (1 / 8 if i == 0 else -1 / 8 if i == 6 else 0.0)
        for i, (w, d) in enumerate(zip(_DOPRI5_WEIGHTS, _DOPRI5_QUARTIC, strict=True))
    ),
)

_BUILT_IN = {
    tableau.name: tableau
    for tableau in (EULER, MIDPOINT, HEUN, HEUN3, RK4, RK4_38, HEUN_EULER, FEHLBERG2, BOSH3, DOPRI5)
}
_OTHER_NAMES = {"rk4_classic": RK4, "heun2": HEUN, "adaptive_heun": HEUN_EULER}
