"""`msf pack`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.sources import PackFlags, tell_report
from msf.cli.targets import check_apart, check_target

_SHOWN_SIZES = 5


@flags.grouped
def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder with a folder of pictures per class, or train, val and test with those; or a table (CSV, "
            "Parquet) with columns for file and label, and where there are such for split and group. With --masks a "
            "folder of pictures.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .npz to write; its report and rows lie beside it.")],
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of the pictures. Default: theirs, if they have one.")
    ] = None,
    packing: PackFlags,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first file that cannot be read.")] = False,
    run: flags.Run,
) -> None:
    """Make a data set of pictures: one .npz in MedMNIST's layout, with splits, a report and a row per file.

    A file that cannot be read costs nothing but its own row. Pictures of one group, such as a patient, are never in two
    splits.
    """
    from msf.data.packing import pack_pictures

    settings = packing.settings(seed=run.seed, size=size, strict=strict)
    check_target(out)
    written = {"--out": out, "rows": out.with_suffix(".rows.csv"), "report": out.with_suffix(".json")}
    check_apart({**written, "--json": run.json_file}, [Path(source)] if Path(source).is_file() else [])
    with console.progress_bar(f"packing {source}", lines=True) as advance:
        report = pack_pictures(source, out, settings, progress=advance)
    tell_report(report, console.err.print)
    _show(report, str(out))
    console.write_json(run.json_file, report)


def _show(report: Mapping[str, Any], out: str) -> None:
    splits = [split for split, n in report["n_in_split"].items() if n]
    rows = [[entry["class"], *(str(entry[split]) for split in splits)] for entry in report["counts"]]
    total = ["all", *(str(report["n_in_split"][split]) for split in splits)]
    console.print_table([["class", *splits], *rows, total], title=f"{out}: {report['n_packed']} pictures")
    sizes = [f"{size['n']} of {size['width']} x {size['height']}" for size in report["sizes"][:_SHOWN_SIZES]]
    if report["n_sizes"] > _SHOWN_SIZES:
        sizes.append(f"{report['n_sizes'] - _SHOWN_SIZES} more sizes")
    console.print_figures(
        "\nRead",
        {
            "packed as": " x ".join(map(str, report["picture_shape"])),
            "sizes": ", ".join(sizes),
            "modes": ", ".join(f"{mode['n']} {mode['mode']}" for mode in report["modes"]),
            "skipped": report["n_skipped"],
            "groups": report["n_groups"] or None,
            "equal pictures in several splits": report["exact_duplicates"]["n_sets_across_splits"],
            "nearly equal pictures in different splits": report["near_duplicates_across_splits"]["n_pairs"],
            "equal pictures with several labels": report["label_conflicts"]["n_sets"],
            "constant pictures": report["constant"]["n"],
        },
    )
