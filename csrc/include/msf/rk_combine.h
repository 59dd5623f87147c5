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
  double dt;             // when dt_items is null
  const void* dt_items;  // [n_items]
  Scalar dt_type;
  int64_t n_items;
  int64_t item_size;
};

// grad_slopes[i] = coefficient_i * grad
struct RkCombineBwdArgs {
  const void* grad;
  Scalar grad_type;  // float64 computes in double, everything else in float
  void* grad_slopes[kMaxSlopes];
  Scalar slope_types[kMaxSlopes];
  double weights[kMaxSlopes];
  int32_t n_slopes;
  double dt;
  const void* dt_items;
  Scalar dt_type;
  int64_t n_items;
  int64_t item_size;
};

// grad_dt[item] = sum over the item's elements of grad * sum_i weight_i * slope_i
struct RkCombineBwdDtArgs {
  const void* grad;
  Scalar grad_type;  // of the arithmetic and the result too, where it is float64; else these are float
  const void* slopes[kMaxSlopes];
  Scalar slope_types[kMaxSlopes];
  double weights[kMaxSlopes];
  int32_t n_slopes;
  void* grad_dt;  // [n_items]
  int64_t n_items;
  int64_t item_size;
};

template <typename Args>
MSF_HOST_DEVICE double item_step(const Args& args, int64_t item) {
  return args.dt_items == nullptr ? args.dt : read(args.dt_items, args.dt_type, item);
}

// What slope k is multiplied with: the product in double, rounded once.
template <typename C, typename Args>
MSF_HOST_DEVICE C coefficient_of(const Args& args, double dt, int k) {
  return static_cast<C>(dt * args.weights[k]);
}

// The sum takes the slopes in their order and the state last.
template <typename C>
MSF_HOST_DEVICE C with_slope(C sum, C coefficient, C slope) {
  return multiply_add(coefficient, slope, sum);
}

template <typename C>
MSF_HOST_DEVICE C with_state(C sum, C state) {
  return sum + state;
}

}  // namespace msf
