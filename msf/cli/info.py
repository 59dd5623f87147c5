"""`msf info`."""

from __future__ import annotations

import platform
from typing import Annotated, Any

import typer

from msf.cli import console, flags


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
    report["backends"] = msf_kernels.backends()
    for operator, reasons in report["backends"].items():
        states = {name: "; ".join(texts) or "available" for name, texts in reasons.items()}
        console.print_figures(f"\n{operator}", states)
    if checkpoint is not None:
        from msf.cli.checkpoints import load_flow

        network = load_flow(checkpoint, run.device)
        report["checkpoint"] = {
            "task": vars(network.task),
            "n_parameters": sum(p.numel() for p in network.network.parameters()),
            "experiment": network.config.to_dict(),
            "joint_state": {"image": network.image_shape, "semantic": network.semantic_shape},
            "autoencoder_fingerprint": network.autoencoder.fingerprint if network.space.is_latent else None,
        }
        facts = ("n_parameters", "joint_state", "autoencoder_fingerprint")
        console.print_figures(f"\n{checkpoint}", {name: report["checkpoint"][name] for name in facts})
        for group, values in {"task": report["checkpoint"]["task"], **report["checkpoint"]["experiment"]}.items():
            console.print_figures(f"\n{group}", values)
    console.write_json(run.json_file, report)
