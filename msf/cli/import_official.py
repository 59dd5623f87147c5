"""`msf import-official`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of
from msf.cli.targets import check_apart, check_folder
from msf.config import CodeName, QkvOrder
from msf.interruption import undisturbed


@dataclass(frozen=True)
class TrainedAs:
    """What the file does not tell of the network."""

    code: Annotated[CodeName, typer.Option(help="Label code it was trained with.")] = "rgb"
    head_channels: Annotated[
        int | None, typer.Option(min=1, help="Channels per attention head. Default: 64, unless --num-heads is given.")
    ] = None
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, instead of --head-channels.")] = None
    qkv_order: Annotated[QkvOrder, typer.Option(help="Packing of queries, keys and values.")] = "legacy"
    beta: Annotated[float, typer.Option(min=0, help="Beta it was trained with.")] = 4.0


@dataclass(frozen=True)
class TrainedOn:
    """What the file does not tell of the pictures."""

    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Size of the pictures. Default: 32 for flows on pixels, 256 for those on latents."),
    ] = None
    image_channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the pictures, 1 or 3. Default: what the file tells, else 3.")
    ] = None
    autoencoder_source: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder or hub id of the autoencoder of a flow on latents. Default: stabilityai/sd-vae-ft-mse.",
        ),
    ] = None


@flags.grouped
def import_official(
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint: .pt or .safetensors.")],
    *,
    n_classes: Annotated[int, typer.Option(min=2, help="Classes it was trained on.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", callback=check_folder, help="Folder for the checkpoint.")],
    network: TrainedAs,
    pictures: TrainedOn,
    run: flags.Run,
) -> None:
    """Import a checkpoint of the authors' code and say what was inferred and what was assumed.

    A folder that holds a checkpoint already is refused.
    """
    from msf.checkpoints.official import PUBLISHED_HEAD_CHANNELS
    from msf.medsymmflow import MedSymmFlow

    if network.head_channels is not None and network.num_heads is not None:
        raise ValueError("give --head-channels or --num-heads, not both")
    there = [path.name for path in files_of(str(out)) if path.exists()]
    if there:
        raise ValueError(f"{str(out)!r} holds a checkpoint ({', '.join(there)}): choose another folder with --out")
    check_apart({"--json": run.json_file}, [file, *files_of(str(out))])
    flow = MedSymmFlow.from_official(
        file,
        n_classes=n_classes,
        **{**vars(network), "head_channels": network.head_channels or PUBLISHED_HEAD_CHANNELS},
        **vars(pictures),
    )
    with undisturbed(is_last=True):  # all of it, or nothing
        flow.save_pretrained(out)
    report = flow.official_report
    assert report is not None  # `from_official` always sets it
    console.out.print(str(report))
    console.out.print(f"written to {console.printable(str(out))}")
    console.write_json(
        run.json_file,
        {
            "folder": str(out),
            "inferred": dict(report.inferred),
            "assumed": dict(report.assumed),
            "ignored": list(report.ignored),
        },
    )
