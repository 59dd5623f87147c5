"""The published network from a public package: torchcfm's U-Net, in the forms in which people run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def tuned_unet(network: UNet, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return the published network as one tunes it without a compiler: channels-last, fused attention, in `dtype`."""
    peer = published_unet(network)
    for module in peer.modules():
        attention = getattr(module, "attention", None)
        if attention is not None:
            module.attention = SdpaHeads(attention.n_heads)
        if isinstance(module, nn.GroupNorm):
            # PyTorch's own accumulates in fp32; the package's subclass also makes an fp32 copy of the map.
            module.__class__ = nn.GroupNorm
    peer = peer.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    peer.dtype = dtype  # to which the package casts its input
    # It computes the sinusoid in fp32 and feeds it to whatever dtype the layers have.
    peer.time_embed.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(dtype),))
    tuned: nn.Module = peer
    return tuned


@dataclass(frozen=True)
class PeerVelocity:
    """(z, t) -> v in the dtype of z, by a network that is called as `net(t, z)`.

    Args:
        network: The network.
        dtype: What it computes in.
        memory_format: What its maps come in.
    """

    network: Callable[..., Tensor]
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    def __call__(self, z: Tensor, t: float) -> Tensor:
        x = z.to(dtype=self.dtype, memory_format=self.memory_format)
        time = torch.full((1,), t, device=z.device).expand(len(z))
        v: Tensor = self.network(time, x).to(z.dtype)
        return v

    @property
    def note(self) -> str:
        """What a reader must know about it; complete after the first call."""
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]
        return "; ".join(filter(None, [name, getattr(self.network, "note", "")]))


def published(network: UNet, device: torch.device) -> PeerVelocity:
    """fp32, NCHW, eager: as published, save for the activation checkpointing of its attention."""
    return PeerVelocity(published_unet(network).to(device), torch.float32, torch.contiguous_format)


def eager(network: UNet, device: torch.device, dtype: torch.dtype) -> PeerVelocity:
    return PeerVelocity(tuned_unet(network, device, dtype), dtype)


def compiled(network: UNet, device: torch.device, dtype: torch.dtype, **options: Any) -> PeerVelocity:
    """The tuned network under torch.compile.

    Args:
        network: Ours.
        device: Where it runs.
        dtype: What it computes in.
        options: Inductor's, such as `freezing=True`: weights are constants of the compiled code, laid out for it.
    """
    return PeerVelocity(CompiledNetwork(tuned_unet(network, device, dtype), options), dtype)


# Under inductor's AVX-512 code a bf16 Conv1d, transposed and fed to attention, gives NaN on processors without AMX.
NARROW = {"cpp.simdlen": 256}


class CompiledNetwork:
    """A network under torch.compile, compiled at its first call; in narrower vectors where the result is not finite.

    Args:
        network: What is compiled.
        options: Inductor's.
    """

    def __init__(self, network: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
        self.note = ""
        self._network, self._options = network, options
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        if self._compiled is not None:
            return self._compiled(*arguments)
        result = self._compile(arguments, self._options)
        if not result.isfinite().all() and all(argument.isfinite().all() for argument in arguments):
            result = self._compile(arguments, {**self._options, **NARROW})
            self.note = "with cpp.simdlen = 256, because the compiler's own choice gives NaN here"
        return result

    def _compile(self, arguments: Sequence[Tensor], options: Mapping[str, Any]) -> Tensor:
        from torch._inductor import config

        torch._dynamo.reset()
        self._compiled = torch.compile(self._network, dynamic=False)
        try:
            with torch.no_grad(), config.patch(dict(options)):
                return self._compiled(*arguments)
        # The compiler raises exceptions of many kinds.
        except Exception as error:
            raise Unavailable(
                f"torch.compile fails here: {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
