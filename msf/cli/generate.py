"""`msf generate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow
from msf.cli.generate_pool import generate_pool
from msf.cli.generated_folder import GRID_FILE, GeneratedFolder
from msf.cli.targets import check_apart, check_folder
from msf.files.claim import claimed_folder
from msf.interruption import Interrupted
from msf.plain_values import told_apart

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "msf-generate/1"
MAX_SIZE = 8192
_MAX_BYTES = 1 << 34  # of all pictures of a call, which exist at once


@dataclass(frozen=True)
class Wanted:
    """Which pictures are made, and how large."""

    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL,...", help="Classes by name (in any case) or number, each once. Default: every class."
        ),
    ] = None
    n: Annotated[int | None, typer.Option("--n", min=1, help="Pictures per class, all in one folder. Default: 8.")] = (
        None
    )
    per_class: Annotated[
        int | None,
        typer.Option(
            "--per-class",
            min=1,
            help="Make a pool: so many pictures of every class, in a folder per class, or in an archive where --out "
            "ends in .npz; both can be trained on.",
        ),
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|original",
            help="Height and width of the pictures, or 'original': those of the data set that the network was trained "
            "on. Default: the working size.",
        ),
    ] = None


def check_out(path: Path) -> Path:
    """Return a folder to write, or an archive, or refuse what cannot be made before any work is done for it."""
    if path.suffix.lower() == ".npz":
        check_folder(path.parent)
        return path
    return check_folder(path)


@flags.grouped
def generate(
    *,
    checkpoint: flags.Checkpoint = None,
    wanted: Wanted,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER|POOL.npz",
            callback=check_out,
            help="Folder for the pictures; with --per-class also an archive.",
        ),
    ] = Path("generated"),
    fields: flags.GenerateFields,
    run: flags.Run,
) -> None:
    """Generate pictures of given classes: one PNG each, and a grid with one row per class.

    The folder may hold other files, but no pictures of another run: those are neither mixed with new ones nor
    replaced. The same command again makes the same pictures, and completes a folder that was left unfinished.

    With --per-class the pictures become a pool of any size, with a table of what each was made with.
    """
    import torch

    from msf import report
    from msf.config import settings_for
    from msf.network.inference import precision_of
    from msf.pools.plan import plan_pool
    from msf.provenance import provenance

    network = load_flow(checkpoint, run.device)
    names = network.task.class_names or tuple(str(label) for label in range(network.task.n_classes))
    labels = label_numbers(wanted.labels, names)
    pixels = _pixels(wanted.size, network.task.original_size) or network.config.data.image_size
    settings = settings_for("generate", network.config.inference.generate, None, {**fields, "size": pixels})
    if wanted.per_class is not None:
        if wanted.n is not None:
            raise ValueError("n and per_class exclude each other: give --per-class for a pool, --n for single pictures")
        pool = plan_pool(network, labels, wanted.per_class, settings, seed=run.seed)
        return generate_pool(network, pool, out, run.json_file, files_of(checkpoint))
    if out.suffix.lower() == ".npz":
        raise ValueError(f"an archive is made with --per-class; without, --out must name a folder: got {str(out)!r}")
    n = 8 if wanted.n is None else wanted.n
    _check_amount(len(labels) * n, network.task.image_channels, pixels)
    velocity = network.velocity(settings.precision)
    precision = precision_of(velocity.dtype)
    folder = GeneratedFolder(out, labels, n)
    check_apart({"--json": run.json_file}, [*folder.files, folder.run_file, folder.grid, *files_of(checkpoint)])
    try:
        with claimed_folder(out, "generation"):
            made_with = {"seed": run.seed, "size": pixels, **settings.to_dict(), "precision": precision}
            folder.claim(made_with, network.network.state_dict())
            with console.progress_bar("generating", lines=True) as advance:
                pictures = network.generate(
                    torch.tensor(labels).repeat_interleave(n), settings, seed=run.seed, progress=advance
                ).cpu()
            _require_finite(pictures, labels, names, n)
            files = report.write_pictures(pictures, folder.files)
            shown = told_apart(names)
            of_classes = {shown[label]: pictures[i * n : (i + 1) * n] for i, label in enumerate(labels)}
            report.write_figure(folder.grid, report.class_grid(of_classes))
    except (Interrupted, KeyboardInterrupt, OSError) as error:
        error.add_note(f"{folder.n_written} of {len(folder.files)} pictures are in {str(out)!r}")
        error.add_note("the same command makes the others too")
        raise
    console.out.print(
        f"{len(files)} pictures ({precision}) in {console.printable(str(out))}, an overview in {GRID_FILE} there"
    )
    rows = [
        {
            "file": str(file),
            "label": labels[i // n],
            "label_name": names[labels[i // n]],
            "precision": precision,
            "convolution": velocity.convolution,
        }
        for i, file in enumerate(files)
    ]
    made = {**provenance(network, settings, seed=run.seed, micro_batch=settings.micro_batch), "size": pixels}
    console.write_json(run.json_file, {"format": FORMAT, "provenance": made, "pictures": rows})


def label_numbers(text: str | None, names: tuple[str, ...]) -> list[int]:
    """Return the classes that a flag names, separated by commas; all of them for None.

    A class is given by its name, whatever the case and the spaces in it, or by its number. A name that holds a comma
    may stand as it is.

    Raises:
        ValueError: No class of that name or number, a name that means two classes, or one class twice.
    """
    if text is None:
        return list(range(len(names)))
    parts = text.split(",")
    labels: list[int] = []
    while parts:
        for n in range(len(parts), 0, -1):  # a longer name first, since it may hold commas
            label = _label_number(",".join(parts[:n]), names)
            if label is not None:
                break
        else:
            known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            raise ValueError(f"labels must be among {known}, separated by commas; got {parts[0].strip()!r}")
        if label in labels:
            raise ValueError(
                f"labels must name each class once; got {label} ({names[label]}) twice: --n says how many pictures of "
                "a class there shall be"
            )
        labels.append(label)
        del parts[:n]
    return labels


def _label_number(text: str, names: tuple[str, ...]) -> int | None:
    wanted = _folded(text)
    exact = [number for number, name in enumerate(names) if name == text.strip()]
    alike = exact or [number for number, name in enumerate(names) if _folded(name) == wanted]
    if len(alike) > 1:
        raise ValueError(f"labels must name one class each; {text.strip()!r} means {alike}: give the number")
    if alike:
        return alike[0]
    return int(wanted) if wanted.isdecimal() and len(wanted) < 10 and int(wanted) < len(names) else None


def _folded(name: str) -> str:
    words = " ".join(name.split()).casefold()
    return words.replace(" ,", ",").replace(", ", ",")


def _pixels(size: str | None, original: int | None) -> int | None:
    if size == "original":
        if original is None:
            raise ValueError("size 'original' is not known to this checkpoint; give a number of pixels")
        return original
    if size is None:
        return None
    if not (size.isdecimal() and len(size) < 10 and 1 <= int(size) <= MAX_SIZE):
        raise ValueError(f"size must be a whole number from 1 to {MAX_SIZE}, or 'original'; got {size!r}")
    return int(size)


def _check_amount(n: int, channels: int, pixels: int) -> None:
    n_bytes = 4 * n * channels * pixels**2
    if n_bytes > _MAX_BYTES:
        raise ValueError(
            f"n must be such that all pictures together need at most {_MAX_BYTES >> 30} GiB; {n} pictures of "
            f"{pixels} x {pixels} need {n_bytes / 2**30:.0f}: make them in several runs, each with its own --seed and "
            "--out"
        )


def _require_finite(pictures: Tensor, labels: list[int], names: tuple[str, ...], n: int) -> None:
    is_broken = ~pictures.isfinite().flatten(1).all(1)
    if is_broken.any():
        first = int(is_broken.nonzero()[0])
        label = labels[first // n]
        raise ValueError(
            f"the network's outputs are not finite for {int(is_broken.sum())} of {len(pictures)} pictures, first for "
            f"number {first % n} of class {label} ({names[label]}): none was written"
        )
