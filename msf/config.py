"""What an experiment is made of: small frozen dataclasses that check themselves, and the named recipes.

A field's `help` metadata is the text of the command-line flag generated from it. A checkpoint stores the whole
`ExperimentConfig`; inference needs no architecture flags. Library functions take the values they need, never this
configuration of everything.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from msf.plain_values import checked_value, require

CodeName = Literal["rgb", "grey", "one_hot", "simplex", "thermometer"]
TimeCoupling = Literal["shared", "independent"]
TimeSampling = Literal["uniform", "logit_normal"]
QkvOrder = Literal["legacy", "new"]
Precision = Literal["fp32", "bf16"]
Selection = Literal["auc_macro_ovr", "accuracy", "balanced_accuracy"]
FlowName = Literal["joint", "conditional"]
MethodName = Literal["euler", "midpoint", "heun", "rk4", "rk4_38"]
PosteriorUse = Literal["mode", "sample"]
ReadoutName = Literal["latent", "decoded"]
FitName = Literal["stretch", "crop"]
ValueRange = Literal["signed", "unit"]

# Codes whose semantic maps are made at the network's resolution, without the autoencoder.
LATENT_RESOLUTION_CODES: tuple[CodeName, ...] = ("one_hot", "simplex", "thermometer")

# No network or picture is larger; what is would be built, or filled, for minutes before memory ends.
_MOST_CHANNELS = 2**14
_MOST_LEVELS = 12
_MOST_BLOCKS = 64
_MOST_PIXELS = 2**14  # along a side


def _described(default: Any, help_text: str, flag: str | None = None) -> Any:
    """Declare a field with the help text of its command-line flag; `flag` where the field's name would not do."""
    return field(default=default, metadata={"help": help_text, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Base of the configuration classes: every field holds a value of its type, numbers are finite."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = checked_value(entry.name, getattr(self, entry.name), hints[entry.name])
            object.__setattr__(self, entry.name, value)
        self._check()

    def _check(self) -> None:
        """Check ranges and combinations; overridden by the classes that have any."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as stored in `config.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from nested plain values; missing fields take their defaults.

        Raises:
            ValueError: Unknown fields (the text lists the known ones) or values out of range.
            TypeError: A value of the wrong type, or a field without default that is missing.
        """
        return typing.cast(Self, _from_dict(cls, values, "config"))


@dataclass(frozen=True, kw_only=True)
class CodeConfig(_Checked):
    """How a label becomes a semantic map (method: label codes)."""

    name: CodeName = _described("rgb", "label code: what the semantic channels mean", "code")
    beta: float = _described(4.0, "rgb: width of the dequantisation noise in colour levels; grey: scale of the labels")

    def _check(self) -> None:
        require(self.beta >= 0, "beta", ">= 0", self.beta)
        require(self.beta <= 1e6, "beta", "<= 1e6", self.beta)


@dataclass(frozen=True, kw_only=True)
class PathConfig(_Checked):
    """The symmetric probability path and how times are drawn on it in training."""

    time_coupling: TimeCoupling = _described(
        "shared", "shared: one time for both streams (published); independent: one per stream"
    )
    sigma_min: float = _described(1e-4, "smallest noise of the path, in training only")
    image_weight: float = _described(0.7, "lambda: weight of the image part of the loss")
    time_sampling: TimeSampling = _described("uniform", "distribution of the training times")
    end_share: float = _described(
        0.0, "share of the training items at exactly t = 1, where one-step classification starts"
    )

    def _check(self) -> None:
        require(0 <= self.sigma_min < 1, "sigma_min", "in [0, 1)", self.sigma_min)
        require(0 <= self.image_weight <= 1, "image_weight", "in [0, 1]", self.image_weight)
        require(0 <= self.end_share <= 1, "end_share", "in [0, 1]", self.end_share)


@dataclass(frozen=True, kw_only=True)
class UNetConfig(_Checked):
    """The ADM U-Net without its input and output widths, which follow from the data and the code."""

    base_channels: int = _described(64, "channels of the first level; a multiple of the groups")
    n_groups: int = _described(
        32, "groups of every normalisation; one channel per group would cancel the time and the grey level"
    )
    channel_multipliers: tuple[int, ...] = _described((1, 2, 2, 2), "channels of each level, as multiples of the base")
    n_res_blocks: int = _described(2, "residual blocks per level")
    attention_down_rates: tuple[int, ...] = _described(
        (2,),
        "down-sampling rates (powers of two) at which attention runs; the middle always has it",
    )
    head_channels: int | None = _described(64, "channels per attention head")
    n_heads: int | None = _described(None, "attention heads; instead of head channels")
    qkv_order: QkvOrder = _described(
        "legacy", "packing of queries, keys and values: legacy (per head) or new (q | k | v)"
    )
    use_scale_shift_norm: bool = _described(False, "time enters as scale and shift after the norm")
    use_residual_updown: bool = _described(False, "residual blocks change the resolution")
    dropout: float = _described(0.0, "dropout inside residual blocks, in training")

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
        if (self.head_channels is None) == (self.n_heads is None):
            raise ValueError(
                "exactly one of head_channels and n_heads must be given; got "
                f"head_channels={self.head_channels!r}, n_heads={self.n_heads!r}"
            )
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)

    @property
    def size_multiple(self) -> int:
        """Height and width that the network takes are multiples of this."""
        return 1 << (len(self.channel_multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """Which images, and at which working size."""

    dataset: str = _described("phantoms", "name of a known data set, or the path of an .npz in MedMNIST layout")
    image_size: int = _described(
        32, "height and width of the pictures; they are resized, and encoded where there is an autoencoder"
    )
    flips: bool | None = _described(
        None, "random horizontal and vertical flips in training; default: as published per data set"
    )

    def _check(self) -> None:
        require(self.image_size > 0, "image_size", "positive", self.image_size)
        require(self.image_size <= _MOST_PIXELS, "image_size", f"<= {_MOST_PIXELS}", self.image_size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """Optimiser, schedule, weight averaging and precision."""

    epochs: int = _described(1000, "passes over the training split")
    batch_size: int = _described(64, "pictures per step")
    learning_rate: float = _described(4e-4, "largest learning rate of the one-cycle cosine schedule")
    min_learning_rate: float = _described(1e-6, "first and last learning rate of the schedule")
    warmup_share: float = _described(0.1, "share of the steps in which the rate rises")
    weight_decay: float = _described(0.0, "decoupled weight decay of AdamW")
    gradient_clip: float = _described(1.0, "largest gradient norm; 0 switches clipping off")
    ema_decay: float = _described(0.7, "decay of the exponential moving average, per step")
    precision: Precision = _described("bf16", "arithmetic of the network in training")
    selection: Selection = _described("auc_macro_ovr", "validation figure that chooses the kept checkpoint")
    validation_samples: int = _described(2, "noise draws per picture in validation")
    checkpoint_seconds: float = _described(60.0, "longest time between two saved training states")
    seed: int = _described(0, "seed of weights, order, times and noise")

    def _check(self) -> None:
        require(self.epochs >= 1, "epochs", ">= 1", self.epochs)
        require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        require(
            0 < self.min_learning_rate <= self.learning_rate,
            "min_learning_rate", f"in (0, learning_rate = {self.learning_rate}]",
            self.min_learning_rate,
        )  # fmt: skip
        require(0 <= self.warmup_share < 1, "warmup_share", "in [0, 1)", self.warmup_share)
        require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        require(self.gradient_clip >= 0, "gradient_clip", ">= 0", self.gradient_clip)
        require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)", self.ema_decay)
        require(self.validation_samples >= 1, "validation_samples", ">= 1", self.validation_samples)
        require(self.checkpoint_seconds >= 0, "checkpoint_seconds", ">= 0", self.checkpoint_seconds)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(_Checked):
    """Pixel space, or the latent space of a pretrained autoencoder."""

    name: Literal["identity", "kl"] = _described(
        "identity", "identity: the flow runs on pixels; kl: on the latents of an AutoencoderKL", "autoencoder"
    )
    source: str | None = _described(None, "hub id or local folder of the autoencoder's weights", "autoencoder-source")
    posterior: PosteriorUse = _described(
        "mode",
        "latents that training sees: the mode of the posterior, or a new sample of it at every step",
        "autoencoder-posterior",
    )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(_Checked):
    """How predictions and pictures are made unless the caller says otherwise."""

    flow: FlowName = _described("joint", "joint (published) or conditional (independent times)")
    classify_method: MethodName = _described("euler", "solver of the classification")
    classify_steps: int = _described(1, "solver steps of the classification")
    n_samples: int = _described(16, "noise draws per picture")
    generate_method: MethodName = _described("euler", "solver of the generation")
    generate_steps: int = _described(25, "solver steps of the generation")
    readout: ReadoutName = _described(
        "latent",
        "what recovered latents are compared with: latent (the classes' own latents) or decoded (published: colours, "
        "after decoding)",
    )

    def _check(self) -> None:
        for name in ("classify_steps", "n_samples", "generate_steps"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TaskConfig(_Checked):
    """What the data decides: never a flag, always stored with a checkpoint."""

    n_classes: int
    image_channels: int
    class_names: tuple[str, ...] = ()
    is_ordinal: bool = False
    original_size: int | None = None  # height and width of the stored pictures; None where they are not known

    def _check(self) -> None:
        require(self.n_classes >= 2, "n_classes", ">= 2", self.n_classes)
        require(self.image_channels in (1, 3), "image_channels", "1 or 3", self.image_channels)
        size = self.original_size
        require(size is None or size >= 1, "original_size", ">= 1", size)
        require(size is None or size <= _MOST_PIXELS, "original_size", f"<= {_MOST_PIXELS}", size)
        require(
            len(self.class_names) in (0, self.n_classes),
            "class_names", f"empty or one per class ({self.n_classes})", self.class_names,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(_Checked):
    """Everything that a checkpoint remembers."""

    data: DataConfig = field(default_factory=DataConfig)
    code: CodeConfig = field(default_factory=CodeConfig)
    path: PathConfig = field(default_factory=PathConfig)
    network: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

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
        if (
            self.autoencoder.name != "identity"
            and self.inference.readout == "decoded"
            and self.code.name in LATENT_RESOLUTION_CODES
        ):
            raise ValueError(
                f"readout must be 'latent' for code {self.code.name!r}, which lives at latent resolution and has "
                "nothing to decode; got 'decoded'"
            )
        if self.inference.flow == "conditional" and self.path.time_coupling == "shared":
            raise ValueError(
                "flow 'conditional' needs a network trained with time_coupling='independent'; got 'shared'"
            )


def _from_dict(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"{where} must be a mapping of fields; got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    known = {entry.name for entry in dataclasses.fields(cls)}
    unknown = sorted(map(str, set(values) - known))
    require(not unknown, where, "made of " + ", ".join(sorted(known)), unknown)
    read: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            read[name] = _from_dict(hint, value, name)  # type: ignore[arg-type]
        elif typing.get_origin(hint) is tuple and isinstance(value, list):
            read[name] = tuple(value)
        else:
            read[name] = value
    absent = [
        entry.name
        for entry in dataclasses.fields(cls)
        if entry.name not in read
        and entry.default is dataclasses.MISSING
        and entry.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise TypeError(f"{where} must have the fields {', '.join(absent)}")
    return cls(**read)


_PUBLISHED_28 = ExperimentConfig(
    data=DataConfig(dataset="bloodmnist", image_size=32),
)

RECIPES: dict[str, ExperimentConfig] = {
    # Minutes on two cores. Half of the items are at t = 1: with uniform times only, a one-step classifier is still at
    # the majority class after six epochs. Eight groups: with 32, every group of the first level is one channel, and
    # the norm takes away what the time embedding added there.
    "cpu-small": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=32),
        path=PathConfig(end_share=0.5),
        network=UNetConfig(base_channels=32, n_groups=8, n_res_blocks=1, head_channels=32),
        train=TrainConfig(epochs=12, batch_size=32, learning_rate=1e-3, ema_decay=0.99),
    ),
    # Synthetic cells, a few minutes on two cores. The simplex code makes one evaluation return class probabilities.
    "demo": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=28),
        code=CodeConfig(name="simplex"),
        path=PathConfig(end_share=0.2),
        network=UNetConfig(
            base_channels=32, n_groups=8, channel_multipliers=(1, 2, 2), n_res_blocks=1, head_channels=32
        ),
        train=TrainConfig(epochs=10, batch_size=32, learning_rate=1e-3, ema_decay=0.99),
    ),
    # A few hundred pictures on two cores, with an autoencoder of `msf train-autoencoder` (32x32 latents). A narrow
    # network, so that every picture can be seen hundreds of times. Selected by accuracy: the order of the distances
    # (the AUC) is best long before the distances themselves, and pictures, are good.
    "latent-cpu-small": ExperimentConfig(
        data=DataConfig(dataset="bloodmnist", image_size=128, flips=True),
        path=PathConfig(end_share=0.4),
        network=UNetConfig(
            base_channels=32, n_groups=8, channel_multipliers=(1, 2, 4), n_res_blocks=1, head_channels=32
        ),
        autoencoder=AutoencoderConfig(name="kl"),
        train=TrainConfig(epochs=260, batch_size=16, learning_rate=1.5e-3, ema_decay=0.99, selection="accuracy"),
    ),
    "published-28": _PUBLISHED_28,
    "published-224": dataclasses.replace(
        _PUBLISHED_28,
        data=DataConfig(dataset="bloodmnist", image_size=256),
        network=UNetConfig(base_channels=128),
        autoencoder=AutoencoderConfig(name="kl", source="stabilityai/sd-vae-ft-mse"),
    ),
}
