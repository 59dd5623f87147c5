"""From a new process to the first prediction: `python -m benchmarks.cold_start ours|authors FOLDER`.

FOLDER is a checkpoint of ours in pixel space, whose tensors are named as in the published network's.
"""

from __future__ import annotations

import sys
from pathlib import Path


def ours(folder: Path) -> int:
    import torch

    from msf import MedSymmFlow

    flow = MedSymmFlow.from_pretrained(folder).to(dtype=torch.bfloat16)
    return int(flow.classify(torch.zeros(1, 3, 32, 32), n_samples=1).label)


def authors(folder: Path) -> int:
    import safetensors.torch
    import torch
    import torchdiffeq

    from benchmarks.peers import module_from_file
    from benchmarks.peers.distances import distances_class_by_class

    unet = module_from_file("torchcfm", "models/unet/__init__.py", "torchcfm")
    network = unet.UNetModel(
        dim=(6, 32, 32), num_channels=64, num_res_blocks=2, channel_mult=(1, 2, 2, 2), num_head_channels=64
    )
    network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    network.eval()
    with torch.inference_mode():
        z = torch.cat([torch.zeros(1, 3, 32, 32), torch.randn(1, 3, 32, 32)], dim=1)
        end = torchdiffeq.odeint(lambda t, z: network(t, z), z, torch.tensor([1.0, 0.0]), method="euler")[-1]
        palette = [[level / 4 - 1.0] * 3 for level in range(8)]
        return int(distances_class_by_class(end[:, 3:], palette).argmin())


if __name__ == "__main__":
    print({"ours": ours, "authors": authors}[sys.argv[1]](Path(sys.argv[2])))
