"""How pictures are classified and made: the records that travel from every door to the engine, and their defaults.

These defaults stand nowhere else. A checkpoint stores both records (`InferenceConfig`); `MedSymmFlow.classify` and
`generate`, `evaluate` and the commands start from the checkpoint's and replace the fields that the caller gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from msf.config.checked import Checked, described
from msf.plain_values import require, shown

FlowName = Literal["joint", "conditional"]
ReadoutName = Literal["latent", "decoded"]
PrecisionName = Literal["auto", "fp32", "bf16"]
GridName = Literal["cubic", "uniform"]
Decision = Literal["distance", "pixel_votes", "probability"]
SetMethod = Literal["split", "class_conditional", "adaptive", "raps", "distance"]
ScalingMethod = Literal["temperature", "vector", "dirichlet"]
ScalingSource = Literal["probability", "distance"]
ValueRange = Literal["signed", "unit"]

MOST_STEPS = 10**6
MOST_CUBIC_STEPS = 10**5  # the first of more would be too short for a double beside t = 1
MOST_PIXELS = 2**14  # along a side of a picture

_PRECISION_HELP = "arithmetic of the network: fp32, bf16, or auto, what is faster here by a fixed rule"


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(Checked):
    """How pictures are classified.

    Args:
        n_samples: Noise draws per picture, >= 1; at most, with `stop`.
        n_steps: Solver steps, >= 1. One Euler step (published) estimates the mean over all answers; several give one
            possible answer per draw.
        method: Name of a tableau of `msf_kernels.solvers`; its existence is checked by the flow. Each of them, embedded
            ones too, takes the steps of the grid.
        grid: Where the steps end: `cubic` (`msf_kernels.solvers.cubic_grid`), dense at t = 1, where the class is
            decided, or `uniform` (published). With one step both are the same.
        flow: `joint` (published): both streams move. `conditional`: the picture is held; needs a network trained with
            independent times.
        decision: Rule for the label: `distance` (published mean rule), `pixel_votes` (published mode rule) or
            `probability`.
        readout: What recovered latents are compared with: `latent` (the classes' own latents) or `decoded` (published:
            they are decoded, and the pictures compared with the colours; the decoder costs many evaluations of the
            network per draw). For flows on pixels both are the same; codes at latent resolution have `latent` only.
        antithetic: Draw noise in pairs of opposite sign.
        precision: Arithmetic of the network: `fp32`, `bf16`, or `auto`, what is faster on the machine by a fixed rule
            (`msf.precision.auto_precision`). States, distances and statistics are float32 or better in each.
        micro_batch: Samples evaluated at once; None: chosen for the machine. Not stored with a checkpoint.
        stop: Rule that ends the sampling of settled pictures, such as `msf_kernels.sampling.SettledVote`. Not stored.
        keep_samples: Keep each draw's distances in `Prediction.sample_distance`. Not stored.
        value_range: What floating-point pictures hold: `signed`, black is -1 and white 1; `unit`, black is 0 and white
            1, as in the pictures of `MedSymmFlow.generate`. None: `signed`, with a warning where that looks wrong. Not
            stored.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: An unknown name, or a number out of range.
    """

    n_samples: int = described(16, "noise draws per picture")
    n_steps: int = described(1, "solver steps of the classification")
    method: str = described("euler", "solver of the classification, such as euler, midpoint, heun, rk4")
    grid: GridName = described(
        "cubic",
        "where several steps end: cubic, dense at t = 1, where the class is decided, or uniform (published)",
    )
    flow: FlowName = described("joint", "joint (published) or conditional (independent times)")
    decision: Decision = described(
        "distance", "rule for the label: smallest mean distance, most pixels, or largest probability"
    )
    readout: ReadoutName = described(
        "latent",
        "what recovered latents are compared with: latent (the classes' own latents) or decoded (published: colours, "
        "after decoding)",
    )
    antithetic: bool = described(False, "draw noise in pairs of opposite sign")
    precision: PrecisionName = described("auto", _PRECISION_HELP)
    micro_batch: int | None = described(
        None, "samples per network evaluation; default: chosen for the machine", is_stored=False
    )
    stop: Any = described(None, None, is_stored=False)
    keep_samples: bool = described(False, None, is_stored=False)
    value_range: ValueRange | None = described(None, None, is_stored=False)

    def _check(self) -> None:
        _require_positive(self, "n_samples", "n_steps", "micro_batch")
        require(self.n_steps <= MOST_STEPS, "n_steps", f"<= {MOST_STEPS}", self.n_steps)
        is_cubic = self.grid == "cubic"
        require(
            not is_cubic or self.n_steps <= MOST_CUBIC_STEPS,
            "n_steps", f"<= {MOST_CUBIC_STEPS} with grid 'cubic'", self.n_steps,
        )  # fmt: skip
        require(self.n_samples < 2**32, "n_samples", "< 2^32", self.n_samples)
        parts = [getattr(self.stop, name, None) for name in ("checkpoints", "start")]
        if self.stop is not None and not all(map(callable, parts)):
            raise TypeError(
                f"stop must be None or a rule such as msf_kernels.sampling.SettledVote(...); got {shown(self.stop)}"
            )


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(Checked):
    """How pictures are made.

    Args:
        n_steps: Solver steps, >= 1; 25 published.
        method: Name of a tableau of `msf_kernels.solvers`; its existence is checked by the flow.
        flow: `joint` (published): both streams move. `conditional`: the code is held; needs a network trained with
            independent times.
        dequantise: Start from the code with the noise that training added to it, instead of the clean code.
        precision: Arithmetic of the network; as for `ClassifySettings`.
        micro_batch: Pictures made at once; None: chosen for the machine. Not stored with a checkpoint.
        guidance: Weight w >= 0 of classifier-free guidance, see `msf.flow.guidance`; 0: none. Needs a network that was
            trained with `label_drop`.
        size: Height and width of the result, >= 1, resized from the working size (bilinear, antialiased); such as
            `task.original_size`, that of the pictures trained on. None: the working size. Not stored.
        memory_bytes: What the decoder's maps may need, estimated; a picture that does not fit is decoded in overlapping
            tiles, which is close to decoding it whole. None: 1 GiB, and never tiles. Not stored.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: An unknown name, or a number out of range.
    """

    n_steps: int = described(25, "solver steps of the generation")
    method: str = described("euler", "solver of the generation, such as euler, midpoint, heun, rk4")
    flow: FlowName = described("joint", "joint (published) or conditional (independent times)")
    dequantise: bool = described(False, "start from codes with the noise of the training")
    precision: PrecisionName = described("auto", _PRECISION_HELP)
    guidance: float = described(
        0.0, "weight of classifier-free guidance; 0: none. Needs a network trained with --label-drop"
    )
    micro_batch: int | None = described(
        None, "pictures per network evaluation; default: chosen for the machine", is_stored=False
    )
    size: int | None = described(None, None, is_stored=False)
    memory_bytes: int | None = described(None, None, is_stored=False)

    def _check(self) -> None:
        _require_positive(self, "n_steps", "micro_batch", "size", "memory_bytes")
        require(self.guidance >= 0, "guidance", ">= 0", self.guidance)
        require(self.size is None or self.size <= MOST_PIXELS, "size", f"<= {MOST_PIXELS}", self.size)
        require(self.n_steps <= MOST_STEPS, "n_steps", f"<= {MOST_STEPS}", self.n_steps)


Settings = TypeVar("Settings", ClassifySettings, GenerateSettings)


def settings_for(call: str, own: Settings, given: Settings | None, fields: Mapping[str, Any]) -> Settings:
    """Return what a call uses: the settings given, else the checkpoint's own, with single fields in their place.

    Args:
        call: Name of the call, for messages.
        own: The checkpoint's settings.
        given: The caller's settings, or None.
        fields: The caller's single fields; None means not given.

    Raises:
        TypeError: `given` is something else, or a field of that name does not exist.
        ValueError: A value out of range.
    """
    settings = own if given is None else given
    if not isinstance(settings, type(own)):
        raise TypeError(
            f"settings must be a {type(own).__name__} or None; got {type(settings).__name__}: single fields are given "
            f"by keyword, as in {call}(..., n_steps=4)"
        )
    known = [entry.name for entry in dataclasses.fields(own)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise TypeError(f"{call} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    return dataclasses.replace(settings, **{name: value for name, value in fields.items() if value is not None})


# Short names of fields of the two records, as flags of training and old checkpoints have them.
SHORT_NAMES = {
    "flow": (("classify", "flow"), ("generate", "flow")),
    "classify_method": (("classify", "method"),),
    "classify_steps": (("classify", "n_steps"),),
    "classify_grid": (("classify", "grid"),),
    "n_samples": (("classify", "n_samples"),),
    "readout": (("classify", "readout"),),
    "generate_method": (("generate", "method"),),
    "generate_steps": (("generate", "n_steps"),),
}


@dataclass(frozen=True, kw_only=True, init=False)
class InferenceConfig(Checked):
    """What a checkpoint classifies and generates with unless the caller says otherwise.

    Args:
        classify: Settings of the classification.
        generate: Settings of the generation.
        **short: Single fields by their short names: `flow` (of both), `classify_method`, `classify_steps`,
            `classify_grid`, `n_samples`, `readout`, `generate_method`, `generate_steps`. They can be read as attributes
            too.

    Raises:
        TypeError: A name that is none of these, or a value of the wrong type.
        ValueError: A value out of range.
    """

    classify: ClassifySettings
    generate: GenerateSettings

    def __init__(
        self, *, classify: ClassifySettings | None = None, generate: GenerateSettings | None = None, **short: Any
    ) -> None:
        """Put fields given by their short names into the records."""
        records: dict[str, Any] = {
            "classify": ClassifySettings() if classify is None else classify,
            "generate": GenerateSettings() if generate is None else generate,
        }
        unknown = sorted(set(short) - set(SHORT_NAMES))
        if unknown:
            raise TypeError(f"InferenceConfig has no field {', '.join(unknown)}; it has {', '.join(SHORT_NAMES)}")
        for name, value in short.items():
            for record, field_name in SHORT_NAMES[name]:
                records[record] = dataclasses.replace(records[record], **{field_name: value})
        for record, value in records.items():
            object.__setattr__(self, record, value)
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        """Return a field of the records by its short name."""
        if name not in SHORT_NAMES:
            raise AttributeError(f"InferenceConfig has no field {name!r}")
        record, field_name = SHORT_NAMES[name][0]
        return getattr(getattr(self, record), field_name)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "inference") -> Self:
        """Build from nested plain values, or from the short names of older checkpoints.

        Without a grid they are from before there was another than the uniform one, and go on to mean that.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"{where} must be a mapping of fields; got {type(values).__name__}")
        short = {name: value for name, value in values.items() if name in SHORT_NAMES}
        others = {name: value for name, value in values.items() if name not in SHORT_NAMES}
        if isinstance(given := others.get("classify", {}), Mapping):
            others["classify"] = {"grid": "uniform", **given}
        nested = super().from_dict(others, where)
        return dataclasses.replace(nested, **short)


def _require_positive(settings: Checked, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= 1, name, ">= 1", value)
