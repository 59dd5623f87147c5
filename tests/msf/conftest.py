"""Where tests find parity data and real pictures; without them a test is skipped, with the reason."""

import ast
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

from msf.config import UNetConfig

GOLDEN_NAMES = ("official_rgb8", "official_grey5")


@dataclass(frozen=True)
class Golden:
    """What the authors' code computed: tensors by name, and its settings as text."""

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, str]

    @property
    def network_config(self) -> UNetConfig:
        # A head width of -1 stands for "by the number of heads".
        settings, head_channels = self.settings, int(self.settings["num_head_channels"])
        return UNetConfig(
            base_channels=int(settings["model_channels"]),
            channel_multipliers=ast.literal_eval(settings["channel_mult"]),
            n_res_blocks=int(settings["num_res_blocks"]),
            attention_down_rates=ast.literal_eval(settings["attention_resolutions"]),
            head_channels=None if head_channels == -1 else head_channels,
            n_heads=int(settings["num_heads"]) if head_channels == -1 else None,
            qkv_order="new" if settings["use_new_attention_order"] == "True" else "legacy",
            use_scale_shift_norm=settings["use_scale_shift_norm"] == "True",
            use_residual_updown=settings["resblock_updown"] == "True",
            dropout=float(settings["dropout"]),
        )

    @property
    def network_tensors(self) -> dict[str, Tensor]:
        prefix = "model."
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def _folder(variable: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"the environment variable {variable} names no folder")
    return Path(folder)


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    path = _folder("MSF_GOLDEN") / f"{request.param}.safetensors"
    if not path.is_file():
        pytest.skip(f"MSF_GOLDEN holds no {path.name}")
    with safe_open(path, "pt") as file:
        return Golden(path, {key: file.get_tensor(key) for key in file.keys()}, file.metadata())  # noqa: SIM118


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return _folder("MSF_DATA")
