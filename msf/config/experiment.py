"""What an experiment is made of: data, code, path, network, autoencoder, training, and how it is used afterwards.

A field's `help` metadata is the text of the command-line flag generated from it. A checkpoint stores the whole
`ExperimentConfig`; inference needs no architecture flags. Library functions take the values they need, never this
configuration of everything.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, Self

from msf.config.checked import Checked, described
from msf.config.settings import MOST_PIXELS, InferenceConfig
from msf.plain_values import require

CodeName = Literal["rgb", "grey", "one_hot", "simplex", "thermometer"]
CodeChoice = Literal[CodeName, "auto"]
TimeCoupling = Literal["shared", "independent"]
TimeSampling = Literal["uniform", "logit_normal", "cubic"]
LossWeighting = Literal["velocity", "endpoint"]
QkvOrder = Literal["legacy", "new"]
Precision = Literal["auto", "fp32", "bf16"]
Selection = Literal["auc_macro_ovr", "accuracy", "balanced_accuracy", "nll", "brier"]
LOWER_IS_BETTER = ("nll", "brier")  # of the figures to select by
PosteriorUse = Literal["mode", "sample"]
FitName = Literal["stretch", "crop", "pad"]

# Pairs of fields of which one is in force, and the other None.
ALTERNATIVES = (("head_channels", "n_heads"), ("epochs", "steps"), ("ema_decay", "ema_length"))

MOST_EMA_LENGTH = 0.28  # that of equal weights is 1 / sqrt(12)

# No network or picture is larger; what is would be built, or filled, for minutes before memory ends.
_MOST_CHANNELS = 2**14
_MOST_LEVELS = 12
_MOST_BLOCKS = 64


@dataclass(frozen=True, kw_only=True)
class CodeConfig(Checked):
    """How a label becomes a semantic map (method: label codes)."""

    name: CodeChoice = described(
        "rgb",
        "label code: what the semantic channels mean; auto: thermometer where the classes are grades, else simplex",
        "code",
    )
    beta: float = described(4.0, "rgb: width of the dequantisation noise in colour levels; grey: scale of the labels")

    def _check(self) -> None:
        require(self.beta >= 0, "beta", ">= 0", self.beta)
        require(self.beta <= 1e6, "beta", "<= 1e6", self.beta)

    def settled(self, *, is_ordinal: bool) -> Self:
        """Return the code that `auto` means for the classes, and any other one as it is."""
        if self.name != "auto":
            return self
        return dataclasses.replace(self, name="thermometer" if is_ordinal else "simplex")


@dataclass(frozen=True, kw_only=True)
class PathConfig(Checked):
    """The symmetric probability path and how times are drawn on it in training."""

    time_coupling: TimeCoupling = described(
        "shared", "shared: one time for both streams (published); independent: one per stream"
    )
    sigma_min: float = described(1e-4, "smallest noise of the path, in training only")
    image_weight: float = described(0.7, "lambda: weight of the image part of the loss")
    time_sampling: TimeSampling = described(
        "uniform",
        "distribution of the training times: uniform (published), logit_normal, or cubic, dense at t = 1 as the grid "
        "of that name (of independent times only the label's)",
    )
    end_share: float = described(
        0.0, "share of the training items at exactly t = 1, where one-step classification starts"
    )
    loss_weighting: LossWeighting = described(
        "velocity",
        "what the loss measures: velocity (published), or endpoint, the picture and the code that it leads to, which "
        "leaves out what no network can know",
    )

    def _check(self) -> None:
        require(0 <= self.sigma_min < 1, "sigma_min", "in [0, 1)", self.sigma_min)
        require(0 <= self.image_weight <= 1, "image_weight", "in [0, 1]", self.image_weight)
        require(0 <= self.end_share <= 1, "end_share", "in [0, 1]", self.end_share)


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Checked):
    """The ADM U-Net without its input and output widths, which follow from the data and the code."""

    base_channels: int = described(64, "channels of the first level; a multiple of the groups")
    n_groups: int = described(
        32, "groups of every normalisation; one channel per group would cancel the time and the grey level"
    )
    channel_multipliers: tuple[int, ...] = described((1, 2, 2, 2), "channels of each level, as multiples of the base")
    n_res_blocks: int = described(2, "residual blocks per level")
    attention_down_rates: tuple[int, ...] = described(
        (2,),
        "down-sampling rates (powers of two) at which attention runs; the middle always has it",
    )
    head_channels: int | None = described(64, "channels per attention head")
    n_heads: int | None = described(None, "attention heads; instead of head channels")
    qkv_order: QkvOrder = described(
        "legacy", "packing of queries, keys and values: legacy (per head) or new (q | k | v)"
    )
    use_scale_shift_norm: bool = described(False, "time enters as scale and shift after the norm")
    use_residual_updown: bool = described(False, "residual blocks change the resolution")
    dropout: float = described(0.0, "dropout inside residual blocks, in training")

    def _check(self) -> None:
        require(self.n_groups >= 1, "n_groups", ">= 1", self.n_groups)
        require(
            self.base_channels > 0 and self.base_channels % self.n_groups == 0,
            "base_channels", f"a positive multiple of n_groups = {self.n_groups}", self.base_channels,
        )  # fmt: skip
        multipliers = self.channel_multipliers
        require(
            len(multipliers) > 0 and all(m >= 1 for m in multipliers),
            "channel_multipliers", "one whole number >= 1 per level", multipliers,
        )  # fmt: skip
        require(len(multipliers) <= _MOST_LEVELS, "channel_multipliers", f"at most {_MOST_LEVELS}", multipliers)
        widest = self.base_channels * max(multipliers)
        require(
            widest <= _MOST_CHANNELS,
            "base_channels times the largest of channel_multipliers", f"at most {_MOST_CHANNELS}", widest,
        )  # fmt: skip
        require(self.n_res_blocks >= 1, "n_res_blocks", ">= 1", self.n_res_blocks)
        require(self.n_res_blocks <= _MOST_BLOCKS, "n_res_blocks", f"<= {_MOST_BLOCKS}", self.n_res_blocks)
        for name in ("head_channels", "n_heads"):
            heads = getattr(self, name)
            require(heads is None or heads >= 1, name, ">= 1", heads)
        known = tuple(2**level for level in range(len(multipliers)))
        require(
            all(rate in known for rate in self.attention_down_rates),
            "attention_down_rates", f"among {known} for {len(multipliers)} levels",
            self.attention_down_rates,
        )  # fmt: skip
        _require_one(self, "head_channels", "n_heads")
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)

    @property
    def size_multiple(self) -> int:
        """Height and width that the network takes are multiples of this."""
        return 1 << (len(self.channel_multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Which images, and at which working size."""

    dataset: str = described("phantoms", "name of a known data set, or the path of an .npz in MedMNIST layout")
    image_size: int = described(
        32, "height and width of the pictures; they are resized, and encoded where there is an autoencoder"
    )
    flips: bool | None = described(
        None, "random horizontal and vertical flips in training; default: as published per data set"
    )
    calibration_share: float = described(
        0.0, "share of the training pictures that neither train nor choose, but are kept for 'msf calibrate'"
    )
    shift: float = described(
        0.0, "largest random shift in training, as a share of the side; what moves in mirrors the picture at its edge"
    )
    rotation: float = described(
        0.0, "largest random rotation in training, in degrees to either side; corners mirror the picture at its edge"
    )
    brightness: float = described(
        0.0, "largest random change of brightness in training, as a share of the range from black to white, and clipped"
    )

    def _check(self) -> None:
        require(0 <= self.calibration_share < 1, "calibration_share", "in [0, 1)", self.calibration_share)
        require(0 <= self.shift <= 0.5, "shift", "in [0, 0.5]", self.shift)
        require(0 <= self.rotation <= 180, "rotation", "in [0, 180]", self.rotation)
        require(0 <= self.brightness <= 1, "brightness", "in [0, 1]", self.brightness)
        require(self.image_size > 0, "image_size", "positive", self.image_size)
        require(self.image_size <= MOST_PIXELS, "image_size", f"<= {MOST_PIXELS}", self.image_size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """Optimiser, schedule, weight averaging and precision."""

    epochs: int | None = described(1000, "passes over the training split; instead of steps")
    steps: int | None = described(None, "optimiser steps, rounded up to whole epochs; instead of epochs")
    extensions: tuple[int, ...] = described(
        (),
        "epochs to go on for after the run in the folder has ended, each number with a rise and fall of the rate of "
        "its own: 20, and later 20,10",
        "extend",
    )
    init: str | None = described(
        None,
        "folder or hub id of a network to start from; what is not of the same shape and meaning starts afresh, and is "
        "named",
    )
    batch_size: int = described(64, "pictures per step, of all processes together")
    accumulate: int = described(
        1, "parts of a batch that are worked on one after the other, for batches that memory does not hold at once"
    )
    learning_rate: float = described(4e-4, "largest learning rate of the one-cycle cosine schedule")
    min_learning_rate: float = described(1e-6, "first and last learning rate of the schedule")
    warmup_share: float = described(0.1, "share of the steps in which the rate rises")
    weight_decay: float = described(0.0, "decoupled weight decay of AdamW")
    gradient_clip: float = described(1.0, "largest gradient norm; 0 switches clipping off")
    ema_decay: float | None = described(
        0.7, "decay of the moving average of the weights, per step; instead of ema-length"
    )
    ema_length: float | None = described(
        None, "length of a moving average that grows with the run, as a share of it; instead of ema-decay"
    )
    class_balanced: bool = described(
        False,
        "show pictures of every class equally often; probabilities are then those of equally frequent classes",
    )
    label_drop: float = described(
        0.0, "share of the training items whose label is hidden, which --guidance of generation needs; 0.1 is usual"
    )
    precision: Precision = described(
        "bf16", "arithmetic of the network in training; auto: bf16 where its products are fast, else fp32"
    )
    selection: Selection = described("auc_macro_ovr", "validation figure that chooses the kept checkpoint")
    validation_samples: int = described(2, "noise draws per picture in validation")
    validate_every: int | None = described(
        None,
        "epochs between validations; default: so many that they cost at most a tenth of the network's evaluations; the "
        "last epoch is always validated",
    )
    keep_last: int = described(
        0, "last epochs whose networks are kept too, in the folder epochs of the run", is_stored=False
    )
    preview_every: int = described(
        0,
        "epochs between pictures of samples and curves of selective prediction, in the folder previews; 0: none",
        is_stored=False,
    )
    track: str | None = described(
        None,
        "where metrics go besides history.json and metrics.csv: tensorboard, wandb, trackio, several separated by "
        "commas, or none; default: tensorboard if it is installed",
        is_stored=False,
    )
    checkpoint_seconds: float = described(60.0, "longest time between two saved training states")
    seed: int = described(0, "seed of weights, order, times and noise")

    def _check(self) -> None:
        _require_one(self, "epochs", "steps")
        require(self.epochs is None or self.epochs >= 1, "epochs", ">= 1", self.epochs)
        require(self.steps is None or self.steps >= 1, "steps", ">= 1", self.steps)
        require(all(n >= 1 for n in self.extensions), "extend", "numbers of epochs >= 1", self.extensions)
        require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        require(
            1 <= self.accumulate <= self.batch_size,
            "accumulate", f"in [1, batch_size = {self.batch_size}]", self.accumulate,
        )  # fmt: skip
        require(
            0 < self.min_learning_rate <= self.learning_rate,
            "min_learning_rate", f"in (0, learning_rate = {self.learning_rate}]",
            self.min_learning_rate,
        )  # fmt: skip
        require(0 <= self.warmup_share < 1, "warmup_share", "in [0, 1)", self.warmup_share)
        require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        require(self.gradient_clip >= 0, "gradient_clip", ">= 0", self.gradient_clip)
        _require_one(self, "ema_decay", "ema_length")
        decay, length = self.ema_decay, self.ema_length
        require(decay is None or 0 <= decay < 1, "ema_decay", "in [0, 1)", decay)
        require(length is None or 0 < length <= MOST_EMA_LENGTH, "ema_length", f"in (0, {MOST_EMA_LENGTH}]", length)
        require(0 <= self.label_drop < 1, "label_drop", "in [0, 1)", self.label_drop)
        samples = self.validation_samples
        require(1 <= samples < 2**32, "validation_samples", "in [1, 2^32)", samples)
        interval = self.validate_every
        require(interval is None or interval >= 1, "validate_every", ">= 1", interval)
        for name in ("keep_last", "preview_every"):
            require(getattr(self, name) >= 0, name, ">= 0", getattr(self, name))
        require(self.checkpoint_seconds >= 0, "checkpoint_seconds", ">= 0", self.checkpoint_seconds)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)

    def n_epochs(self, n_pictures: int) -> int:
        """Return the passes over so many training pictures: `epochs`, or the least that take `steps` steps."""
        if self.epochs is not None:
            return self.epochs
        return math.ceil((self.steps or 0) / math.ceil(n_pictures / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Checked):
    """Pixel space, or the latent space of a pretrained autoencoder."""

    name: Literal["identity", "kl"] = described(
        "identity", "identity: the flow runs on pixels; kl: on the latents of an AutoencoderKL", "autoencoder"
    )
    source: str | None = described(None, "hub id or local folder of the autoencoder's weights", "autoencoder-source")
    posterior: PosteriorUse = described(
        "mode",
        "latents that training sees: the mode of the posterior, or a new sample of it at every step",
        "autoencoder-posterior",
    )


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Checked):
    """What the data decides: never a flag, always stored with a checkpoint."""

    n_classes: int
    image_channels: int
    class_names: tuple[str, ...] = ()
    is_ordinal: bool = False
    original_size: int | None = None  # height and width of the stored pictures; None where they are not known
    is_per_pixel: bool = False  # whether pixels have classes, and not whole pictures

    def _check(self) -> None:
        require(self.n_classes >= 2, "n_classes", ">= 2", self.n_classes)
        require(self.image_channels in (1, 3), "image_channels", "1 or 3", self.image_channels)
        size = self.original_size
        require(size is None or size >= 1, "original_size", ">= 1", size)
        require(size is None or size <= MOST_PIXELS, "original_size", f"<= {MOST_PIXELS}", size)
        require(
            len(self.class_names) in (0, self.n_classes),
            "class_names", f"empty or one per class ({self.n_classes})", self.class_names,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Checked):
    """Everything that a checkpoint remembers."""

    data: DataConfig = field(default_factory=DataConfig)
    code: CodeConfig = field(default_factory=CodeConfig)
    path: PathConfig = field(default_factory=PathConfig)
    network: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def settled(self, task: TaskConfig) -> Self:
        """Return the experiment with what it leaves to the data: the code that `auto` means for these classes."""
        return dataclasses.replace(self, code=self.code.settled(is_ordinal=task.is_ordinal))

    def _check(self) -> None:
        if self.autoencoder.name != "identity" and self.code.name == "grey":
            raise ValueError(
                "code 'grey' cannot be used with an autoencoder: its one channel has no latents; "
                "use rgb, or a code at latent resolution (one_hot, simplex, thermometer)"
            )
        multiple = self.network.size_multiple
        if self.autoencoder.name == "identity" and self.data.image_size % multiple:
            levels = len(self.network.channel_multipliers)
            raise ValueError(
                f"image_size must be a multiple of {multiple} for {levels} network levels; got {self.data.image_size}"
            )
        if self.inference.generate.guidance and not self.train.label_drop:
            raise ValueError(
                "guidance needs a network trained with label_drop > 0; got label_drop 0 and guidance "
                f"{self.inference.generate.guidance}"
            )
        flows = (self.inference.classify.flow, self.inference.generate.flow)
        if "conditional" in flows and self.path.time_coupling == "shared":
            raise ValueError(
                "flow 'conditional' needs a network trained with time_coupling='independent'; got 'shared'"
            )


def _require_one(config: Checked, *names: str) -> None:
    if sum(getattr(config, name) is not None for name in names) != 1:
        got = ", ".join(f"{name}={getattr(config, name)!r}" for name in names)
        raise ValueError(f"exactly one of {' and '.join(names)} must be given, and the other be None; got {got}")
