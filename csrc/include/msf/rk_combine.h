// out = state + sum_i coefficient_i * slope_i, with coefficient_i = dt * weight_i and dt per item or for all.
#pragma once

#include "msf/math.h"

namespace msf {

constexpr int kMaxSlopes = 16;

// All tensors are dense in one common layout, with the item as the outermost axis where n_items > 1.
struct RkCombineArgs {
  const void* state;
  void* out;
  void* cast_out;  // second copy of the result, or null
  const void* slopes[kMaxSlopes];
  Scalar slope_types[kMaxSlopes];
  double weights[kMaxSlopes];
  int32_t n_slopes;
  Scalar state_type;  // also of out; float64 computes in double, everything else in float
  Scalar cast_type;
  double dt;            // when dt_items is null
  const void* dt_items; // [n_items]
  Scalar dt_type;
  int64_t n_items;
  int64_t item_size;
};

}  // namespace msf
