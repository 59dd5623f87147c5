// The operators as torch sees them; the schemas are in bindings.cpp. Each serves the CPU and, where built, CUDA.
#pragma once

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

}  // namespace msf
