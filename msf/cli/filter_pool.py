"""`msf filter`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from msf.cli import console, flags
from msf.cli.pool_report import PoolPlace, report_folder
from msf.cli.targets import check_apart, check_folder
from msf.files.claim import claimed_folder


@dataclass(frozen=True)
class Kept:
    """What a picture needs to be kept."""

    agree: Annotated[
        Literal["flow", "classifier", "both", "none"],
        typer.Option(help="Whose class must be the label: the flow's, the independent classifier's, both or none."),
    ] = "both"
    certain: Annotated[float, typer.Option(help="Share of every class that is kept by certainty, in (0, 1].")] = 1.0
    score: Annotated[str, typer.Option(help="Uncertainty score of the flow that ranks them.")] = "predictive_entropy"
    keep_memorised: Annotated[
        bool, typer.Option("--keep-memorised", help="Keep pictures that are called memorised too.")
    ] = False


@flags.grouped
def filter_pool(
    pool: PoolPlace,
    *,
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Report on the pool. Default: <POOL>-report.")
    ] = None,
    kept: Kept,
    out: Annotated[
        Path | None, typer.Option(metavar="PLACE", help="Where kept pictures go. Default: beside the pool, -kept.")
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(metavar="PLACE", help="Where as many pictures of every class at random go. Default: -control."),
    ] = None,
    seed: flags.Seed = 0,
    json_file: flags.JsonFile = None,
) -> None:
    """Keep the pictures of a pool that its report speaks well of, and as many at random to compare with.

    Both are pools like the one that they are taken from. What filtering is worth is seen by training on either.
    """
    from msf.pools.pool import read_pool, write_pool
    from msf.pools.selection import Selection, control_of, read_report, select
    from msf.pools.stores import table_of, working_folder

    selection = Selection(agree=kept.agree, certain=kept.certain, score=kept.score, keep_memorised=kept.keep_memorised)
    made = read_pool(pool)
    rows = read_report(report_folder(pool) if report is None else report, made)
    places = {"kept": out or _beside(pool, "kept"), "control": control or _beside(pool, "control")}
    check_apart({"--out": places["kept"], "--control": places["control"], "--json": json_file}, [pool, table_of(pool)])
    for place in places.values():
        check_folder(place.parent)
        if place.exists() or table_of(place).exists():
            raise ValueError(f"{str(place)!r} is there already: give another place, or remove it")
    numbers, counts = select(rows, selection)
    if not numbers:
        raise ValueError(f"nothing is kept of {len(made)} pictures: ask for less with --agree or --certain")
    names = _class_names(made.labels.tolist(), [row["label_name"] for row in made.rows])
    chosen = {"kept": numbers, "control": control_of(made, numbers, seed=seed)}
    for name, place in places.items():
        with claimed_folder(working_folder(place), "filter"):
            write_pool(made, chosen[name], place, names)
    console.print_figures(f"{console.printable(str(pool))}, filtered", counts)
    console.out.print(" and ".join(f"{name}: {console.printable(str(place))}" for name, place in places.items()))
    console.write_json(json_file, {**counts, **{name: str(place) for name, place in places.items()}})


def _beside(pool: Path, name: str) -> Path:
    return pool.with_name(f"{pool.stem}-{name}{pool.suffix}") if pool.suffix == ".npz" else Path(f"{pool}-{name}")


def _class_names(labels: list[int], names: list[str]) -> list[str]:
    found = dict(zip(labels, names, strict=True))
    return [found.get(label, str(label)) for label in range(max(labels) + 1)]
