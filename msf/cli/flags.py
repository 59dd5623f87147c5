"""Command-line flags: those shared by the commands, and those generated from the configuration dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from msf.config import RECIPES, ExperimentConfig, ReadoutName
from msf.plain_values import optional_base

Command = TypeVar("Command", bound=Callable[..., None])

Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda:0. Default: CUDA if there is any.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where named data sets lie. Default: MSF_DATA, else they are downloaded."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Folder of a trained network, or its hub id. Default: the newest one under runs/."
    ),
]
Readout = Annotated[
    ReadoutName | None,
    typer.Option(
        help="What recovered latents are compared with: the classes' own latents, or colours after decoding "
        "(published). The same for flows on pixels. Default: as trained."
    ),
]
MicroBatch = Annotated[int | None, typer.Option(min=1, help="Samples per network evaluation. Default: from memory.")]

PANELS = {
    "data": "Data",
    "code": "Label code",
    "path": "Path and loss",
    "network": "Network",
    "autoencoder": "Autoencoder",
    "train": "Training",
    "inference": "Inference",
}


def with_config_flags(*groups: str) -> Callable[[Command], Command]:
    """Give a command one flag per field of the named groups of `ExperimentConfig`.

    The command receives them as keyword arguments, None where the flag was not given.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        generated = [_parameter(group, entry) for group in groups for entry in _fields(group)]
        parameters = [*own, *generated]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


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
        entries = {_argument(entry): entry for entry in _fields(group)}
        values = {
            entry.name: _parsed(entry, group, flags[argument])
            for argument, entry in entries.items()
            if flags.get(argument) is not None
        }
        if "head_channels" in values or "n_heads" in values:  # giving one of the two replaces the recipe's other
            values = {"head_channels": None, "n_heads": None, **values}
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


def _fields(group: str) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(typing.get_type_hints(ExperimentConfig)[group])


def _argument(entry: dataclasses.Field[Any]) -> str:
    return (entry.metadata["flag"] or entry.name).replace("-", "_")


def _type_hint(group: str, entry: dataclasses.Field[Any]) -> Any:
    return optional_base(typing.get_type_hints(typing.get_type_hints(ExperimentConfig)[group])[entry.name])


def _parameter(group: str, entry: dataclasses.Field[Any]) -> inspect.Parameter:
    argument = _argument(entry)
    hint = _type_hint(group, entry)
    flag = "--" + argument.replace("_", "-")
    is_list = typing.get_origin(hint) is tuple
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        help=_sentence(entry.metadata["help"]),
        rich_help_panel=PANELS[group],
        metavar="N,N,..." if is_list else None,
    )
    annotation = Annotated[(str if is_list else hint) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parsed(entry: dataclasses.Field[Any], group: str, value: Any) -> Any:
    if typing.get_origin(_type_hint(group, entry)) is not tuple:
        return value
    return whole_numbers(entry.name, str(value))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
