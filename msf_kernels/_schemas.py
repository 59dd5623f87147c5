"""Schemas of the registered operators that the native library has, written once.

Those in `SHARED` are registered in both families, `msf_triton` and `msf_native`, whose operators of one name then take
the same arguments. `csrc/bindings.cpp` repeats what is here, because a library has to be loadable by itself: a test
compares the two, and a library that was built from other sources is refused when it is loaded. What only Triton has is
written where it is registered.
"""

from __future__ import annotations

_COMBINATION = "Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items"
_NORM = "Tensor x, int num_groups, Tensor weight, Tensor bias, Tensor? skip, Tensor? add, Tensor? scale, Tensor? shift"

SHARED = {
    "rk_combine_fwd": f"({_COMBINATION}) -> Tensor",
    "rk_combine_cast_fwd": f"({_COMBINATION}, ScalarType cast_to) -> (Tensor, Tensor)",
    "rk_combine_out": f"({_COMBINATION}, Tensor(a!) out, Tensor(b!)? cast_out) -> ()",
    "rk_combine_bwd": "(Tensor grad, float[] weights, float dt, Tensor? dt_items, int[] dtype_codes) -> Tensor[]",
    "rk_combine_bwd_dt": "(Tensor grad, Tensor[] slopes, float[] weights) -> Tensor",
    "philox_normal_fwd": (
        "(Tensor sample_index, SymInt[] shape, SymInt seed, SymInt stream, ScalarType dtype) -> Tensor"
    ),
    "philox_words_fwd": "(Tensor counter, Tensor key) -> Tensor",
    "symmetric_path_fwd": (
        "(Tensor image, Tensor semantic, Tensor t, Tensor sample_index, SymInt seed, float sigma_min) "
        "-> (Tensor, Tensor)"
    ),
    "symmetric_path_bwd": (
        "(Tensor grad_z, Tensor grad_dz, Tensor t, float sigma_min, SymInt n_image_channels) -> (Tensor, Tensor)"
    ),
    "class_distance_fwd": "(Tensor semantic, Tensor codes) -> (Tensor, Tensor)",
    "class_distance_bwd": "(Tensor grad, Tensor semantic, Tensor codes, bool needs_codes) -> (Tensor, Tensor)",
    "group_norm_silu_fwd": f"({_NORM}, float eps, bool silu) -> (Tensor, Tensor, Tensor)",
    "group_norm_silu_bwd": (
        f"(Tensor grad_out, Tensor mean, Tensor rstd, {_NORM}, bool silu) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
}

# Of the native library alone. Its attention saves nothing for a backward pass of its own.
NATIVE = {
    "scaled_error_norm": (
        "(Tensor state, Tensor next_state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items, "
        "float rtol, float atol) -> Tensor"
    ),
    "spatial_attention_fwd": "(Tensor qkv, int num_heads, bool by_part) -> Tensor",
    "has_pair_dots": "() -> bool",
    "convolution_weight": "(Tensor weight, int form) -> Tensor",
    "convolution_fwd": (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int out_channels, int form, int stride) -> Tensor"
    ),
    "cpu_level": "() -> int",
}
