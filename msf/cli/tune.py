"""`msf tune`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from msf.cli import console, flags


@flags.grouped
def tune(
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Measure again, and forget what the file holds, whatever it is.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed evaluations of each; the fastest counts.")] = 7,
    run: flags.Run,
) -> None:
    """Measure once which arithmetic is faster on this processor, and let --precision auto go by it from now on.

    Both published networks are evaluated in float32 and in bfloat16, in turn. Best on a machine that does nothing else.
    """
    import torch

    from msf.network.inference.measurement import MICRO_BATCHES, PUBLISHED, measure_precisions
    from msf.precision import auto_precision, this_processor, user_table, user_table_path, write_user_rows

    if run.device not in (None, "cpu"):
        raise ValueError(f"device must be cpu, where precisions are measured; got {run.device!r}")
    processor, path = this_processor(), user_table_path()
    rows = () if replace else user_table().get(processor.key, ())
    if rows:
        console.err.print(f"{console.printable(str(path))} has this processor already; --replace measures again")
    else:
        torch.manual_seed(run.seed)
        found = []
        with console.progress_bar("measuring", lines=True) as advance:
            for row in measure_precisions(rounds):
                found.append(row)
                advance(len(found), len(PUBLISHED) * len(MICRO_BATCHES))
        rows = tuple(found)
        write_user_rows(processor.key, rows, replace=replace)
        console.err.print(f"written to {console.printable(str(path))}")
    table = [("network", "micro-batch", "fp32 ms", "bf16 ms", "fp32 / bf16", "auto")]
    for row in rows:
        chosen = auto_precision(torch.device("cpu"), row.base_channels).precision
        table.append(
            (
                f"{row.base_channels} channels",
                str(row.micro_batch),
                console.shown(row.fp32, 1),
                console.shown(row.bf16, 1),
                console.shown(row.fp32 / row.bf16, 2),
                chosen,
            )  # fmt: skip
        )
    console.print_table(table, title=f"{processor.name} ({processor.key}), {torch.get_num_threads()} threads")
    console.write_json(
        run.json_file, {"processor": processor.key, "file": str(path), "rows": [asdict(row) for row in rows]}
    )
