// The operators as torch sees them; the schemas are in bindings.cpp. Each serves the CPU and, where built, CUDA.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace msf {

Tensor rk_combine_fwd(const Tensor& state, const std::vector<Tensor>& slopes, const std::vector<double>& weights,
                      double dt, const std::optional<Tensor>& dt_items);

std::tuple<Tensor, Tensor> rk_combine_cast_fwd(const Tensor& state, const std::vector<Tensor>& slopes,
                                               const std::vector<double>& weights, double dt,
                                               const std::optional<Tensor>& dt_items, ScalarType cast_to);

void rk_combine_out(const Tensor& state, const std::vector<Tensor>& slopes, const std::vector<double>& weights,
                    double dt, const std::optional<Tensor>& dt_items, Tensor out, std::optional<Tensor> cast_out);

// `dtype_codes` are positions in float16, bfloat16, float32, float64.
std::vector<Tensor> rk_combine_bwd(const Tensor& grad, const std::vector<double>& weights, double dt,
                                   const std::optional<Tensor>& dt_items, const std::vector<int64_t>& dtype_codes);

Tensor rk_combine_bwd_dt(const Tensor& grad, const std::vector<Tensor>& slopes, const std::vector<double>& weights);

// One number per item; CPU only.
Tensor scaled_error_norm(const Tensor& state, const Tensor& next_state, const std::vector<Tensor>& slopes,
                         const std::vector<double>& weights, double dt, const std::optional<Tensor>& dt_items,
                         double rtol, double atol);

Tensor philox_normal_fwd(const Tensor& sample_index, const std::vector<int64_t>& shape, int64_t seed, int64_t stream,
                         ScalarType dtype);

Tensor philox_words_fwd(const Tensor& counter, const Tensor& key);

std::tuple<Tensor, Tensor> symmetric_path_fwd(const Tensor& image, const Tensor& semantic, const Tensor& t,
                                              const Tensor& sample_index, int64_t seed, double sigma_min);

std::tuple<Tensor, Tensor> symmetric_path_bwd(const Tensor& grad_z, const Tensor& grad_dz, const Tensor& t,
                                              double sigma_min, int64_t n_image_channels);

std::tuple<Tensor, Tensor> class_distance_fwd(const Tensor& semantic, const Tensor& codes);

std::tuple<Tensor, Tensor> class_distance_bwd(const Tensor& grad_distance, const Tensor& semantic,
                                              const Tensor& codes, bool needs_codes);

std::tuple<Tensor, Tensor, Tensor> group_norm_silu_fwd(const Tensor& x, int64_t num_groups, const Tensor& weight,
                                                       const Tensor& bias, const std::optional<Tensor>& skip,
                                                       const std::optional<Tensor>& add,
                                                       const std::optional<Tensor>& scale,
                                                       const std::optional<Tensor>& shift, double eps, bool silu);

// Gradients of x, weight, bias, skip, add, scale, shift; for an absent one, a tensor without elements.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_silu_bwd(
    const Tensor& grad_out, const Tensor& mean, const Tensor& rstd, const Tensor& x, int64_t num_groups,
    const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& skip, const std::optional<Tensor>& add,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, bool silu);

// Attention, not in float64; `by_part`: packed by q | k | v, else by head. CPU only.
Tensor spatial_attention_fwd(const Tensor& qkv, int64_t num_heads, bool by_part);

// A convolution's weight in the form that `convolution_fwd` reads; float32, CPU only. [K, C, 1 or 3, 1 or 3], or summed
// taps [4, K, C, 2, 2] -> [phases, panels, frequencies or taps, C, 32]. `form` is a ConvForm.
Tensor convolution_weight(const Tensor& weight, int64_t form);

// Convolution with such a weight of `out_channels` outputs; `stride` is for the direct form.
Tensor convolution_fwd(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const std::optional<Tensor>& residual, int64_t out_channels, int64_t form, int64_t stride);

// Whether this processor multiplies pairs of bfloat16 by itself, which makes that attention fast.
bool has_pair_dots();

// Instruction set that the CPU loops use: 0 baseline, 1 AVX2, 2 AVX-512.
int64_t cpu_level();

}  // namespace msf
