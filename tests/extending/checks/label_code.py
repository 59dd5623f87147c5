"""What a new label code must do, asked of the toy: run where it was added, not collected here."""

import torch

from msf.cli.flags import configured
from msf.codes import make_code
from msf.config import CodeConfig, DataConfig, ExperimentConfig, TaskConfig, UNetConfig
from msf.medsymmflow import MedSymmFlow


def test_its_maps_are_decoded_to_their_labels():
    code, labels = make_code(CodeConfig(name="circle"), 5), torch.arange(5)
    semantic = code.encode(labels, 4, 4)
    distance, votes = code.distance(semantic + 0.05 * torch.randn(semantic.shape))
    assert torch.equal(distance.argmin(1), labels)
    assert torch.equal(votes.argmax(1), labels)


def test_it_is_a_flag_and_a_flow_classifies_and_generates_with_it(tmp_path):
    assert configured("demo", {"code": "circle"}).code.name == "circle"
    network = UNetConfig(
        base_channels=8, n_groups=4, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=8
    )
    experiment = ExperimentConfig(data=DataConfig(image_size=8), code=CodeConfig(name="circle"), network=network)
    flow = MedSymmFlow(TaskConfig(n_classes=5, image_channels=1), experiment)
    flow.save_pretrained(tmp_path / "network")
    loaded = MedSymmFlow.from_pretrained(tmp_path / "network")
    pictures = torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert torch.equal(
        loaded.classify(pictures, n_samples=2).class_distance, flow.classify(pictures, n_samples=2).class_distance
    )
    assert flow.generate([0, 4], n_steps=1).shape == (2, 1, 8, 8)
