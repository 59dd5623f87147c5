"""Where tests find parity data and real pictures (without them a test is skipped, with the reason), and small flows."""

import ast
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from msf.codes.label_codes import make_code
from msf.config import (
    CodeConfig,
    CodeName,
    DataConfig,
    ExperimentConfig,
    PathConfig,
    TaskConfig,
    TimeCoupling,
    UNetConfig,
)
from msf.medsymmflow import MedSymmFlow
from msf_kernels.testing import GaussianMixtureFlow

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


@pytest.fixture(scope="session")
def make_flow() -> Callable[..., MedSymmFlow]:
    """Build flows with the smallest network, whose zero-initialised layers are made random."""

    def make(
        *,
        n_classes: int = 3,
        image_channels: int = 1,
        code: CodeName = "rgb",
        time_coupling: TimeCoupling = "shared",
        image_size: int = 8,
        dropout: float = 0.0,
        network: nn.Module | None = None,
    ) -> MedSymmFlow:
        experiment = ExperimentConfig(
            data=DataConfig(image_size=image_size),
            code=CodeConfig(name=code),
            path=PathConfig(time_coupling=time_coupling),
            network=UNetConfig(
                base_channels=32,
                # Two channels per group: with one, the norm removes the time embedding that was added before it.
                channel_multipliers=(2,),
                n_res_blocks=1,
                attention_down_rates=(),
                head_channels=32,
                dropout=dropout,
            ),
        )
        task = TaskConfig(n_classes=n_classes, image_channels=image_channels)
        flow = MedSymmFlow(task, experiment, network=network)
        if network is None:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in flow.network.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(noise * (0.5 / max(1, parameter[0].numel()) ** 0.5))
        return flow

    return make


class ExactNetwork(nn.Module):
    """A perfect network: the exact velocity of Gaussian-mixture data."""

    def __init__(self, mixture: GaussianMixtureFlow):
        super().__init__()
        self.mixture = mixture
        self.nothing_to_learn = nn.Parameter(torch.zeros(()))

    def forward(self, z, t):
        t = t.double() if isinstance(t, Tensor) else t
        return self.mixture.velocity_field(z.double(), t).to(z.dtype)


@pytest.fixture(scope="session")
def make_exact_flow(make_flow: Callable[..., MedSymmFlow]) -> Callable[..., tuple[MedSymmFlow, GaussianMixtureFlow]]:
    """Build a flow with a perfect network for four overlapping classes of 8x8 pictures, and the mixture itself."""

    def make(code: CodeName = "simplex", time_coupling: TimeCoupling = "independent"):
        sigma, n_classes = 0.12, 4
        generator = torch.Generator().manual_seed(0)
        offsets = torch.randn(n_classes, 1, 8, 8, generator=generator, dtype=torch.float64)
        codes = make_code(CodeConfig(name=code), n_classes).codes.double()
        mixture = GaussianMixtureFlow(0.2 * sigma * offsets, codes, sigma)
        flow = make_flow(n_classes=n_classes, code=code, time_coupling=time_coupling, network=ExactNetwork(mixture))
        return flow, mixture

    return make
