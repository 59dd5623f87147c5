"""What bfloat16 changes in predictions: `python -m benchmarks.precision_gate CHECKPOINT DATASET [--split NAME]`.

The same pictures and noise are classified in float32 and in bfloat16. `precision="auto"` may take bfloat16 only while
it changes at most 0.2 % of the labels and the area under the risk-coverage curve by at most 0.002; exit code 1 where a
network does not pass. CHECKPOINT is a folder of ours, or an official file with `--classes`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msf import MedSymmFlow
from msf.config import CodeName
from msf.data import ImageDataset, load_dataset
from msf.judge.metrics import prediction_metrics

MOST_LABELS = 0.002
MOST_AURC = 0.002


def compare(flow: MedSymmFlow, dataset: ImageDataset, split: str, **settings: Any) -> dict[str, Any]:
    """Return what bfloat16 changes on one split.

    Args:
        flow: A network with an inference form.
        dataset: Pictures with labels.
        split: Name of the split.
        **settings: Fields of `msf.config.ClassifySettings`.

    Returns:
        `n_images`, `labels_changed` (share), and of both precisions `accuracy`, `nll` and `aurc`.
    """
    part = dataset.split(split)
    predictions = {name: flow.classify(part.images, precision=name, **settings) for name in ("fp32", "bf16")}
    found: dict[str, Any] = {"n_images": len(part)}
    changed = predictions["fp32"].label != predictions["bf16"].label
    found["labels_changed"] = float(changed.double().mean())
    for name, prediction in predictions.items():
        metrics = prediction_metrics(prediction, part.labels, class_names=dataset.class_names)
        found |= {f"{figure}_{name}": metrics[figure] for figure in ("accuracy", "nll", "aurc")}
    return found


def passes(found: Mapping[str, Any]) -> bool:
    """Return whether the changes are within the gate."""
    changed_aurc = abs(found["aurc_bf16"] - found["aurc_fp32"])
    return bool(found["labels_changed"] <= MOST_LABELS and changed_aurc <= MOST_AURC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--classes", type=int, help="the checkpoint is an official file of a network for so many")
    parser.add_argument("--code", choices=("rgb", "grey"), default="rgb")
    parser.add_argument("--head-channels", type=int, default=64)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--order", choices=("legacy", "new"), default="legacy")
    parser.add_argument("--image-size", type=int, help="of an official file")
    parser.add_argument("--n-samples", type=int)
    parser.add_argument("--n-steps", type=int)
    options = parser.parse_args(arguments)
    if options.classes is None:
        flow = MedSymmFlow.from_pretrained(options.checkpoint)
    else:
        code: CodeName = options.code
        flow = MedSymmFlow.from_official(
            options.checkpoint, n_classes=options.classes, code=code, head_channels=options.head_channels,
            num_heads=options.heads, qkv_order=options.order, image_size=options.image_size,
        )  # fmt: skip
    found = compare(
        flow, load_dataset(options.dataset), options.split, n_samples=options.n_samples, n_steps=options.n_steps
    )
    print(json.dumps({**found, "passes": passes(found)}, indent=1))
    return 0 if passes(found) else 1


if __name__ == "__main__":
    sys.exit(main())
