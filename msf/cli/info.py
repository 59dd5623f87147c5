"""`msf info`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.config import RECIPES

if TYPE_CHECKING:
    import torch


@flags.grouped
def info(
    *,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Also describe this trained network.")
    ] = None,
    run: flags.Run,
) -> None:
    """Show versions, devices, and which kernels can run here (and why others cannot)."""
    import torch

    import msf
    import msf_kernels
    from msf.device import choose_device

    report: dict[str, Any] = {
        "msf": msf.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "device": str(choose_device(run.device)),
    }
    console.print_figures("Installation", report)
    report["precision"] = _precision(torch.device(report["device"]))
    console.print_figures("\nprecision auto", report["precision"])
    report["backends"] = msf_kernels.backends()
    for operator, reasons in report["backends"].items():
        states = {name: "; ".join(texts) or "available" for name, texts in reasons.items()}
        console.print_figures(f"\n{operator}", states)
    if checkpoint is not None:
        from msf.cli.checkpoints import load_flow
        from msf.network.inference import precision_of

        network = load_flow(checkpoint, run.device, of_pixels=True)
        classify = network.config.inference.classify
        report["checkpoint"] = {
            "task": vars(network.task),
            "n_parameters": sum(p.numel() for p in network.network.parameters()),
            "experiment": network.config.to_dict(),
            "joint_state": {"image": network.image_shape, "semantic": network.semantic_shape},
            "autoencoder_fingerprint": network.autoencoder.fingerprint if network.space.is_latent else None,
            "precision": precision_of(network.velocity(classify.precision, classify.n_samples).dtype),
        }
        facts = ("n_parameters", "joint_state", "autoencoder_fingerprint", "precision")
        console.print_figures(f"\n{checkpoint}", {name: report["checkpoint"][name] for name in facts})
        for group, values in {"task": report["checkpoint"]["task"], **report["checkpoint"]["experiment"]}.items():
            console.print_figures(f"\n{group}", values)
    console.write_json(run.json_file, report)


def _precision(device: torch.device) -> dict[str, Any]:
    """Return what `auto` is here for networks of the published widths, and where a measurement of it lies."""
    from msf.network.inference.measurement import PUBLISHED
    from msf.precision import auto_precision, this_processor, user_table_path

    processor, path = this_processor(), user_table_path()
    facts: dict[str, Any] = {
        "processor": f"{processor.name} ({processor.key})",
        "measurements": f"{path}{'' if path.exists() else ' (none: msf tune makes them)'}",
    }
    for recipe in PUBLISHED:
        width = RECIPES[recipe].network.base_channels
        try:
            chosen = auto_precision(device, width)
            facts[f"{width} channels"] = f"{chosen.precision} ({chosen.why})"
        except ValueError as error:
            facts[f"{width} channels"] = f"refused: {error}"
    return facts
