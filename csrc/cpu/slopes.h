// The weighted sum of a step's slopes, block by block.
//
// In a namespace without a name, like everything that is compiled for several levels.
#pragma once

#include "msf/rk_combine.h"
#include "visit.h"

namespace msf::cpu::MSF_LEVEL {
namespace {

constexpr int64_t kBlock = 1024;  // the sum of a block stays in the first-level cache

template <typename C, typename S>
void add_slope(C* sum, const S* slope, C coefficient, bool is_first, int64_t n) {
  if (is_first) {
    for (int64_t i = 0; i < n; ++i) {
      C value;
      assign(value, slope[i]);
      sum[i] = coefficient * value;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      C value;
      assign(value, slope[i]);
      sum[i] = with_slope(sum[i], coefficient, value);
    }
  }
}

template <typename C, typename Args>
void add_slopes(const Args& args, const C* coefficients, int64_t start, int64_t n, C* sum) {
  if (args.n_slopes == 0) {
    for (int64_t i = 0; i < n; ++i) sum[i] = 0;
  }
  for (int i = 0; i < args.n_slopes; ++i) {
    visit(args.slope_types[i], args.slopes[i], start,
          [&](const auto* slope) { add_slope(sum, slope, coefficients[i], i == 0, n); });
  }
}

}  // namespace
}  // namespace msf::cpu::MSF_LEVEL
