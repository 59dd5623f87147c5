"""Fused residual blocks compute what they computed layer by layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from msf.autoencoder.fused import GroupNormSiLU, ResidualBlock, fuse_blocks


def count(module):
    return sum(isinstance(child, GroupNormSiLU) for child in module.modules())


@pytest.fixture
def fast_backend(monkeypatch):
    """Pretend that a backend beside the reference can serve; the call itself then takes what there is."""
    monkeypatch.setattr("msf.autoencoder.fused.backends", lambda: {"group_norm_silu": {"native": [], "reference": []}})


def test_one_norm_is_that_of_pytorch():
    norm = nn.GroupNorm(2, 6, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GroupNormSiLU(norm)(x), functional.silu(norm(x)), rtol=1e-5, atol=1e-5)


def test_a_fused_autoencoder_computes_the_same_from_the_same_state_dict(make_model, fast_backend):
    plain, fused = make_model(block_out_channels=(8, 16)), make_model(block_out_channels=(8, 16))
    # 2 + 2 and 4 + 2 residual blocks with one layer per block, of two norms, and one norm at each end.
    assert fuse_blocks(fused) == 2 + 2 + 4 + 2 + 2
    assert count(fused) == 2 * (2 + 2 + 4 + 2) + 2
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(fused(x).sample, plain(x).sample, rtol=1e-5, atol=1e-5)


def test_fusing_again_changes_nothing(make_model, fast_backend):
    model = make_model()
    assert fuse_blocks(model) > 0
    assert fuse_blocks(model) == 0


def test_nothing_is_fused_where_only_the_reference_serves(make_model, monkeypatch):
    reasons = {"native": ["not built"], "triton": ["no GPU"], "reference": []}
    monkeypatch.setattr("msf.autoencoder.fused.backends", lambda: {"group_norm_silu": reasons})
    model = make_model()
    assert fuse_blocks(model) == count(model) == 0


def test_another_activation_is_left_alone(make_model, fast_backend):
    model = make_model(act_fn="relu")
    # The activation after the last norm of encoder and decoder is SiLU whatever the configuration says.
    assert fuse_blocks(model) == 2


def test_blocks_that_do_more_are_left_alone(fast_backend):
    from diffusers.models.resnet import ResnetBlock2D

    blocks = nn.ModuleList([
        ResnetBlock2D(in_channels=32, temb_channels=8),
        ResnetBlock2D(in_channels=32, temb_channels=None, up=True),
        ResnetBlock2D(in_channels=32, temb_channels=None, down=True),
        ResnetBlock2D(in_channels=32, temb_channels=None, output_scale_factor=2.0),
        ResnetBlock2D(in_channels=32, temb_channels=None, non_linearity="relu"),
    ])  # fmt: skip
    assert fuse_blocks(blocks) == 0


def test_a_block_with_another_width_keeps_its_shortcut(fast_backend):
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=None).eval()
    fused = ResidualBlock(block)
    x = torch.randn(2, 32, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), block(x, None), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(x), block(x, None), rtol=1e-5, atol=1e-5)
