"""Command-line flags: groups that commands share, and those generated from the configuration dataclasses.

`@grouped` expands a parameter of a command into several flags: one that is annotated with a dataclass of annotated
fields (`Run`) becomes one flag per field, `ClassifyFields` and `GenerateFields` one per field of those settings, and
`ConfigFields` one per field of an experiment.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from msf.cli.targets import check_target
from msf.config import (
    ALTERNATIVES,
    RECIPES,
    SHORT_NAMES,
    ClassifySettings,
    ExperimentConfig,
    GenerateSettings,
    InferenceConfig,
)
from msf.plain_values import optional_base

Command = TypeVar("Command", bound=Callable[..., None])

Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda:1. Default: CUDA if there is any.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the result as JSON."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where named data sets lie. Default: MSF_DATA, else they are downloaded."),
]
Pictures = Annotated[
    str | None,
    typer.Option(
        help="Data set name, path of an .npz, or a folder or table of pictures. Default: the one the network was "
        "trained on."
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Folder of a trained network, or its hub id. Default: the newest one under runs/."
    ),
]

_RESULTS = {"json_file", "csv_file", "per_image"}

PANELS = {
    "data": "Data",
    "code": "Label code",
    "path": "Path and loss",
    "network": "Network",
    "autoencoder": "Autoencoder",
    "train": "Training",
    "inference": "Inference",
}


@dataclass(frozen=True)
class Run:
    """What every command takes."""

    seed: Seed = 0
    device: Device = None
    json_file: JsonFile = None


@dataclass(frozen=True)
class _Flags:
    """Flags that together make one argument: their parameters, and how their values become it."""

    parameters: Sequence[inspect.Parameter]
    build: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class _SettingsFlags:
    record: type[ClassifySettings] | type[GenerateSettings]

    def flags(self) -> _Flags:
        entries = [entry for entry in dataclasses.fields(self.record) if entry.metadata["help"] is not None]
        hints = typing.get_type_hints(self.record)
        stored = "Default: as the network was trained."
        parameters = [
            _parameter(entry, hints[entry.name], None, note=stored if entry.metadata["is_stored"] else "")
            for entry in entries
        ]
        return _Flags(parameters, lambda given: given)


@dataclass(frozen=True)
class _ConfigFlags:
    groups: tuple[str, ...]

    def flags(self) -> _Flags:
        parameters = [_parameter(entry, hint, PANELS[group]) for group in self.groups for entry, hint in _fields(group)]
        return _Flags(parameters, lambda given: given)


ClassifyFields = Annotated[dict[str, Any], _SettingsFlags(ClassifySettings)]
"""One flag per field of `ClassifySettings`: `{field: value}`, None where the flag was not given."""
GenerateFields = Annotated[dict[str, Any], _SettingsFlags(GenerateSettings)]
ConfigFields = Annotated[dict[str, Any], _ConfigFlags(tuple(PANELS))]
"""One flag per field of `ExperimentConfig`, for `configured`."""


def grouped(command: Command) -> Command:
    """Expand the parameters of a command that stand for groups of flags; see the module.

    Where the results shall be written is checked before the command begins.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, _Flags] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        flags = _group(parameter.annotation)
        if flags is None:
            parameters.append(parameter)
        else:
            groups[parameter.name] = flags
            parameters.extend(flags.parameters)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name in _RESULTS & given.keys():
            check_target(given[name], folder_to_come=given.get("out"))
        for name, flags in groups.items():
            given[name] = flags.build({entry.name: given.pop(entry.name) for entry in flags.parameters})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return typing.cast(Command, run)


def configured(recipe: str, flags: Mapping[str, Any]) -> ExperimentConfig:
    """Return a recipe with the given flags (None: not given) in place of its values.

    Raises:
        ValueError: Unknown recipe (the text lists the known ones), or values that the configuration refuses.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")
    experiment = RECIPES[recipe]
    changed = {}
    for group in PANELS:
        values = {
            entry.name: _parsed(entry.name, hint, flags[_argument(entry)])
            for entry, hint in _fields(group)
            if flags.get(_argument(entry)) is not None
        }
        for pair in ALTERNATIVES:  # giving one of the two replaces the recipe's other
            if values.keys() & pair:
                values = {**dict.fromkeys(pair), **values}
        if values:
            changed[group] = dataclasses.replace(getattr(experiment, group), **values)
    return dataclasses.replace(experiment, **changed)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a flag such as `1,2,2`.

    Raises:
        ValueError: Anything else; the text names the flag's field.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be whole numbers separated by commas; got {text!r}") from None


def shares(name: str, text: str) -> tuple[float, ...]:
    """Return the numbers of a flag such as `0.02,0.05`.

    Raises:
        ValueError: Anything else, or a number outside (0, 1); the text names the flag.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < 1 for value in found):
        raise ValueError(f"{name} must be numbers in (0, 1) separated by commas; got {text!r}")
    return found


def _group(annotation: Any) -> _Flags | None:
    if typing.get_origin(annotation) is Annotated:
        for marker in annotation.__metadata__:
            if isinstance(marker, (_SettingsFlags, _ConfigFlags)):
                return marker.flags()
        return None
    if not dataclasses.is_dataclass(annotation):
        return None
    record = typing.cast(type[Any], annotation)
    hints = typing.get_type_hints(record, include_extras=True)
    parameters = [
        inspect.Parameter(
            entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=hints[entry.name]
        )
        for entry in dataclasses.fields(record)
    ]
    return _Flags(parameters, lambda given: record(**given))


def _fields(group: str) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields of a group of `ExperimentConfig` with their types; of `inference` by their short names."""
    record = typing.get_type_hints(ExperimentConfig)[group]
    hints = typing.get_type_hints(record)
    if record is not InferenceConfig:
        return [(entry, hints[entry.name]) for entry in dataclasses.fields(record)]
    found = []
    for short, ((part, name), *_) in SHORT_NAMES.items():
        (entry,) = (entry for entry in dataclasses.fields(hints[part]) if entry.name == name)
        renamed: dataclasses.Field[Any] = dataclasses.field(metadata=entry.metadata)
        renamed.name = short
        found.append((renamed, typing.get_type_hints(hints[part])[name]))
    return found


def _argument(entry: dataclasses.Field[Any]) -> str:
    return (entry.metadata["flag"] or entry.name).replace("-", "_")


def _parameter(entry: dataclasses.Field[Any], hint: Any, panel: str | None, *, note: str = "") -> inspect.Parameter:
    hint = optional_base(hint)
    flag = "--" + _argument(entry).replace("_", "-")
    is_list = typing.get_origin(hint) is tuple
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        help=" ".join([_sentence(entry.metadata["help"]), note]).strip(),
        rich_help_panel=panel,
        metavar="N,N,..." if is_list else None,
    )
    annotation = Annotated[(str if is_list else hint) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(_argument(entry), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parsed(name: str, hint: Any, value: Any) -> Any:
    return whole_numbers(name, str(value)) if typing.get_origin(optional_base(hint)) is tuple else value


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
