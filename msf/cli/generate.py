"""`msf generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import load_flow


@flags.grouped
def generate(
    *,
    checkpoint: flags.Checkpoint = None,
    labels: Annotated[
        str | None, typer.Option(metavar="LABEL,...", help="Classes by number or name. Default: every class.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures per class.")] = 8,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the pictures.")] = Path("generated"),
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|original",
            help="Height and width of the pictures, or 'original': those of the data set that the network was trained "
            "on. Default: the working size.",
        ),
    ] = None,
    fields: flags.GenerateFields,
    run: flags.Run,
) -> None:
    """Generate pictures of given classes: one PNG each, and a grid with one row per class."""
    import torch

    from msf.report import class_grid, write_figure, write_pictures

    network = load_flow(checkpoint, run.device)
    names = network.task.class_names or tuple(str(label) for label in range(network.task.n_classes))
    wanted = _label_numbers(labels, names)
    pixels = _pixels(size, network.task.original_size)
    with console.progress_bar("generating") as advance:
        pictures = network.generate(
            torch.tensor(wanted).repeat_interleave(n),
            seed=run.seed,
            progress=advance,
            size=pixels,
            **fields,
        ).cpu()
    out.mkdir(parents=True, exist_ok=True)
    files = write_pictures(pictures, [out / f"{label:02d}-{number:04d}.png" for label in wanted for number in range(n)])
    rows = {names[label]: pictures[i * n : (i + 1) * n] for i, label in enumerate(wanted)}
    write_figure(out / "grid.png", class_grid(rows))
    console.out.print(f"{len(files)} pictures and grid.png in {out}")
    console.write_json(
        run.json_file,
        [
            {"file": str(file), "label": wanted[i // n], "label_name": names[wanted[i // n]]}
            for i, file in enumerate(files)
        ],
    )


def _label_numbers(labels: str | None, names: tuple[str, ...]) -> list[int]:
    if labels is None:
        return list(range(len(names)))
    numbers = []
    for part in (part.strip() for part in labels.split(",")):
        if part in names:
            numbers.append(names.index(part))
        elif part.isdecimal() and int(part) < len(names):
            numbers.append(int(part))
        else:
            known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            raise ValueError(f"labels must be among {known}; got {part!r}")
    return numbers


def _pixels(size: str | None, original: int | None) -> int | None:
    if size == "original":
        if original is None:
            raise ValueError("size 'original' is not known to this checkpoint; give a number of pixels")
        return original
    if size is not None and not (size.isdecimal() and int(size) >= 1):
        raise ValueError(f"size must be a whole number >= 1, or 'original'; got {size!r}")
    return None if size is None else int(size)
