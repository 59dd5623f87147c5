"""What the recipe for small data reaches: `python -m benchmarks.small_data FOLDER --out RUNS [--seeds 0,1,2] [--test]`.

FOLDER holds `pneumoniamnist.npz` and `retinamnist.npz`. Of the first, as many pictures are taken, class by class, as
BreastMNIST has: 546 to train on and 78 to choose by. One training after the other, in folders below RUNS: what is done
is not done again, so that it can be stopped and gone on with. Figures are of the validation split; `--test` reads the
test split, once, when nothing is to be chosen any more. Everything found is printed as Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from msf import MedSymmFlow
from msf.cli.flags import configured
from msf.config import ExperimentConfig
from msf.data import ImageDataset, Split, load_dataset
from msf.evaluate import evaluate
from msf.precision.processor import this_processor
from msf.training.train import train

SMALL = {"train": 546, "val": 78}
SUBSETS: dict[str, dict[str, int]] = {"pneumoniamnist": SMALL, "retinamnist": {}}
FIGURES = ("accuracy", "auc_macro_ovr", "nll", "brier", "ece", "aurc")
SCORES = ("nearest_distance", "predictive_entropy")
REJECTED = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


def subset(dataset: ImageDataset, sizes: dict[str, int]) -> ImageDataset:
    """Return a data set with fewer pictures in some of its splits, the classes in the same shares.

    Args:
        dataset: Pictures and labels.
        sizes: Pictures of a split; splits that are not named stay.
    """
    if not sizes:
        return dataset
    from sklearn.model_selection import train_test_split

    parts: dict[str, Any] = {}
    for name, size in sizes.items():
        whole = dataset.split(name)
        rows = torch.arange(len(whole)).numpy()
        chosen, _ = train_test_split(rows, train_size=size, stratify=whole.labels.numpy(), random_state=0)
        parts[name] = Split(whole.images[chosen], whole.labels[chosen])
    listed = ", ".join(f"{size} of {name}" for name, size in sizes.items())
    return dataclasses.replace(dataset, fingerprint=f"{dataset.fingerprint} ({listed})", path=None, **parts)


def figures_of(folder: Path, dataset: ImageDataset, split: str) -> dict[str, Any]:
    """Return the figures of a trained network on one split, and the risk of each score at some shares rejected."""
    metrics = evaluate(MedSymmFlow.from_pretrained(folder), dataset, split)
    found = {name: metrics[name] for name in FIGURES}
    for name in SCORES:
        curve = metrics["scores"][name]["selective"]
        found[name] = [
            min(zip(curve["coverage"], curve["risk"], strict=True), key=lambda point: abs(point[0] - (1 - share)))[1]
            for share in REJECTED
        ]
    return found


def run(experiment: ExperimentConfig, dataset: ImageDataset, folder: Path, split: str) -> dict[str, Any]:
    """Train what is not trained, judge what is not judged, and return the figures."""
    file = folder / f"{split}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        return kept
    result = train(experiment, dataset, folder, device="cpu", resume=True)
    found = {
        "epochs": len(result.history),
        "kept": result.best_epoch + 1,
        "seconds": result.seconds,
        **figures_of(folder, dataset, split),
    }
    file.write_text(json.dumps(found, indent=1))
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the figures as Markdown: a row per run, and the mean of each data set."""
    head = ["data", "seed", *FIGURES, *(f"risk of {name}" for name in SCORES), "kept epoch", "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, rows in found.items():
        for seed, row in enumerate(rows):
            figures = [f"{row[figure]:.3f}" for figure in FIGURES]
            risks = [" ".join(f"{risk:.2f}" for risk in row[score]) for score in SCORES]
            cells = [name, str(row.get("seed", seed)), *figures, *risks, f"{row['kept']} of {row['epochs']}"]
            lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
        means = [f"**{statistics.mean(row[figure] for row in rows):.3f}**" for figure in FIGURES]
        lines.append("| " + " | ".join([name, "mean", *means, *[""] * (len(SCORES) + 2)]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left, and print all that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--datasets", default=",".join(SUBSETS))
    parser.add_argument("--recipe", default="recommended")
    parser.add_argument("--test", action="store_true", help="read the test split")
    options = parser.parse_args(arguments)
    split = "test" if options.test else "val"
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.datasets.split(","):
        dataset = subset(load_dataset(options.folder / f"{name}.npz"), SUBSETS[name])
        for seed in map(int, options.seeds.split(",")):
            experiment = configured(options.recipe, {"dataset": name, "seed": seed})
            folder = options.out / f"{name}-{options.recipe}-{seed}"
            found.setdefault(name, []).append({"seed": seed, **run(experiment, dataset, folder, split)})
            print(json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    print(f"{this_processor().name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; {split} split\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
