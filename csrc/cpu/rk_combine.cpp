#include "kernels.h"
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
      sum[i] = multiply_add(coefficient, value, sum[i]);
    }
  }
}

template <typename C, typename S>
void add_state(C* sum, const S* state, S* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    C value;
    assign(value, state[i]);
    sum[i] += value;
    assign(out[i], sum[i]);
  }
}

template <typename C, typename S>
void combine(const RkCombineArgs& args, int64_t begin, int64_t end) {
  C sum[kBlock];
  C coefficients[kMaxSlopes];
  int64_t coefficients_of = -1;
  for (int64_t start = begin; start < end;) {
    const int64_t item = start / args.item_size;
    const int64_t item_end = (item + 1) * args.item_size;
    int64_t n = end < item_end ? end - start : item_end - start;
    n = n < kBlock ? n : kBlock;
    if (item != coefficients_of) {
      const double dt = args.dt_items == nullptr ? args.dt : read(args.dt_items, args.dt_type, item);
      for (int i = 0; i < args.n_slopes; ++i) coefficients[i] = static_cast<C>(dt * args.weights[i]);
      coefficients_of = item;
    }
    if (args.n_slopes == 0) {
      for (int64_t i = 0; i < n; ++i) sum[i] = 0;
    }
    for (int i = 0; i < args.n_slopes; ++i) {
      visit(args.slope_types[i], args.slopes[i], start,
            [&](const auto* slope) { add_slope(sum, slope, coefficients[i], i == 0, n); });
    }
    add_state(sum, static_cast<const S*>(args.state) + start, static_cast<S*>(args.out) + start, n);
    if (args.cast_out != nullptr) {
      visit(args.cast_type, args.cast_out, start, [&](auto* out) { convert(out, sum, n); });
    }
    start += n;
  }
}

}  // namespace

void rk_combine(const RkCombineArgs& args, int64_t begin, int64_t end) {
  dispatch(args.state_type, [&](auto types) {
    using Type = decltype(types);
    combine<typename Type::Compute, typename Type::Element>(args, begin, end);
  });
}

}  // namespace msf::cpu::MSF_LEVEL
