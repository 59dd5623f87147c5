"""The flows that one network gives, and their solution: both streams together, or one while the other is held.

The joint field is the network itself. A field is `field(z, t) -> v` as the solvers integrate it: `t` is the time of
whatever moves. A velocity has the dtype that the network computes in; the solver adds it to a float32 state. Times are
never rounded below float32.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import torch
from torch import Tensor

from msf.config import ClassifySettings, ExperimentConfig, FlowName, GenerateSettings, GridName
from msf.network.velocity import Time, Velocity, as_velocity
from msf_kernels import rk_combine
from msf_kernels.shapes import ImageBatch, SemanticBatch
from msf_kernels.solvers import Tableau, cubic_grid, get_tableau, integrate, uniform_grid

VelocityField = Callable[[Tensor, Time], Tensor]
_GRIDS = {"cubic": cubic_grid, "uniform": uniform_grid}
Network = Velocity | VelocityField
"""A velocity, or any network `(z, t) -> v`; see `msf.network.unet.UNet.forward` for the forms of `t`."""


class FlowSolver:
    """Follows a flow in either direction with a fixed-step method.

    Args:
        network: Velocity network on joint states.
        n_steps: Steps from one end of the time axis to the other.
        method: Name of the method.
        flow: `joint`: both streams move, and what was given dissolves into noise. `conditional`: it is held.
        grid: Where the steps to the code end; those to the picture are uniform.
        dtype: Dtype in which the network wants its input; the state is float32. None: that of the velocity.

    Attributes:
        dtype: As given, or of the velocity.
        nfe: Evaluations of the network in the last solve, 0 before.

    Raises:
        ValueError: An unknown method, or less than one step.
    """

    def __init__(
        self,
        network: Network,
        *,
        n_steps: int,
        method: str,
        flow: FlowName,
        grid: GridName = "uniform",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Choose grids and tableau."""
        self.network = as_velocity(network)
        self.flow = flow
        self.dtype = self.network.dtype if dtype is None else dtype
        self.tableau = tableau_of(method)
        self.nfe = 0
        self._to_code_grid = _GRIDS[grid](n_steps, start=1.0, end=0.0)
        self._to_picture_grid = uniform_grid(n_steps)
        # A second copy of the state only where the network reads another dtype.
        self._cast_to = None if self.dtype == torch.float32 else self.dtype

    @classmethod
    def of(cls, network: Network, settings: ClassifySettings | GenerateSettings) -> Self:
        """Return what follows a network's flow as the settings say."""
        grid = settings.grid if isinstance(settings, ClassifySettings) else "uniform"
        return cls(network, n_steps=settings.n_steps, method=settings.method, flow=settings.flow, grid=grid)

    @property
    def is_single_evaluation(self) -> bool:
        """Whether a solve is one evaluation at the start, so that it ends at a mean over all answers."""
        return len(self._to_code_grid) == 2 and self.tableau.n_stages == 1

    @property
    def identity(self) -> Hashable:
        """What decides its results beside the network: solvers of equal ones do the same."""
        return self.flow, self.tableau, tuple(self._to_code_grid), tuple(self._to_picture_grid), self._cast_to

    def to_code(self, image: ImageBatch, noise: SemanticBatch) -> SemanticBatch:
        """Return the semantic map at t = 0.

        Args:
            image: Pictures at t = 1, [N, C, H, W].
            noise: Noise at t = 1, [N, K, H, W].
        """
        if self.flow == "conditional":
            return self._solve(semantic_field(self.network, image), noise, self._to_code_grid)
        z_start = torch.cat([image, noise], dim=1)
        return self._solve_part(z_start, self._to_code_grid, slice(image.shape[1], z_start.shape[1]))

    def to_picture(self, noise: ImageBatch, semantic: SemanticBatch) -> ImageBatch:
        """Return the picture at t = 1, not clamped.

        Args:
            noise: Noise at t = 0, [N, C, H, W].
            semantic: Codes at t = 0, [N, K, H, W].
        """
        if self.flow == "conditional":
            return self._solve(image_field(self.network, semantic), noise, self._to_picture_grid)
        z_start = torch.cat([noise, semantic], dim=1)
        return self._solve_part(z_start, self._to_picture_grid, slice(0, noise.shape[1]))

    def _solve_part(self, z_start: Tensor, time_grid: Sequence[float], channels: slice) -> Tensor:
        """Return some channels of the end state; the last step of Euler's method computes no others."""
        if self.tableau.n_stages > 1:
            return self._solve(self.network, z_start, time_grid)[:, channels]
        state, nfe = z_start, 0
        if len(time_grid) > 2:
            state = self._solve(self.network, z_start, time_grid[:-1])
            nfe = self.nfe
        start, end = time_grid[-2:]
        read = state if self._cast_to is None else state.to(self._cast_to)
        velocity = self.network(read, start, channels=channels)
        self.nfe = nfe + 1
        end_state: Tensor = rk_combine(state[:, channels], [velocity], [1.0], end - start)
        return end_state

    def _solve(self, field: VelocityField, z_start: Tensor, time_grid: Sequence[float]) -> Tensor:
        solution = integrate(field, z_start, time_grid, self.tableau, cast_to=self._cast_to)
        self.nfe = solution.nfe
        return solution.state


def tableau_of(method: str) -> Tableau:
    """Return the tableau of a setting `method`.

    Raises:
        ValueError: Unknown name; the text lists the known ones.
    """
    try:
        return get_tableau(method)
    except ValueError as error:
        raise ValueError(str(error).replace("tableau must be", "method must be", 1)) from None


def require_trained_for(settings: ClassifySettings | GenerateSettings, experiment: ExperimentConfig) -> None:
    """Refuse settings that a network of this training cannot serve.

    Raises:
        ValueError: A conditional flow without one time per stream, or guidance without label dropping.
    """
    if settings.flow == "conditional" and experiment.path.time_coupling != "independent":
        raise ValueError(
            "flow 'conditional' needs a network with one time per stream, trained with "
            "time_coupling='independent'; this one was trained with 'shared'"
        )
    if isinstance(settings, GenerateSettings) and settings.guidance and not experiment.train.label_drop:
        raise ValueError(
            f"guidance needs a network that was trained with label dropping, as by 'msf train --label-drop 0.1'; this "
            f"one was not: leave guidance at 0, got {settings.guidance}"
        )


def semantic_field(network: Network, image: ImageBatch) -> VelocityField:
    """Return the field of the semantic stream while the picture is held at t_image = 1.

    `v(semantic, t) = network([image ; semantic], (1, t))`, semantic channels. Its flow from noise (t = 1) to t = 0
    samples p(code | image) exactly if the network is exact; the joint flow does not.

    Args:
        network: Network with one time per stream.
        image: Clean pictures, [N, C, H, W] in [-1, 1].

    Returns:
        `field(semantic, t)`, semantic [N, K, H, W].

    Source:
        One time per stream: UniDiffuser, arXiv 2303.06555.
    """
    velocity, n_channels = as_velocity(network), image.shape[1]

    def field(semantic: SemanticBatch, t: Time) -> SemanticBatch:
        z = torch.cat([image.to(semantic.dtype), semantic], dim=1)
        return velocity(z, (1.0, t), channels=slice(n_channels, z.shape[1]))

    return field


def image_field(network: Network, semantic: SemanticBatch) -> VelocityField:
    """Return the field of the image stream while the code is held at t_semantic = 0.

    `v(image, t) = network([image ; semantic], (t, 0))`, image channels. Its flow from noise (t = 0) to t = 1 samples
    p(image | code) exactly if the network is exact.

    Args:
        network: Network with one time per stream.
        semantic: Codes of the labels, [N, K, H, W].

    Returns:
        `field(image, t)`, image [N, C, H, W].
    """
    velocity = as_velocity(network)

    def field(image: ImageBatch, t: Time) -> ImageBatch:
        z = torch.cat([image, semantic.to(image.dtype)], dim=1)
        return velocity(z, (t, 0.0), channels=slice(0, image.shape[1]))

    return field


def check_noise(noise: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """Refuse noise, given by a caller, that cannot start the flow.

    Args:
        noise: What the caller gave.
        axes: Names of the wanted axes, for the message.
        shape: The wanted shape.

    Raises:
        TypeError: Not floating point.
        ValueError: Another shape.
    """
    if not noise.is_floating_point():
        raise TypeError(f"noise must be floating point; got {noise.dtype}")
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise must be {axes} = {list(shape)}; got {list(noise.shape)}")
