"""Generation: from noise and the code of a label to a picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msf.config import FlowName, MethodName
from msf.velocity import VelocityNetwork, image_field
from msf_kernels.philox_normal import IMAGE_STREAM
from msf_kernels.sampling import draw
from msf_kernels.shapes import ImageBatch, SemanticBatch
from msf_kernels.solvers import get_tableau, integrate, uniform_grid


class GenerateTrajectory:
    """What one micro-batch does: integrate t = 0 -> 1 and keep the image channels.

    Args:
        network: Velocity network on joint states.
        dtype: Dtype in which the network wants its input.
        n_steps: Steps of the solver.
        method: Name of a fixed-step method.
        flow: `joint`: both streams move, the code dissolving into noise. `conditional`: the code is held.
    """

    def __init__(
        self, network: VelocityNetwork, *, dtype: torch.dtype, n_steps: int, method: MethodName, flow: FlowName
    ) -> None:
        """Choose grid and tableau."""
        self.network = network
        # A second copy of the state only where the network reads another dtype.
        self.cast_to = None if dtype == torch.float32 else dtype
        self.time_grid = uniform_grid(n_steps)
        self.tableau = get_tableau(method)
        self.flow = flow
        self.nfe = 0

    def __call__(self, semantic: SemanticBatch, noise: ImageBatch) -> ImageBatch:
        """Return the image channels at t = 1: [B, C, H, W], not clamped."""
        if self.flow == "conditional":
            field = image_field(self.network, semantic)
            solution = integrate(field, noise, self.time_grid, self.tableau, cast_to=self.cast_to)
            image = solution.state
        else:
            z_start = torch.cat([noise, semantic], dim=1)
            solution = integrate(self.network, z_start, self.time_grid, self.tableau, cast_to=self.cast_to)
            image = solution.state[:, : noise.shape[1]]
        self.nfe = solution.nfe
        return image


def generate(
    network: VelocityNetwork,
    semantic: SemanticBatch,
    *,
    image_channels: int,
    device: torch.device,
    dtype: torch.dtype,
    n_steps: int,
    method: MethodName,
    flow: FlowName,
    seed: int,
    noise: Tensor | None = None,
    micro_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageBatch:
    """Make one picture per semantic map; `MedSymmFlow.generate` is the public form.

    Args:
        network: Velocity network on joint states; on `device`.
        semantic: Semantic maps at t = 0; [N, K, H, W], float.
        image_channels: Channels of the pictures in the joint state.
        device: Where the network is.
        dtype: Dtype in which the network wants its input.
        n_steps: Steps of the solver.
        method: Name of a fixed-step method.
        flow: `joint` or `conditional`.
        seed: Seed of the noise.
        noise: Noise to use instead; [N, C, H, W], float.
        micro_batch: Pictures made at once.
        progress: Called as `progress(n_done, n_total)`, in pictures.

    Returns:
        [N, C, H, W] in [0, 1], float32, on the device of `semantic`.

    Raises:
        TypeError: Noise that is not floating point.
        ValueError: No labels, or a shape or a number out of range.

    Numerics:
        The noise of a picture is keyed by its position, so equal labels give different pictures and the first
        pictures are the same whatever follows.
    """
    if len(semantic) == 0:
        raise ValueError("labels must hold at least one label; got none")
    noise_shape = (image_channels, *semantic.shape[2:])
    if noise is not None and tuple(noise.shape) != (len(semantic), *noise_shape):
        raise ValueError(f"noise must be [N, C, H, W] = {[len(semantic), *noise_shape]}; got {list(noise.shape)}")
    result = draw(
        GenerateTrajectory(network, dtype=dtype, n_steps=n_steps, method=method, flow=flow),
        semantic,
        1,
        noise_shape,
        seed=seed,
        stream=IMAGE_STREAM,
        noise=None if noise is None else noise[:, None],
        statistics={},
        keep_samples=True,
        micro_batch=micro_batch,
        device=device,
        progress=progress,
    )
    (picture,) = result.samples.values()
    return (picture[:, 0] / 2 + 0.5).clamp(0, 1)
