"""`msf evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import load_flow
from msf.config import FlowName, MethodName

PRINTED = (
    "readout", "n_images", "accuracy", "balanced_accuracy", "auc_macro_ovr", "auc_medmnist", "nll", "brier", "ece",
    "aurc", "e_aurc", "augrc", "probability_source", "nfe", "samples_per_second",
)  # fmt: skip


def evaluate(
    *,
    checkpoint: flags.Checkpoint = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set name or .npz path. Default: the one the network was trained on.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to judge on.")] = "test",
    n_samples: Annotated[int | None, typer.Option(min=1, help="Noise draws per picture.")] = None,
    n_steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.")] = None,
    method: Annotated[MethodName | None, typer.Option(help="Solver.")] = None,
    flow: Annotated[FlowName | None, typer.Option(help="Flow that classifies.")] = None,
    readout: flags.Readout = None,
    data_root: flags.DataRoot = None,
    seed: flags.Seed = 0,
    device: flags.Device = None,
    micro_batch: flags.MicroBatch = None,
    json_file: flags.JsonFile = None,
) -> None:
    """Measure accuracy, calibration and selective prediction on one split.

    Settings that are not given are those the network was trained with. Choose settings on val; report test once.
    """
    from msf.data import load_dataset
    from msf.evaluate import evaluate as measure

    network = load_flow(checkpoint, device)
    data = load_dataset(dataset or network.config.data.dataset, data_root)
    with console.progress_bar(f"classifying {data.name} {split}") as advance:
        metrics: dict[str, Any] = measure(
            network,
            data,
            split=split,
            n_samples=n_samples,
            n_steps=n_steps,
            method=method,
            flow=flow,
            readout=readout,
            seed=seed,
            micro_batch=micro_batch,
            progress=advance,
        )
    console.print_figures(f"{data.name}, {split}", {name: metrics[name] for name in PRINTED})
    for warning in metrics["warnings"]:
        console.err.print(f"note: {warning}")
    console.write_json(json_file, metrics)
