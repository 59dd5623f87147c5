"""Attention of other libraries on the packed projection [N, T, heads * 3 * width], each head's q, k, v side by side.

What a library needs copied first is copied inside its call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers import Unavailable, require, require_gpu

AttentionPeer = Callable[[Tensor, int], Callable[[], Tensor]]


def split_heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views q, k, v; each [N, heads, T, width]."""
    n, tokens, packed = qkv.shape
    q, k, v = qkv.view(n, tokens, n_heads, 3, packed // (3 * n_heads)).permute(3, 0, 2, 1, 4)
    return q, k, v


def merge_heads(attended: Tensor) -> Tensor:
    """[N, heads, T, width] -> [N, T, heads * width]."""
    return attended.transpose(1, 2).flatten(2)


def _sdpa(backend: SDPBackend) -> AttentionPeer:
    def build(qkv: Tensor, n_heads: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return merge_heads(scaled_dot_product_attention(*split_heads(qkv, n_heads)))

        try:
            run()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise Unavailable(f"PyTorch's {backend.name} backend refuses on {qkv.device.type}: {reason}") from error
        return run

    return build


def _flex(qkv: Tensor, n_heads: int) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> Tensor:
        attended: Tensor = compiled(*split_heads(qkv, n_heads))
        return merge_heads(attended)

    try:
        run()
    # The compiler raises exceptions of many kinds.
    except Exception as error:
        raise Unavailable(f"FlexAttention does not compile here: {str(error).splitlines()[0]}") from error
    return run


def _flash_attn(qkv: Tensor, n_heads: int) -> Callable[[], Tensor]:
    module = require("flash_attn", "flash-attn")
    require_gpu("flash-attn", qkv.device.type)

    def run() -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in split_heads(qkv, n_heads))
        attended: Tensor = module.flash_attn_func(q, k, v)
        return attended.flatten(2)

    return run


def _xformers(qkv: Tensor, n_heads: int) -> Callable[[], Tensor]:
    module = require("xformers.ops", "xformers")
    require_gpu("xformers' attention", qkv.device.type)

    def run() -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in split_heads(qkv, n_heads))
        attended: Tensor = module.memory_efficient_attention(q, k, v)
        return attended.flatten(2)

    return run


PEERS: dict[str, AttentionPeer] = {
    "sdpa-math": _sdpa(SDPBackend.MATH),
    "sdpa-flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa-efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "flex-attention": _flex,
    "flash-attn": _flash_attn,
    "xformers": _xformers,
}
