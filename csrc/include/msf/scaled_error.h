// ratio[item] = sqrt(mean over the item's elements of (sum_i coefficient_i * slope_i / tolerance)^2), with
// tolerance = atol + rtol * max(|state|, |next_state|).
#pragma once

#include "msf/rk_combine.h"

namespace msf {

constexpr int64_t kErrorBlock = 1024;  // pixels whose squares are added to one number

// All tensors are dense in one common layout, with the item as the outermost axis.
struct ScaledErrorArgs {
  const void* state;
  const void* next_state;
  Scalar state_type;  // of both; float64 computes in double, everything else in float
  const void* slopes[kMaxSlopes];
  Scalar slope_types[kMaxSlopes];
  double weights[kMaxSlopes];
  int32_t n_slopes;
  double dt;             // when dt_items is null
  const void* dt_items;  // [n_items]
  Scalar dt_type;
  double rtol;
  double atol;
  double* partial;  // [n_items, n_blocks]
  int64_t n_blocks;
  int64_t item_size;
  int64_t n_rows;       // channels of a map, or 1; what follows from the shape of an item alone
  bool is_interleaved;  // channels are next to each other, else pixels
};

// atol + rtol * max(|a|, |b|); NaN where one is
template <typename C>
MSF_HOST_DEVICE C tolerance_of(C a, C b, C rtol, C atol) {
  a = a < 0 ? -a : a;
  b = b < 0 ? -b : b;
  return multiply_add(rtol, a > b || a != a ? a : b, atol);
}

}  // namespace msf
