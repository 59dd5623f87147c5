"""Group norm and the SiLU after it as one operator, which passes over a large feature map once less."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msf_kernels import backends, group_norm_silu


class GroupNormSiLU(nn.GroupNorm):
    """`silu(norm(x))`, with the parameters of an existing norm.

    Args:
        norm: Affine; its parameters are taken over, not copied, so that the state dict does not change.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Take over sizes and parameters."""
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, affine=False)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like `x`, [N, C, H, W]."""
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, eps=self.eps)


def fuse_norms(module: nn.Module) -> int:
    """Fuse the norms of a diffusers encoder or decoder with the activations after them; return how many.

    Nothing changes where this machine has only the reference of the operator, which is no faster than two operators;
    nor in blocks that take a time embedding, resample, or have another activation. Not for training with dropout.

    Args:
        module: Searched with all its submodules; changed in place.
    """
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import ResnetBlock2D

    if not any(not reasons for name, reasons in backends()["group_norm_silu"].items() if name != "reference"):
        return 0
    n_fused = 0
    for child in module.modules():
        if isinstance(child, ResnetBlock2D) and _is_plain(child):
            n_fused += _fuse(child, ("norm1", "norm2"), "nonlinearity")
        elif isinstance(child, (Encoder, Decoder)):
            n_fused += _fuse(child, ("conv_norm_out",), "conv_act")
    return n_fused


def _is_plain(block: Any) -> bool:
    return block.time_emb_proj is None and not block.up and not block.down


def _fuse(block: nn.Module, norms: tuple[str, ...], activation: str) -> int:
    is_silu = isinstance(getattr(block, activation), nn.SiLU)
    if not is_silu or any(type(getattr(block, name)) is not nn.GroupNorm for name in norms):
        return 0
    for name in norms:
        setattr(block, name, GroupNormSiLU(getattr(block, name)))
    setattr(block, activation, nn.Identity())
    return len(norms)
