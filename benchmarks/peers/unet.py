"""The published network from a public package: torchcfm's U-Net, in the forms in which people run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Unavailable, module_from_file
from benchmarks.peers.attention import merge_heads, split_heads
from msf.network.unet import UNet

# (z, t) -> v, t a number: what all solvers and pipelines here call.
Velocity = Callable[[Tensor, float], Tensor]


def published_unet(network: UNet) -> nn.Module:
    """Return torchcfm's U-Net with the weights of ours: fp32, contiguous, called as `net(t, z)`.

    Raises:
        Unavailable: torchcfm is not installed.
        RuntimeError: The two do not have the same tensors.
    """
    unet = module_from_file("torchcfm", "models/unet/__init__.py", "torchcfm")
    config = network.config
    size = 32  # only turns attention resolutions into down-sampling rates
    peer: nn.Module = unet.UNetModel(
        dim=(network.in_channels, size, size),
        num_channels=config.base_channels,
        num_res_blocks=config.n_res_blocks,
        channel_mult=config.channel_multipliers,
        attention_resolutions=",".join(str(size // rate) for rate in config.attention_down_rates),
        num_head_channels=config.head_channels,
    )
    peer.load_state_dict(network.state_dict())
    peer.eval().requires_grad_(False)
    return peer


class SdpaHeads(nn.Module):
    """Attention over packed heads [N, heads * 3 * width, T] through PyTorch's fused attention."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        attended = nn.functional.scaled_dot_product_attention(*split_heads(qkv.transpose(1, 2), self.n_heads))
        return merge_heads(attended).transpose(1, 2)


def tuned_unet(network: UNet, device: torch.device) -> nn.Module:
    """Return the published network as one tunes it without a compiler: bf16, channels-last, fused attention."""
    peer = published_unet(network)
    for module in peer.modules():
        attention = getattr(module, "attention", None)
        if attention is not None:
            module.attention = SdpaHeads(attention.n_heads)
        if isinstance(module, nn.GroupNorm):
            # PyTorch's own accumulates in fp32; the package's subclass also makes an fp32 copy of the map.
            module.__class__ = nn.GroupNorm
    peer = peer.to(device, torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    peer.dtype = torch.bfloat16  # to which the package casts its input
    # It computes the sinusoid in fp32 and feeds it to whatever dtype the layers have.
    peer.time_embed.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(torch.bfloat16),))
    tuned: nn.Module = peer
    return tuned


def as_velocity(peer: Callable[..., Tensor], dtype: torch.dtype, memory_format: torch.memory_format) -> Velocity:
    """Return (z, t) -> v in the dtype of z."""

    def velocity(z: Tensor, t: float) -> Tensor:
        x = z.to(dtype=dtype, memory_format=memory_format)
        time = torch.full((1,), t, device=z.device).expand(len(z))
        v: Tensor = peer(time, x).to(z.dtype)
        return v

    return velocity


def published(network: UNet, device: torch.device) -> Velocity:
    """fp32, NCHW, eager: as published, save for the activation checkpointing of its attention."""
    return as_velocity(published_unet(network).to(device), torch.float32, torch.contiguous_format)


def eager_bf16(network: UNet, device: torch.device) -> Velocity:
    return as_velocity(tuned_unet(network, device), torch.bfloat16, torch.channels_last)


def compiled(network: UNet, device: torch.device) -> Velocity:
    """The tuned network under torch.compile."""
    return as_velocity(_compiled(tuned_unet(network, device)), torch.bfloat16, torch.channels_last)


def compiled_freezing(network: UNet, device: torch.device) -> Velocity:
    """The same with inductor's freezing: weights are constants of the compiled code, laid out for it."""
    from torch._inductor import config

    compile_frozen = _compiled(tuned_unet(network, device), first_call=config.patch(freezing=True))
    return as_velocity(compile_frozen, torch.bfloat16, torch.channels_last)


def _compiled(peer: nn.Module, first_call: Any = None) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    function = torch.compile(peer, dynamic=False)
    is_compiled = False

    def call(*arguments: Tensor) -> Tensor:
        nonlocal is_compiled
        if is_compiled:
            out: Tensor = function(*arguments)
            return out
        try:
            with torch.no_grad():
                if first_call is None:
                    result = function(*arguments)
                else:
                    with first_call:
                        result = function(*arguments)
        # The compiler raises exceptions of many kinds.
        except Exception as error:
            raise Unavailable(
                f"torch.compile fails here: {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        is_compiled = True
        first: Tensor = result
        return first

    return call
