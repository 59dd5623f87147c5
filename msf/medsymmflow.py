"""The method as one object: a velocity network with what is needed to train, classify and generate with it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from msf.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from msf.classify import classify
from msf.codes import make_code
from msf.config import CodeName, ExperimentConfig, FlowName, MethodName, QkvOrder, TaskConfig
from msf.data import seeded_generator
from msf.generate import generate
from msf.official import PUBLISHED_HEAD_CHANNELS, OfficialReport, load_official
from msf.uncertainty import Decision, Prediction
from msf.unet import UNet
from msf.velocity import FlowSolver, Time
from msf_kernels.sampling import StopRule
from msf_kernels.shapes import ImageBatch, JointState

_log = logging.getLogger(__name__)


class MedSymmFlow:
    """One velocity field that classifies pictures, with uncertainty, and generates them.

    Args:
        task: What the data decided: classes and channels.
        experiment: Everything else; `code`, `data.image_size`, `network` and `path.time_coupling` matter here.
        network: Velocity network to use; default: a fresh `UNet` of the configuration, whose velocity is zero.

    Attributes:
        task: As given.
        config: The experiment.
        code: The label code.
        network: The velocity network, `network(z, t)`, on joint states [N, C + K, H, W].
        official_report: After `from_official`: what was inferred and what was assumed. Else None.

    Raises:
        ValueError: The configuration asks for an autoencoder, or for a code that these classes cannot have.

    Source:
        MedSymmFlow, arXiv 2507.19098; SymmFlow, arXiv 2506.10634.
    """

    def __init__(self, task: TaskConfig, experiment: ExperimentConfig, *, network: nn.Module | None = None) -> None:
        """Wire network and code together."""
        if experiment.autoencoder.name != "identity":
            raise ValueError(
                "autoencoder must be 'identity': flows on latents cannot be run yet; "
                f"got {experiment.autoencoder.name!r}"
            )
        self.task = task
        self.config = experiment
        self.code = make_code(experiment.code, task.n_classes)
        channels = task.image_channels + self.code.n_channels
        n_times = 2 if self.has_independent_times else 1
        self.network = network or UNet(experiment.network, channels, channels, n_times=n_times)
        self.official_report: OfficialReport | None = None

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Load what `save_pretrained` or training wrote.

        Args:
            folder_or_hub_id: A folder, or `owner/name` of a model repository on the Hugging Face hub.
            revision: Branch, tag or commit of the repository.

        Returns:
            The flow, on the CPU.

        Raises:
            FileNotFoundError: No such checkpoint.
            ValueError: Not a checkpoint, or tensors that do not fit its configuration.
            TypeError: A configuration value of the wrong type.
        """
        task, experiment, state_dict = load_checkpoint(find_checkpoint(folder_or_hub_id, revision=revision))
        return cls._with_weights(task, experiment, state_dict)

    @classmethod
    def from_official(
        cls,
        path: str | os.PathLike[str],
        *,
        n_classes: int,
        code: CodeName = "rgb",
        head_channels: int | None = PUBLISHED_HEAD_CHANNELS,
        num_heads: int | None = None,
        qkv_order: QkvOrder = "legacy",
        beta: float = 4.0,
        **others: Any,
    ) -> Self:
        """Load a checkpoint of the authors' code; what was inferred and what was assumed is logged and kept.

        Args:
            path: A bare state dict of the U-Net, .pt or .safetensors.
            n_classes: Classes that it was trained on.
            code: `rgb` or `grey`.
            head_channels: Channels per attention head, which the file does not tell.
            num_heads: Attention heads; takes the place of the default of `head_channels`.
            qkv_order: Packing of queries, keys and values, which the file does not tell.
            beta: The code's parameter.
            **others: Further arguments of `msf.official.load_official`, such as `image_size`.

        Returns:
            The flow, on the CPU, with `official_report`.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not such a checkpoint, or arguments that contradict it.
        """
        if num_heads is not None and head_channels == PUBLISHED_HEAD_CHANNELS:
            head_channels = None
        task, experiment, state_dict, report = load_official(
            path,
            n_classes=n_classes,
            code=code,
            head_channels=head_channels,
            num_heads=num_heads,
            qkv_order=qkv_order,
            beta=beta,
            **others,
        )
        _log.info("imported %s:\n%s", os.fspath(path), report)
        flow = cls._with_weights(task, experiment, state_dict)
        flow.official_report = report
        return flow

    @classmethod
    def _with_weights(cls, task: TaskConfig, experiment: ExperimentConfig, state_dict: dict[str, Tensor]) -> Self:
        flow = cls(task, experiment)
        flow.network.load_state_dict(state_dict)
        flow.network.eval()
        return flow

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors`; a kill at any moment leaves the old or the new checkpoint.

        Args:
            folder: Created if missing.

        Raises:
            OSError: The folder cannot be written.
        """
        save_checkpoint(folder, self.task, self.config, self.network.state_dict())

    @property
    def has_independent_times(self) -> bool:
        """Whether the network takes one time per stream, as the conditional flows need."""
        return self.config.path.time_coupling == "independent"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights and arithmetic."""
        return next(self.network.parameters()).dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the network, in place.

        Args:
            device: Where predictions and pictures are computed.
            dtype: Dtype of the weights and of the network's arithmetic, such as `torch.bfloat16`. States, times,
                distances and statistics stay float32 or better.

        Returns:
            This flow.

        Raises:
            TypeError: `dtype` is not a floating-point dtype.
        """
        self.network.to(device=device, dtype=dtype)
        return self

    def velocity_field(self, z: JointState, t: Time) -> JointState:
        """Return the velocity of the joint state: what the solvers integrate.

        Args:
            z: [N, C + K, H, W], picture channels first, float.
            t: A number, a 0-dim tensor or [N], in [0, 1]; with independent times also [1, 2] or [N, 2] as
                (t_image, t_semantic), while one time then means both.

        Returns:
            Like z, in its dtype. Differentiable.

        Raises:
            TypeError: `t` is neither a number nor a floating tensor.
            ValueError: Shape of z or t.
        """
        velocity: Tensor = self.network(z, t)
        return velocity.to(z.dtype)

    def classify(
        self,
        images: Tensor,
        n_samples: int = 64,
        n_steps: int = 1,
        method: MethodName = "euler",
        flow: FlowName = "joint",
        seed: int = 0,
        noise: Tensor | None = None,
        *,
        micro_batch: int | None = None,
        decision: Decision = "distance",
        stop: StopRule | None = None,
        antithetic: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep_samples: bool = False,
    ) -> Prediction:
        """Classify pictures, with uncertainty, by sending noise back to the code of the label `n_samples` times.

        Start [picture ; noise] at t = 1, integrate to t = 0, compare the semantic channels with the codes.

        Args:
            images: Pictures; uint8 [N, H, W] or [N, H, W, C], or float [N, C, H, W] in [-1, 1]; resized to the
                working size.
            n_samples: Noise draws per picture; at most, with `stop`.
            n_steps: Solver steps. One Euler step (published) estimates the mean over all answers; several give one
                possible answer per draw.
            method: `euler`, `midpoint`, `heun`, `rk4` or `rk4_38`.
            flow: `joint` (published): both streams move. `conditional`: the picture is held; needs a network trained
                with independent times.
            seed: Seed of the noise, in [0, 2^63).
            noise: Noise to use instead of the seed's; [N, n_samples, K, size, size], float.
            micro_batch: Samples evaluated at once; default: chosen for the machine.
            decision: Rule for the label: `distance` (published mean rule), `pixel_votes` (published mode rule) or
                `probability`.
            stop: Rule that ends the sampling of settled pictures, such as `msf_kernels.sampling.SettledVote`.
            antithetic: Draw noise in pairs of opposite sign.
            progress: Called as `progress(n_done, n_total)`, in samples.
            keep_samples: Keep each draw's distances in `sample_distance`.

        Returns:
            The prediction, on the device of `images`. Its `probability_source` says what its probabilities are: after
            one Euler step with affinely independent codes they are read from the mean code; else they are votes.
            After one step with dependent codes (rgb beyond 3 classes, grey beyond 2) votes are no probabilities: all
            draws estimate the same mean, so they agree even where the picture is ambiguous.

        Raises:
            TypeError: Pictures or noise of the wrong dtype.
            ValueError: A shape, range or name; or a conditional flow of a network with a shared time.

        Numerics:
            No gradients. The state is float32 whatever dtype the network has. A picture's noise is keyed by its
            content: its prediction depends neither on its position nor on its batch, bit for bit at an equal
            micro-batch.

        Source:
            MedSymmFlow, arXiv 2507.19098.
        """
        with self._evaluating():
            return classify(
                self._solver(n_steps, method, flow),
                self.code,
                images,
                image_size=self.config.data.image_size,
                image_channels=self.task.image_channels,
                device=self.device,
                n_samples=n_samples,
                seed=seed,
                noise=noise,
                micro_batch=micro_batch,
                decision=decision,
                stop=stop,
                antithetic=antithetic,
                progress=progress,
                keep_samples=keep_samples,
            )

    def generate(
        self,
        labels: Tensor | Sequence[int],
        n_steps: int = 25,
        method: MethodName = "euler",
        seed: int = 0,
        *,
        noise: Tensor | None = None,
        micro_batch: int | None = None,
        flow: FlowName = "joint",
        dequantise: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageBatch:
        """Make one picture per label.

        Start [noise ; code(label)] at t = 0, integrate to t = 1, keep the image channels.

        Args:
            labels: Classes; [N] int64, in [0, n_classes). Equal labels give different pictures.
            n_steps: Solver steps; 25 published.
            method: `euler`, `midpoint`, `heun`, `rk4` or `rk4_38`.
            seed: Seed of the noise, in [0, 2^63).
            noise: Noise to use instead of the seed's; [N, C, size, size], float.
            micro_batch: Pictures made at once; default: chosen for the machine.
            flow: `joint` (published): both streams move. `conditional`: the code is held; needs a network trained
                with independent times.
            dequantise: Start from the code with the noise that training added to it, instead of the clean code.
            progress: Called as `progress(n_done, n_total)`, in pictures.

        Returns:
            [N, C, size, size] in [0, 1], float32, on the device of `labels`.

        Raises:
            TypeError: Labels that are not int64, noise that is not floating point.
            ValueError: A shape, range or name; or a conditional flow of a network with a shared time.

        Numerics:
            No gradients. Picture i depends on the seed, its label and i alone (with `dequantise`: on all labels'
            number too).

        Source:
            MedSymmFlow, arXiv 2507.19098.
        """
        solver = self._solver(n_steps, method, flow)
        if len(labels) == 0:
            raise ValueError("labels must hold at least one label; got none")
        labels = torch.as_tensor(labels)
        size = self.config.data.image_size
        generator = seeded_generator(seed, device=labels.device) if dequantise else None
        semantic = self.code.encode(labels, size, size, generator=generator)
        with self._evaluating():
            return generate(
                solver,
                semantic,
                image_channels=self.task.image_channels,
                device=self.device,
                seed=seed,
                noise=noise,
                micro_batch=micro_batch,
                progress=progress,
            )

    def _solver(self, n_steps: int, method: MethodName, flow: FlowName) -> FlowSolver:
        if n_steps < 1:
            raise ValueError(f"n_steps must be >= 1; got {n_steps!r}")
        for name, value, known in (("method", method, get_args(MethodName)), ("flow", flow, get_args(FlowName))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if flow == "conditional" and not self.has_independent_times:
            raise ValueError(
                "flow 'conditional' needs a network with one time per stream, trained with "
                "time_coupling='independent'; this one was trained with 'shared'"
            )
        return FlowSolver(self.network, n_steps=n_steps, method=method, flow=flow, dtype=self.dtype)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switch dropout off inside the block, whatever mode training left the network in."""
        was_training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(was_training)
