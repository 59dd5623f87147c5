"""`msf calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow, named_checkpoint
from msf.cli.evaluate import open_for
from msf.cli.sources import DatasetFlags
from msf.cli.targets import check_apart, check_folder
from msf.config import ScalingMethod, ScalingSource, SetMethod

if TYPE_CHECKING:
    from msf.judge.decisions import Calibration, Wishes


@dataclass(frozen=True)
class WishFlags:
    """What is calibrated."""

    score: Annotated[
        str | None,
        typer.Option(
            help="Uncertainty score of the referral. Default: least_confidence where the code gives probabilities, "
            "else margin."
        ),
    ] = None
    risk: Annotated[
        str, typer.Option(metavar="X,X,...", help="Accepted error rates among the pictures that are kept.")
    ] = "0.01,0.02,0.05,0.1"
    delta: Annotated[
        float, typer.Option(help="Accepted probability, over calibration pictures, that such a rate is exceeded.")
    ] = 0.1
    level: Annotated[str, typer.Option(metavar="X,X,...", help="Coverages of prediction sets.")] = "0.8,0.9,0.95,0.99"
    sets_method: Annotated[
        SetMethod | None,
        typer.Option(help="Kind of prediction sets. Default: split where the code gives probabilities, else distance."),
    ] = None
    scaling: Annotated[ScalingMethod, typer.Option(help="How probabilities are scaled.")] = "temperature"
    scaling_source: Annotated[
        ScalingSource | None,
        typer.Option(help="What is scaled. Default: probability where the code gives it, else distance."),
    ] = None

    def wishes(self, seed: int) -> Wishes:
        """Return the record that calibration takes."""
        from msf.judge.decisions import Wishes

        return Wishes(
            score=self.score,
            risks=flags.shares("risk", self.risk),
            delta=self.delta,
            levels=flags.shares("level", self.level),
            set_method=self.sets_method,
            scaling=self.scaling,
            scaling_source=self.scaling_source,
            seed=seed,
        )


@flags.grouped
def calibrate(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            show_default=False,
            help="Folder of a trained network. Default: the newest one under runs/.",
        ),
    ] = None,
    *,
    dataset: flags.Pictures = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to calibrate on: calibration, train, val or test. Default: calibration where the training kept "
            "such pictures (msf train --calibration-share), else val; test with --only-test."
        ),
    ] = None,
    wished: WishFlags,
    packing: DatasetFlags,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Learn from labelled pictures how sure is sure enough: referral thresholds, prediction sets, scaled probabilities.

    The result lies beside the checkpoint, for 'msf classify --refer-at' and '--sets', and holds for the settings of the
    classification that were given here.
    """
    from msf.calibrate import CALIBRATION_FILE, calibrate, save_calibration
    from msf.data import CALIBRATION, hold_out_calibration

    wishes = wished.wishes(run.seed)
    folder = named_checkpoint(checkpoint)
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"run must be the folder of a trained network, where the result is kept; got {folder!r}"
        )
    check_folder(Path(folder))
    network = load_flow(folder, run.device)
    share = network.config.data.calibration_share if dataset is None else 0.0
    chosen = split or (CALIBRATION if share else "test" if packing.only_test else "val")
    data = open_for(network, dataset, "train" if chosen == CALIBRATION else chosen, packing)
    check_apart({"--json": run.json_file}, [*files_of(folder), *([data.path] if data.path else [])])
    data = hold_out_calibration(data, share)
    with console.progress_bar(f"classifying {data.name} {chosen}", lines=True) as advance:
        found = calibrate(network, data, chosen, wishes, seed=run.seed, progress=advance, **fields)
    save_calibration(found, folder)
    _show(found)
    for note in found.notes:
        console.err.print(f"note: {note}")
    console.out.print(f"written: {console.printable(str(Path(folder) / CALIBRATION_FILE))}")
    content: dict[str, Any] = {"format": "msf-calibration/1", **found.to_dict()}
    console.write_json(run.json_file, content)


def _show(found: Calibration) -> None:
    from msf.judge.conformal import pictures_needed

    on = found.computed_on
    console.print_figures(
        f"Calibrated on {on['dataset']}, {on['split']}, {on['n_images']} pictures",
        {
            "score": found.referral[0].score,
            f"scaling ({found.scaling.method} of {found.scaling.source}) nll before": found.scaling.nll_before,
            "nll after, on the same pictures": found.scaling.nll_after,
        },
    )
    lines = [["risk", "confidence", "threshold", "kept", "errors"]]
    for rule in found.referral:
        threshold = "none" if rule.threshold is None else console.shown(rule.threshold)
        kept = f"{rule.n_kept} of {rule.n_tested}"
        lines.append([f"{rule.risk:g}", f"{1 - rule.delta:g}", threshold, kept, str(rule.n_errors)])
    console.print_table(lines, title="\nReferral: scores up to the threshold are kept")
    for rule in found.referral:
        if rule.threshold is None:
            console.err.print(f"note: {rule.why_none()}")
    rows = [["level", "kind", "a class is in the set up to"]]
    for sets in found.sets:
        shown = ", ".join("any" if value is None else console.shown(value) for value in sets.quantile)
        rows.append([f"{sets.level:g}", sets.method, shown])
        if sets.says_nothing:
            console.err.print(
                f"note: sets of {sets.level:g} hold every class: {sets.n_images} pictures rule out none, "
                f"{pictures_needed(sets.level)} are the least"
            )
    console.print_table(rows, title="\nPrediction sets")
