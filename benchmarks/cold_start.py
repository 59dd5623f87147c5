"""Whole processes: `python -m benchmarks.cold_start ours|authors|authors-pictures CHECKPOINT [PICTURES N_SAMPLES]`.

`ours` and `authors`: from a new process to the first prediction, one picture with one sample. `authors-pictures`: the
published pipeline on a folder of pictures, against `msf classify`. CHECKPOINT is one of ours in pixel space, whose
tensors are named as in the published network's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SIDE, N_CLASSES = 32, 8


def ours(folder: Path) -> int:
    import torch

    from msf import MedSymmFlow

    flow = MedSymmFlow.from_pretrained(folder)
    return int(flow.classify(torch.zeros(1, 3, SIDE, SIDE), n_samples=1).label)


def authors(folder: Path) -> int:
    import torch

    with torch.inference_mode():
        image, noise = torch.zeros(1, 3, SIDE, SIDE), torch.randn(1, 1, 3, SIDE, SIDE)
        return int(_published_pipeline(folder).classify(image, noise)["label"])


def authors_pictures(folder: Path, pictures: Path, n_samples: int) -> list[int]:
    import numpy as np
    import torch
    from PIL import Image

    files = sorted(pictures.glob("*.png"))
    with torch.inference_mode():
        pipeline = _published_pipeline(folder)
        labels = []
        for file in files:
            pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float()
            noise = torch.randn(1, n_samples, 3, SIDE, SIDE)
            labels.append(int(pipeline.classify(pixels[None] / 127.5 - 1, noise)["label"]))
    return labels


def _published_pipeline(folder: Path) -> Any:
    import safetensors.torch
    import torch

    from benchmarks.peers import module_from_file
    from benchmarks.peers.authors import PublishedPipeline

    unet = module_from_file("torchcfm", "models/unet/__init__.py", "torchcfm")
    network = unet.UNetModel(
        dim=(6, SIDE, SIDE), num_channels=64, num_res_blocks=2, channel_mult=(1, 2, 2, 2), num_head_channels=64
    )
    network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    network.eval()
    palette = [[level / 4 - 1.0] * 3 for level in range(N_CLASSES)]
    return PublishedPipeline(lambda z, t: network(torch.tensor(t), z), palette)


def main(work: str, folder: str, *others: str) -> object:
    if work == "authors-pictures":
        pictures, n_samples = others
        return authors_pictures(Path(folder), Path(pictures), int(n_samples))
    return {"ours": ours, "authors": authors}[work](Path(folder))


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
