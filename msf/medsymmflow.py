"""The method as one object: a velocity network with what is needed to train, classify and generate with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from msf.autoencoder import Autoencoder, load_autoencoder
from msf.checkpoints.folder import save_checkpoint
from msf.checkpoints.official import PUBLISHED_HEAD_CHANNELS, OfficialReport, load_official
from msf.checkpoints.pretrained import load_pretrained, require_same_autoencoder
from msf.codes.label_codes import LabelCode, make_code
from msf.config import (
    ClassifySettings,
    CodeName,
    ExperimentConfig,
    GenerateSettings,
    PrecisionName,
    QkvOrder,
    TaskConfig,
    settings_for,
)
from msf.data import resize_images
from msf.data.arrays import as_labels
from msf.files.tensors import require_matching_tensors
from msf.flow.classify import ClassifyRequest, classify
from msf.flow.generate import GenerateRequest, generate, noisy_maps, picture_keys
from msf.flow.guidance import guided
from msf.flow.joint_space import JointSpace
from msf.flow.kept import KeptTrajectories
from msf.flow.solver import FlowSolver, require_trained_for, tableau_of
from msf.judge.uncertainty import Prediction
from msf.network.inference import KeptForm
from msf.network.mode import evaluating
from msf.network.unet import UNet
from msf.network.velocity import Time, Velocity
from msf_kernels.shapes import ImageBatch, JointState, Labels, SemanticBatch

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


class MedSymmFlow:
    """One velocity field that classifies pictures, with uncertainty, and generates them.

    Args:
        task: What the data decided: classes and channels.
        experiment: The rest; `code`, `data.image_size`, `network`, `autoencoder` and `path.time_coupling` matter.
        network: Velocity network to use; default: a fresh `UNet` of the configuration, whose velocity is zero.
        autoencoder: Autoencoder to use; default: loaded as the configuration says.

    Attributes:
        task: As given.
        config: The experiment, with the code that `auto` means for these classes.
        code: The label code, in the units of pictures for `rgb`; see `semantic_code`.
        network: The velocity network, `network(z, t)`, on joint states [N, C + K, H, W] of pictures or latents.
        autoencoder: Between pictures and the network's image channels; `PixelIdentity` where they are the same.
        space: Shapes of the joint state, and the ways between it and pictures.
        official_report: After `from_official`: what was inferred and what was assumed. Else None.

    Raises:
        FileNotFoundError: The autoencoder is not to be had.
        ValueError: A code that these classes cannot have; an autoencoder that is damaged, needs a package that is
            missing, or cannot encode pictures of this size for this network.

    Source:
        MedSymmFlow, arXiv 2507.19098; SymmFlow, arXiv 2506.10634.
    """

    def __init__(
        self,
        task: TaskConfig,
        experiment: ExperimentConfig,
        *,
        network: nn.Module | None = None,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        """Wire network, code and autoencoder together."""
        self.task = task
        self.config = experiment = experiment.settled(task)
        self.code = make_code(experiment.code, task.n_classes)
        self.autoencoder = autoencoder or load_autoencoder(experiment.autoencoder, task.image_channels)
        for settings in (experiment.inference.classify, experiment.inference.generate):
            tableau_of(settings.method)  # an unknown one is refused before anything is trained with it
        self.space = JointSpace(self.autoencoder, self.code, experiment, task)
        channels = self.image_shape[0] + self.semantic_shape[0]
        self.network = network or UNet(experiment.network, channels, channels, n_times=1 + self.has_independent_times)
        self.official_report: OfficialReport | None = None
        self._trajectories = KeptTrajectories()
        self._fast_network = KeptForm(self._trajectories.release)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        autoencoder_source: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load what `save_pretrained` or training wrote.

        Args:
            folder_or_hub_id: A folder, or `owner/name` of a model repository on the Hugging Face hub.
            revision: Branch, tag or commit of the repository.
            autoencoder_source: Folder or hub id of the autoencoder; default: the checkpoint's own copy, else where
                its configuration says.

        Returns:
            The flow, on the CPU.

        Raises:
            FileNotFoundError: No such checkpoint, or its autoencoder is not to be had.
            ValueError: Not a checkpoint, tensors that do not fit its configuration, or another autoencoder than the
                one that it was made with.
            TypeError: A configuration value of the wrong type.
        """
        folder, checkpoint = load_pretrained(folder_or_hub_id, revision=revision, autoencoder_source=autoencoder_source)
        flow = cls._with_weights(checkpoint.task, checkpoint.experiment, checkpoint.state_dict, folder)
        if flow.space.is_latent:
            require_same_autoencoder(checkpoint, flow.autoencoder, folder)
        return flow

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
            **others: Further arguments of `msf.checkpoints.official.load_official`, such as `image_size` and
                `autoencoder_source`.

        Returns:
            The flow, on the CPU, with `official_report`.

        Raises:
            FileNotFoundError: No such file; or the autoencoder of a latent flow is not to be had.
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
        flow = cls._with_weights(task, experiment, state_dict, os.fspath(path))
        flow.official_report = report
        return flow

    @classmethod
    def _with_weights(
        cls, task: TaskConfig, experiment: ExperimentConfig, state_dict: Mapping[str, Tensor], where: str
    ) -> Self:
        flow = cls(task, experiment)
        require_matching_tensors(flow.network.state_dict(), state_dict, where)
        flow.network.load_state_dict(state_dict)
        flow.network.eval()
        return flow

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors`; a kill at any moment leaves the old or the new checkpoint.

        A flow on latents also writes its autoencoder, to the folder `autoencoder` inside, unless that comes from the
        hub; its fingerprint is kept either way.

        Args:
            folder: Created if missing.

        Raises:
            ValueError: The folder holds a checkpoint with another autoencoder.
            OSError: The folder cannot be written.
        """
        save_checkpoint(folder, self.task, self.config, self.network.state_dict(), autoencoder=self.autoencoder)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of the image part of a joint state: pictures, or their latents."""
        return self.space.image_shape

    @property
    def semantic_shape(self) -> tuple[int, int, int]:
        """Shape (K, h, w) of the semantic part of a joint state."""
        return self.space.semantic_shape

    @property
    def semantic_code(self) -> LabelCode:
        """The code whose maps the network sees: `code`, or the latents of its colours, encoded at the first use."""
        return self.space.semantic_code(self.device)

    def semantic_maps(self, labels: Labels, generator: torch.Generator | None = None) -> SemanticBatch:
        """Return the semantic maps of labels at t = 0, as the network sees them.

        Args:
            labels: Classes; [N] int64, in [0, n_classes), or label maps [N, H, W].
            generator: Source of the noise that training adds (the code's dequantisation, or the width of the class
                latents where `autoencoder.posterior` is `sample`); None gives clean maps.

        Returns:
            float32 [N, K, h, w] on the device of `labels`.

        Raises:
            TypeError: Labels that are not int64.
            ValueError: Labels of another rank or outside the classes.
        """
        return self.semantic_code.encode(as_labels(labels), *self.image_shape[1:], generator=generator)

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
        """Dtype of the network's weights."""
        return next(self.network.parameters()).dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move network and autoencoder, in place, and return this flow.

        Args:
            device: Where predictions and pictures are computed.
            dtype: Dtype of the network's weights, such as `torch.bfloat16`, and with `precision="auto"` of its
                arithmetic. States, times, distances, statistics and the autoencoder stay float32 or better.

        Raises:
            TypeError: `dtype` is not a floating-point dtype.
        """
        self.network.to(device=device, dtype=dtype)
        self.autoencoder.to(device)
        return self

    def refresh(self) -> None:
        """Free the network's inference form, which the next prediction makes anew; changes are noticed without."""
        self._fast_network.refresh()

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
        settings: ClassifySettings | None = None,
        *,
        seed: int = 0,
        noise: Tensor | None = None,
        latents: Tensor | None = None,
        progress: Progress | None = None,
        **fields: Any,
    ) -> Prediction:
        """Classify pictures, with uncertainty, by sending noise back to the code of the label many times.

        Start [picture ; noise] at t = 1, integrate to t = 0, compare the semantic channels with the codes. A picture is
        encoded once, whatever the number of draws.

        Args:
            images: Pictures, tensor or NumPy array; uint8 [N, H, W] or [N, H, W, C], or float [N, C, H, W] in [-1, 1]
                (in [0, 1] with `value_range="unit"`); resized to the working size.
            settings: How they are classified; None: as the checkpoint says, `config.inference.classify`.
            seed: Seed of the noise, in [0, 2^63).
            noise: Noise to use instead of the seed's; [N, n_samples, K, h, w] (see `semantic_shape`), float.
            latents: Latents of the pictures, encoded before; [N, L, h, w], float32. None: they are encoded now.
            progress: Called as `progress(n_done, n_total)`, in samples.
            **fields: Single fields of `msf.config.ClassifySettings` in place of those of `settings`, such as
                `n_samples=64, n_steps=4, method="heun", flow="conditional"`.

        Returns:
            The prediction, on the device of `images`. Its `probability_source` says what its probabilities are: after
            one Euler step with affinely independent codes they are read from the mean code; else, as after several
            steps, they are votes. Where pixels have classes, pixels are its rows: see `Prediction.maps`.

        Raises:
            TypeError: A tensor of the wrong dtype, or a setting that does not exist.
            ValueError: A shape, range or name; or a conditional flow of a network with a shared time.
            InvalidPredictionError: The network gives NaN or infinite values for some pictures; the error holds the
                predictions of the others.

        Numerics:
            No gradients. Distances and statistics in float32 and float64, whatever the network's dtype. With a seed,
            the noise of a picture is keyed by the content of the picture as the network sees it: equal pictures get
            equal predictions, and a prediction depends neither on its position nor on its batch, bit for bit (where
            the network is no native float32 form: at an equal micro-batch).

        Source:
            MedSymmFlow, arXiv 2507.19098.
        """
        chosen = settings_for("classify", self.config.inference.classify, settings, fields)
        asked = ClassifyRequest(
            images=images, settings=chosen, seed=seed, noise=noise, latents=latents, progress=progress
        )
        with evaluating(self.network):
            return classify(asked, self._solver(chosen), self.space, self.device, self._trajectories)

    def generate(
        self,
        labels: Tensor | Sequence[int],
        settings: GenerateSettings | None = None,
        *,
        seed: int = 0,
        noise: Tensor | None = None,
        key: Tensor | None = None,
        progress: Progress | None = None,
        **fields: Any,
    ) -> ImageBatch:
        """Make one picture per label.

        Start [noise ; code(label)] at t = 0, integrate to t = 1, keep the image channels; latents are decoded.

        Args:
            labels: Classes; [N] int64, in [0, n_classes), or label maps [N, H, W]. Equal ones give different pictures.
            settings: How they are made; None: as the checkpoint says, `config.inference.generate`.
            seed: Seed of the noise, in [0, 2^63).
            noise: Noise to use instead of the seed's; [N, C, h, w] (see `image_shape`), float.
            key: Numbers of the pictures, in [0, 2^31), int64 [N]; default: their places. Noise follows them.
            progress: Called as `progress(n_done, n_total)`, in pictures.
            **fields: Single fields of `msf.config.GenerateSettings` in place of those of `settings`, such as
                `n_steps=50, method="heun", size=28`.

        Returns:
            [N, C, H, H] in [0, 1], float32, on the device of `labels`; H is the setting `size`, or the working size.

        Raises:
            TypeError: Labels that are not int64, noise that is not floating point, or a setting that does not exist.
            ValueError: A shape, range or name; or a conditional flow of a network with a shared time.

        Numerics:
            No gradients. A picture depends on the seed, its label and its key alone.

        Source:
            MedSymmFlow, arXiv 2507.19098.
        """
        chosen = settings_for("generate", self.config.inference.generate, settings, fields)
        labels = as_labels(labels)
        maps = self.semantic_maps(labels)
        key = picture_keys(key, len(maps))
        semantic = noisy_maps(self.semantic_maps, labels, key, seed) if chosen.dequantise else maps
        request = GenerateRequest(
            semantic=semantic, settings=chosen, seed=seed, noise=noise, key=key, progress=progress
        )
        with evaluating(self.network):
            pictures = generate(request, self._solver(chosen), self.space, self.device, self._trajectories)
        return pictures if chosen.size is None else resize_images(pictures, chosen.size)

    def velocity(self, precision: PrecisionName = "auto", n_draws: int | None = None) -> Velocity:
        """Return what so many draws run on; it tells its `dtype` and `convolution`. ValueError where there is none."""
        return self._fast_network.of(self.network, precision, n_draws)

    def _solver(self, settings: ClassifySettings | GenerateSettings) -> FlowSolver:
        require_trained_for(settings, self.config)
        network = self.velocity(settings.precision, getattr(settings, "n_samples", None))
        network = guided(network, settings, self.space, self.device)
        return FlowSolver.of(network, settings)
