"""`msf evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow
from msf.cli.targets import check_apart


@flags.grouped
def evaluate(
    *,
    checkpoint: flags.Checkpoint = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set name or .npz path. Default: the one the network was trained on.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to judge on.")] = "test",
    data_root: flags.DataRoot = None,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Measure accuracy, calibration and selective prediction on one split.

    Settings that are not given are those the network was trained with. Choose settings on val; report test once.
    """
    from msf.data import load_dataset
    from msf.evaluate import evaluate as measure
    from msf.judge.metrics import HEADLINES

    network = load_flow(checkpoint, run.device)
    data = load_dataset(network.config.data.dataset if dataset is None else dataset, data_root)
    check_apart({"--json": run.json_file}, [*files_of(checkpoint), *([data.path] if data.path else [])])
    with console.progress_bar(f"classifying {data.name} {split}", lines=True) as advance:
        metrics: dict[str, Any] = measure(network, data, split, seed=run.seed, progress=advance, **fields)
    console.print_figures(
        f"{data.name}, {split}",
        {
            name: metrics[name]
            for name in (*HEADLINES, "readout", "nfe", "precision", "convolution", "micro_batch", "samples_per_second")
        },
    )
    for warning in metrics["warnings"]:
        console.err.print(f"note: {console.printable(warning)}")
    console.write_json(run.json_file, metrics)
