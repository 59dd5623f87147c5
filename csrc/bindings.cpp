// Schemas of the operators, and their kernels for the CPU and, where built, CUDA.
#include "ops/operators.h"

STABLE_TORCH_LIBRARY(msf_native, m) {
  m.def("rk_combine_fwd(Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items) -> Tensor");
  m.def(
      "rk_combine_cast_fwd(Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items, "
      "ScalarType cast_to) -> (Tensor, Tensor)");
  m.def(
      "rk_combine_out(Tensor state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items, "
      "Tensor(a!) out, Tensor(b!)? cast_out) -> ()");
  m.def(
      "rk_combine_bwd(Tensor grad, float[] weights, float dt, Tensor? dt_items, int[] dtype_codes) -> Tensor[]");
  m.def("rk_combine_bwd_dt(Tensor grad, Tensor[] slopes, float[] weights) -> Tensor");
  m.def("philox_normal_fwd(Tensor sample_index, SymInt[] shape, SymInt seed, SymInt stream, ScalarType dtype) -> Tensor");
  m.def("philox_words_fwd(Tensor counter, Tensor key) -> Tensor");
  m.def(
      "symmetric_path_fwd(Tensor image, Tensor semantic, Tensor t, Tensor sample_index, SymInt seed, float sigma_min) "
      "-> (Tensor, Tensor)");
  m.def(
      "symmetric_path_bwd(Tensor grad_z, Tensor grad_dz, Tensor t, float sigma_min, SymInt n_image_channels) "
      "-> (Tensor, Tensor)");
  m.def("class_distance_fwd(Tensor semantic, Tensor codes) -> (Tensor, Tensor)");
  m.def("class_distance_bwd(Tensor grad, Tensor semantic, Tensor codes, bool needs_codes) -> (Tensor, Tensor)");
  m.def(
      "group_norm_silu_fwd(Tensor x, int num_groups, Tensor weight, Tensor bias, Tensor? skip, Tensor? add, "
      "Tensor? scale, Tensor? shift, float eps, bool silu) -> (Tensor, Tensor, Tensor)");
  m.def(
      "group_norm_silu_bwd(Tensor grad_out, Tensor mean, Tensor rstd, Tensor x, int num_groups, Tensor weight, "
      "Tensor bias, Tensor? skip, Tensor? add, Tensor? scale, Tensor? shift, bool silu) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "scaled_error_norm(Tensor state, Tensor next_state, Tensor[] slopes, float[] weights, float dt, Tensor? dt_items, "
      "float rtol, float atol) -> Tensor");
  m.def("spatial_attention_fwd(Tensor qkv, int num_heads, bool by_part) -> Tensor");
  m.def("convolution_weight(Tensor weight, int form) -> Tensor");
  m.def(
      "convolution_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int out_channels, int form, int stride) "
      "-> Tensor");
  m.def("has_pair_dots() -> bool");
  m.def("cpu_level() -> int");
}

namespace {

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("rk_combine_fwd", TORCH_BOX(&msf::rk_combine_fwd));
  m.impl("rk_combine_cast_fwd", TORCH_BOX(&msf::rk_combine_cast_fwd));
  m.impl("rk_combine_out", TORCH_BOX(&msf::rk_combine_out));
  m.impl("rk_combine_bwd", TORCH_BOX(&msf::rk_combine_bwd));
  m.impl("rk_combine_bwd_dt", TORCH_BOX(&msf::rk_combine_bwd_dt));
  m.impl("philox_normal_fwd", TORCH_BOX(&msf::philox_normal_fwd));
  m.impl("philox_words_fwd", TORCH_BOX(&msf::philox_words_fwd));
  m.impl("symmetric_path_fwd", TORCH_BOX(&msf::symmetric_path_fwd));
  m.impl("symmetric_path_bwd", TORCH_BOX(&msf::symmetric_path_bwd));
  m.impl("class_distance_fwd", TORCH_BOX(&msf::class_distance_fwd));
  m.impl("class_distance_bwd", TORCH_BOX(&msf::class_distance_bwd));
  m.impl("group_norm_silu_fwd", TORCH_BOX(&msf::group_norm_silu_fwd));
  m.impl("group_norm_silu_bwd", TORCH_BOX(&msf::group_norm_silu_bwd));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(msf_native, CPU, m) {
  implement(m);
  m.impl("scaled_error_norm", TORCH_BOX(&msf::scaled_error_norm));
  m.impl("spatial_attention_fwd", TORCH_BOX(&msf::spatial_attention_fwd));
  m.impl("convolution_weight", TORCH_BOX(&msf::convolution_weight));
  m.impl("convolution_fwd", TORCH_BOX(&msf::convolution_fwd));
}

STABLE_TORCH_LIBRARY_IMPL(msf_native, CompositeExplicitAutograd, m) {
  m.impl("has_pair_dots", TORCH_BOX(&msf::has_pair_dots));
  m.impl("cpu_level", TORCH_BOX(&msf::cpu_level));
}

#if defined(MSF_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(msf_native, CUDA, m) { implement(m); }
#endif
