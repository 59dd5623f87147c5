"""Generation: from noise and the code of a label to a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msf.config import GenerateSettings
from msf.data import seeded_generator
from msf.data.arrays import as_tensor
from msf.flow.joint_space import JointSpace
from msf.flow.kept import KeptTrajectories
from msf.flow.solver import FlowSolver, check_noise
from msf_kernels.philox_normal import IMAGE_STREAM
from msf_kernels.sampling import InvalidSamplesError, draw
from msf_kernels.shapes import ImageBatch, Labels, SemanticBatch


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What a caller of `MedSymmFlow.generate` wants, as it travels to the engine.

    Args:
        semantic: Semantic maps at t = 0; [N, K, H, W], float, N >= 1.
        settings: How the pictures are made; `size` is the caller's own.
        seed: Seed of the noise.
        noise: Noise to use instead; [N, C, H, W], float.
        key: Numbers of the pictures, which their noise follows; int64 [N]. None: their places.
        progress: Called as `progress(n_done, n_total)`, in pictures.
    """

    semantic: SemanticBatch
    settings: GenerateSettings
    seed: int = 0
    noise: Tensor | None = None
    key: Tensor | None = None
    progress: Callable[[int, int], None] | None = None


class GenerateTrajectory:
    """What one micro-batch does: follow the flow to t = 1 and keep the picture.

    Args:
        solver: Leads from noise and code to the picture.
    """

    def __init__(self, solver: FlowSolver) -> None:
        """Keep the solver."""
        self.solver = solver
        self.is_batch_invariant = solver.network.is_batch_invariant
        self.micro_batch = solver.network.micro_batch

    def __call__(self, codes: SemanticBatch, noise: ImageBatch) -> ImageBatch:
        """Return the picture at t = 1, not clamped; [B, C, H, W]."""
        return self.solver.to_picture(noise, codes)


def generate(
    request: GenerateRequest,
    solver: FlowSolver,
    space: JointSpace,
    device: torch.device,
    trajectories: KeptTrajectories,
) -> ImageBatch:
    """Make one picture per semantic map; `MedSymmFlow.generate` is the public form.

    Args:
        request: Semantic maps and settings.
        solver: Leads from noise and code to the picture; its network is on `device`.
        space: Between joint states and pictures.
        device: Where network and autoencoder are.
        trajectories: Those of earlier calls of the flow.

    Returns:
        Pictures in [0, 1], float32, on the device of the semantic maps.

    Raises:
        TypeError: Noise that is not floating point.
        ValueError: No semantic map, a shape or a number out of range, or a picture that is not finite.

    Numerics:
        The noise of a picture is keyed by its number, so equal labels give different pictures and the first pictures
        are the same whatever follows.
    """
    semantic, settings = request.semantic, request.settings
    noise = None if request.noise is None else as_tensor("noise", request.noise)
    if noise is not None:
        check_noise(noise, "[N, C, H, W]", (len(semantic), *space.image_shape))
    try:
        result = draw(
            trajectories.of(solver, ("generate", settings.guidance), lambda: GenerateTrajectory(solver)),
            semantic,
            1,
            space.image_shape,
            seed=request.seed,
            stream=IMAGE_STREAM,
            noise=None if noise is None else noise[:, None],
            input_key=request.key if noise is None else None,
            statistics={},
            keep_samples=True,
            micro_batch=settings.micro_batch,
            device=device,
            progress=request.progress,
        )
    except InvalidSamplesError as error:
        raise ValueError(
            f"the network must give finite values; got others for picture {error.input_index}: its weights or its "
            "dtype do not serve it"
        ) from error
    (image,) = result.samples.values()
    pictures = space.decode(image[:, 0], device, memory_bytes=settings.memory_bytes)
    return (pictures / 2 + 0.5).clamp(0, 1)


def picture_keys(key: Tensor | None, n: int) -> Tensor:
    """Return the numbers of n pictures as int64 [n] on the CPU: those given, else their places.

    Raises:
        TypeError: Not int64.
        ValueError: No picture; not one per picture, or outside [0, 2^31).
    """
    if n == 0:
        raise ValueError("labels must hold at least one label; got none")
    if key is None:
        return torch.arange(n)
    key = as_tensor("key", key)
    if key.dtype != torch.int64:
        raise TypeError(f"key must be int64; got {key.dtype}")
    if tuple(key.shape) != (n,):
        raise ValueError(f"key must be [N] = [{n}], one per label; got {list(key.shape)}")
    if not 0 <= int(key.min()) <= int(key.max()) < 2**31:
        raise ValueError(f"key must be in [0, 2^31); got values from {int(key.min())} to {int(key.max())}")
    return key.cpu()


def noisy_maps(
    maps: Callable[[Labels, torch.Generator], SemanticBatch], labels: Labels, key: Tensor, seed: int
) -> SemanticBatch:
    """Return the semantic maps of labels, each with noise that follows from the seed and its picture's number.

    Args:
        maps: Makes maps of labels with the noise of a generator.
        labels: int64 [N], N >= 1.
        key: Numbers of the pictures, [N].
        seed: Seed of the noise.
    """
    numbers = zip(labels[:, None], key.tolist(), strict=True)
    return torch.cat([maps(label, seeded_generator(seed, number, device=labels.device)) for label, number in numbers])
